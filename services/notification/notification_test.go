package notification_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/emersion/go-smtp"
	"github.com/google/uuid"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
	"github.com/jcp/ticketwave/outbox/outboxtest"
	"github.com/jcp/ticketwave/outbox/rabbitmq"
	"github.com/jcp/ticketwave/services/internal/bus"
	"github.com/jcp/ticketwave/services/internal/web"
	"github.com/jcp/ticketwave/services/notification"
)

var quiet = slog.New(slog.DiscardHandler)

// office is notification on a database and a vhost of its own.
type office struct {
	db        *outboxtest.Database
	publisher *rabbitmq.Publisher
	router    *web.Router
}

func newOffice(t *testing.T, cfg notification.Config) *office {
	t.Helper()
	o := &office{db: outboxtest.NewDatabase(t, "notification", "notification"), router: web.NewRouter(web.Config{Logger: quiet})}
	cfg.Pool, cfg.Logger = outboxtest.NewPool(t, o.db.ServiceURL), quiet
	service, err := notification.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	service.Routes(o.router)
	amqp := outboxtest.NewVHost(t)
	if err := bus.Topology().Apply(t.Context(), amqp); err != nil {
		t.Fatal(err)
	}
	b, err := bus.Open(bus.Config{Name: "notification", URL: amqp, Pool: cfg.Pool, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	service.Handlers(b.Consumer)
	if o.publisher, err = rabbitmq.NewPublisher(rabbitmq.PublisherConfig{URL: amqp, Exchange: bus.Topology().Exchange}, quiet); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_, _ = o.publisher.Close(), b.Close()
	})
	return o
}

// ask publishes the request of a booking and returns its message id.
func (o *office) ask(t *testing.T, booking string) string {
	t.Helper()
	request := contracts.SendBookingNotification{
		BookingID: booking, UserID: uuid.NewString(), EventID: uuid.NewString(), Quantity: 2, TotalAmount: 5000,
		NotificationType: contracts.NotificationBookingCreated, RequestedAt: time.Now().UTC(),
	}
	payload, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	msg := message.NewMessage(uuid.Must(uuid.NewV7()).String(), payload)
	msg.Metadata = message.Metadata{
		outbox.HeaderID: msg.UUID, outbox.HeaderType: request.EventType(), outbox.HeaderSubject: booking,
		outbox.HeaderTime: time.Now().UTC().Format(time.RFC3339Nano),
	}
	if err := o.publisher.Publish(bus.Topology().RoutingKey(request.EventType(), 0), msg, msg.Copy()); err != nil {
		t.Fatal(err)
	}
	return msg.UUID
}

// answer waits for the one NotificationSent of a booking.
func (o *office) answer(t *testing.T, booking string) (e contracts.NotificationSent) {
	t.Helper()
	var payload []byte
	outboxtest.Eventually(t, 30*time.Second, func() bool {
		err := o.db.QueryRow(context.Background(), `SELECT payload FROM outbox.messages WHERE key = $1`, booking).Scan(&payload)
		return err == nil
	}, "no NotificationSent")
	if err := errors.Join(json.Unmarshal(payload, &e), e.Validate()); err != nil {
		t.Fatalf("%s: %v", payload, err)
	}
	return e
}

// post is a mail server that refuses as it is told and keeps what it takes.
type post struct {
	addr   string
	refuse error

	mu    sync.Mutex
	mails [][]byte
}

func newPost(t *testing.T, refuse error) *post {
	t.Helper()
	p := &post{refuse: refuse}
	server := smtp.NewServer(p)
	server.Domain = "localhost"
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.addr = l.Addr().String()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l) // ends with Close
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-ended
	})
	return p
}

// NewSession is smtp.Backend's.
func (p *post) NewSession(*smtp.Conn) (smtp.Session, error) { return session{p}, nil }

type session struct{ *post }

func (session) Mail(string, *smtp.MailOptions) error   { return nil }
func (s session) Rcpt(string, *smtp.RcptOptions) error { return s.refuse }
func (session) Reset()                                 {}
func (session) Logout() error                          { return nil }

func (s session) Data(r io.Reader) error {
	mail, err := io.ReadAll(r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mails = append(s.mails, mail)
	return err
}

func TestAMailArrivesWithBothPartsAndItsMessageID(t *testing.T) {
	t.Parallel()
	server := newPost(t, nil)
	o := newOffice(t, notification.Config{SMTPAddr: server.addr})
	booking := uuid.NewString()
	id := o.ask(t, booking)
	if e := o.answer(t, booking); !e.Success || e.ErrorMessage != nil || e.Channel != contracts.ChannelEmail {
		t.Errorf("answer %+v", e)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if len(server.mails) != 1 {
		t.Fatalf("%d mails for one message delivered twice", len(server.mails))
	}
	for _, want := range []string{"Message-ID: <" + id + "@ticketwave.example>", "text/plain", "text/html", booking, "50.00"} {
		if !bytes.Contains(server.mails[0], []byte(want)) {
			t.Errorf("the mail has no %q:\n%s", want, server.mails[0])
		}
	}
}

func TestFailuresAreReportedAtOnceOrWhenTheyDoNotPass(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		refuse *smtp.SMTPError
		giveUp time.Duration
		want   string
	}{
		"final":     {&smtp.SMTPError{Code: 550, Message: "no such user"}, time.Hour, "no such user"},
		"temporary": {&smtp.SMTPError{Code: 451, Message: "come back later"}, 2 * time.Second, "come back later"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOffice(t, notification.Config{SMTPAddr: newPost(t, c.refuse).addr, GiveUpAfter: c.giveUp})
			booking, began := uuid.NewString(), time.Now()
			o.ask(t, booking)
			e := o.answer(t, booking)
			if e.Success || e.ErrorMessage == nil || !strings.Contains(*e.ErrorMessage, c.want) {
				t.Errorf("answer %+v", e)
			}
			if c.giveUp < time.Minute && time.Since(began) < c.giveUp {
				t.Error("given up too early")
			}
		})
	}
}

func TestWithoutAServerEachMailIsAFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := newOffice(t, notification.Config{MailDir: dir})
	booking := uuid.NewString()
	id := o.ask(t, booking)
	o.answer(t, booking)
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 || files[0].Name() != id+".eml" {
		t.Fatalf("files are %v, %v", files, err)
	}
	mail, err := os.ReadFile(filepath.Join(dir, files[0].Name()))
	if err != nil || !bytes.Contains(mail, []byte("<"+id+"@ticketwave.example>")) {
		t.Errorf("%v %s", err, mail)
	}
	for path, want := range map[string]int{
		"/api/notifications?bookingId=" + booking: http.StatusOK, "/api/notifications": http.StatusBadRequest,
		"/api/notifications?bookingId=17": http.StatusBadRequest, "/api/notifications?bookingId=" + booking + "&limit=0": http.StatusBadRequest,
	} {
		w := httptest.NewRecorder()
		o.router.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want || want == http.StatusOK && !strings.Contains(w.Body.String(), `"messageId":"`+id) {
			t.Errorf("GET %s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestNewNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	pool := outboxtest.NewDatabase(t, "notification", "notification").Pool
	for name, cfg := range map[string]notification.Config{
		"no pool": {}, "sender": {Pool: pool, From: "nobody"}, "server": {Pool: pool, SMTPAddr: "mail"}, "domain": {Pool: pool, RecipientDomain: "a b"},
	} {
		if _, err := notification.New(cfg); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
