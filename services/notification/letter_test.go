package notification

import (
	"bytes"
	"encoding/json"
	"net/mail"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/inbox"
)

// Every type that the contract knows has words of its own.
func TestThereIsALetterOfEveryType(t *testing.T) {
	t.Parallel()
	var schema struct {
		Properties struct {
			NotificationType struct {
				Enum []contracts.NotificationType `json:"enum"`
			} `json:"notificationType"`
		} `json:"properties"`
	}
	document, ok := contracts.Schema(contracts.TypeSendBookingNotification)
	if err := json.Unmarshal(document, &schema); err != nil || !ok {
		t.Fatalf("%s: %v", document, err)
	}
	types, known := schema.Properties.NotificationType.Enum, map[[2]string]bool{}
	if len(types) == 0 {
		t.Fatal("the schema has no types")
	}
	w := newWriter(&mail.Address{Address: "tickets@ticketwave.example"}, "users.ticketwave.example")
	for _, typ := range types {
		l, err := w.write(inbox.Meta{ID: uuid.New()}, contracts.SendBookingNotification{
			BookingID: uuid.NewString(), UserID: uuid.NewString(), EventID: uuid.NewString(), Quantity: 2, TotalAmount: 5000,
			NotificationType: typ, RequestedAt: time.Now(),
		})
		if err != nil {
			t.Errorf("%s: %v", typ, err)
			continue
		}
		var document bytes.Buffer
		if _, err := l.msg.WriteTo(&document); err != nil || !bytes.Contains(document.Bytes(), []byte("Subject: "+subjects[typ][0])) {
			t.Errorf("%s: %v in\n%s", typ, err, &document)
		}
		known[subjects[typ]] = true
	}
	if len(known) != len(types) || len(subjects) != len(types) {
		t.Errorf("%d types have %d letters", len(types), len(known))
	}
}
