package chaos_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/jcp/ticketwave/contracts"
)

// violations are what is wrong with a picture, each begun with its invariant.
func (p *picture) violations() (found []string) {
	for _, check := range []struct {
		name string
		do   func(complain func(format string, args ...any))
	}{
		{"I1", p.everythingArrives}, {"I1", p.nothingFromNowhere}, {"I1", p.nothingConfirmedIsGone},
		{"I2", p.oneEffect}, {"I2", p.oneBookingPerOrder}, {"I3", p.publishedInOrder}, {"I3", p.handledInOrder}, {"I3", p.versionsInOrder},
		{"I4", p.inventoryAddsUp}, {"I5", p.moneyAddsUp}, {"I6", p.nothingLeft},
	} {
		n := 0
		check.do(func(format string, args ...any) {
			if n++; n <= 5 {
				found = append(found, check.name+": "+fmt.Sprintf(format, args...))
			}
		})
		if n > 5 {
			found = append(found, fmt.Sprintf("%s: and %d more like these", check.name, n-5))
		}
	}
	for _, text := range p.wrong {
		found = append(found, "clients: "+text)
	}
	return found
}

// consumers of a type, by the stored topology.
func (p *picture) consumers(topic string) (names []string) {
	for _, q := range p.topology.Queues {
		if slices.Contains(q.Types, topic) {
			names = append(names, q.Name)
		}
	}
	return names
}

// everythingArrives: every outbox message is in the inbox of each consumer that is bound to its type, and was published.
func (p *picture) everythingArrives(complain func(string, ...any)) {
	published := map[uuid.UUID]int{}
	for _, id := range p.tapped {
		published[id]++
	}
	for _, m := range p.messages {
		for _, consumer := range p.consumers(m.Topic) {
			if _, ok := p.inboxes[consumer][m.UUID]; !ok {
				complain("message %s (%s, id %d, key %s) of %s has not reached %s, published %d times", m.UUID, m.Topic, m.ID, m.Key, m.source, consumer, published[m.UUID])
			}
		}
		if published[m.UUID] == 0 && !p.untapped[m.Topic] {
			complain("message %s (%s, id %d, key %s) of %s was never published", m.UUID, m.Topic, m.ID, m.Key, m.source)
		}
	}
}

// nothingFromNowhere: what was published, and what is in an inbox, is in an outbox, and the consumer is bound to it.
func (p *picture) nothingFromNowhere(complain func(string, ...any)) {
	for _, id := range p.tapped {
		if p.messages[id] == nil && !p.foreign[id] {
			complain("message %s was published and is in no outbox", id)
		}
	}
	for consumer, inbox := range p.inboxes {
		for id := range inbox {
			m := p.messages[id]
			switch {
			case m == nil && !p.foreign[id]:
				complain("message %s is in the inbox of %s and in no outbox", id, consumer)
			case m != nil && !slices.Contains(p.consumers(m.Topic), consumer):
				complain("message %s (%s) is in the inbox of %s, which is not bound to it", id, m.Topic, consumer)
			}
		}
	}
}

// nothingConfirmedIsGone: what was confirmed to a client or a writer is there.
func (p *picture) nothingConfirmedIsGone(complain func(string, ...any)) {
	for _, id := range p.appended {
		if p.messages[id] == nil {
			complain("message %s was committed and is in no outbox", id)
		}
	}
	there := map[string]bool{}
	for _, b := range p.bookings {
		there[b.ID] = true
	}
	for _, o := range p.orders {
		if o.booked.ID != "" && !there[o.booked.ID] {
			complain("booking %s was confirmed to its client and is gone", o.booked.ID)
		}
	}
}

// participants answer each request with a message of their own.
var participants = []string{"catalog", "payment", "notification"}

// oneEffect: every handled request has one answer, every answer a handled request, and what is handled by booking shows. The
// payment service tells more on a request's account later, each thing once, and of a refund when it is done.
func (p *picture) oneEffect(complain func(string, ...any)) {
	for _, service := range participants {
		answers := map[uuid.UUID]map[string]int{}
		for _, m := range p.messages {
			if m.source != service || m.Cause == uuid.Nil || m.Topic == contracts.TypeCatalogEventPublished { // whose cause is an HTTP request
				continue
			}
			if answers[m.Cause] == nil {
				answers[m.Cause] = map[string]int{}
			}
			answers[m.Cause][m.Topic]++
		}
		for id, state := range p.inboxes[service] {
			if m := p.messages[id]; state != "done" || m != nil && m.Topic == contracts.TypeRefundPayment && len(answers[id]) == 0 {
				continue
			}
			n, kinds := 0, 0
			for _, times := range answers[id] {
				n, kinds = max(n, times), kinds+1
			}
			if n != 1 || kinds > 1 && service != "payment" {
				complain("%s has handled message %s and given as answers %v", service, id, answers[id])
			}
		}
		for id := range answers {
			if p.inboxes[service][id] != "done" {
				complain("%s has answered message %s, which it has not handled", service, id)
			}
		}
	}
	for id, state := range p.inboxes["notification"] {
		if n := p.mails[id]; state == "done" && n != 1 {
			complain("request %s has %d notifications", id, n)
		}
	}
	bookings := map[string]bookingRow{}
	for _, b := range p.bookings {
		bookings[b.ID] = b
	}
	for id, state := range p.inboxes["booking"] {
		if m := p.messages[id]; m != nil && state == "done" {
			p.effectOn(bookings, m, complain)
		}
	}
}

func (p *picture) effectOn(bookings map[string]bookingRow, m *stored, complain func(string, ...any)) {
	b, ok := bookings[m.Key]
	if !ok {
		return // it is about an event
	}
	if !b.shows(m) {
		complain("booking has handled message %s (%s), and booking %s does not show it", m.UUID, m.Topic, b.ID)
	}
}

// shows reports whether the booking knows what the message says, or more.
func (b bookingRow) shows(m *stored) bool {
	switch m.Topic {
	case contracts.TypeInventoryUpdated:
		return b.Reserved
	case contracts.TypeInventoryUpdateRejected:
		return slices.Contains([]string{"refused", "released"}, b.Inventory)
	case contracts.TypeInventoryReleased:
		return b.Inventory == "released"
	case contracts.TypeInventoryCommitted:
		return b.Inventory == "sold"
	case contracts.TypePaymentDataPrepared:
		return b.PaymentID != nil && b.Payment != "asked"
	case contracts.TypePaymentPreparationFailed:
		return b.Payment != "asked"
	case contracts.TypePaymentFailed, contracts.TypePaymentExpired, contracts.TypePaymentCancelled:
		return b.Payment != "asked" && b.Payment != "prepared"
	case contracts.TypePaymentCompleted:
		return b.Payment == "completed" || b.Payment == "refunded"
	case contracts.TypePaymentRefunded:
		return b.Payment == "refunded"
	case contracts.TypeNotificationSent:
		var told contracts.NotificationSent
		return json.Unmarshal(m.Payload, &told) == nil && (told.NotificationType != contracts.NotificationBookingCreated || b.Notified != nil)
	}
	return true
}

// oneBookingPerOrder: an idempotency key has one booking, an unanswered one at most one, and nobody else has any.
func (p *picture) oneBookingPerOrder(complain func(string, ...any)) {
	of := map[string][]string{}
	for _, b := range p.bookings {
		of[b.UserID] = append(of[b.UserID], b.ID)
	}
	for _, o := range p.orders {
		made := of[o.user]
		delete(of, o.user)
		if len(made) > 1 || o.booked.ID != "" && !slices.Equal(made, []string{o.booked.ID}) {
			complain("the order under key %s was answered with booking %q and has bookings %v", o.key, o.booked.ID, made)
		}
	}
	for user, made := range of {
		complain("bookings %v of user %s were never ordered", made, user)
	}
}

// publishedInOrder: first publications of one key of one outbox follow the order of commit, which is that of the ids.
func (p *picture) publishedInOrder(complain func(string, ...any)) {
	seen, last := map[uuid.UUID]bool{}, map[string]*stored{}
	for _, id := range p.tapped {
		m := p.messages[id]
		if m == nil || seen[id] {
			continue
		}
		seen[id] = true
		line := m.source + " " + m.Key
		if before := last[line]; before != nil && before.ID > m.ID && !p.untapped[m.Topic] {
			complain("message %d of key %s of %s was published behind message %d", m.ID, m.Key, m.source, before.ID)
		}
		last[line] = m
	}
}

// handledInOrder: a participant's first answers about one key, which it writes as it handles, follow the requests' order, but
// for requests that the broker had lost and a replay brought: what came after them had been handled before. A refund is
// answered when it is done.
func (p *picture) handledInOrder(complain func(string, ...any)) {
	for _, service := range participants {
		last, answered := map[string]*stored{}, map[uuid.UUID]bool{}
		for _, m := range p.outboxes[service] {
			cause := p.messages[m.Cause]
			if cause == nil || answered[m.Cause] || cause.Topic == contracts.TypeRefundPayment || p.refilled[service][cause.UUID] {
				continue
			}
			answered[m.Cause] = true
			line := cause.source + " " + m.Key
			if before := last[line]; before != nil && before.ID > cause.ID {
				complain("%s has handled message %d of key %s of %s behind message %d", service, cause.ID, m.Key, cause.source, before.ID)
			}
			last[line] = cause
		}
	}
}

// versionsInOrder: booking has taken over every version of an event, in the order in which the catalog wrote them.
func (p *picture) versionsInOrder(complain func(string, ...any)) {
	written := map[string][]int64{}
	for _, m := range p.outboxes["catalog"] {
		var e struct{ Version int64 }
		if m.Topic != contracts.TypeCatalogEventPublished || json.Unmarshal(m.Payload, &e) != nil {
			continue
		}
		if _, done := p.inboxes["booking"][m.UUID]; done {
			written[m.Key] = append(written[m.Key], e.Version)
		}
	}
	for event, versions := range written {
		if got := p.journal[event]; !slices.Equal(got, versions) {
			i := 0
			for i < min(len(got), len(versions)) && got[i] == versions[i] {
				i++
			}
			complain("booking has taken over %d versions of event %s and the catalog has told of %d; they differ from the %dth on", len(got), event, len(versions), i+1)
		}
	}
}

// inventoryAddsUp: what is available, held and sold is the capacity; held and sold are what the reservations say; and these
// agree with how the bookings ended.
func (p *picture) inventoryAddsUp(complain func(string, ...any)) {
	of, holds := map[string]reservationRow{}, map[string]map[string]int{}
	for _, r := range p.sold {
		of[r.BookingID] = r
		if holds[r.EventID] == nil {
			holds[r.EventID] = map[string]int{}
		}
		holds[r.EventID][r.Hold] += r.Quantity
	}
	for _, e := range p.events {
		held, sold := holds[e.ID]["held"], holds[e.ID]["sold"]
		if min(e.Available, e.Held, e.Sold) < 0 || e.Available+e.Held+e.Sold != e.Capacity || e.Held != held || e.Sold != sold {
			complain("event %s: %d available, %d held, %d sold of %d; of its reservations %d are held, %d sold", e.ID, e.Available, e.Held, e.Sold, e.Capacity, held, sold)
		}
	}
	for _, b := range p.bookings {
		r, ok := of[b.ID]
		if !ok || r.EventID != b.EventID || !b.gets(r) {
			complain("booking %s of %d tickets is %s, its reservation is %q of %d, %s", b.ID, b.TicketCount, b.Status, r.Outcome, r.Quantity, r.Hold)
		}
		delete(of, b.ID)
	}
	for id := range of {
		complain("tickets are reserved for booking %s, which there is not", id)
	}
}

// gets reports whether a reservation is that of a booking which has ended like this.
func (b bookingRow) gets(r reservationRow) bool {
	switch b.Status {
	case "pending", "awaiting_payment":
		return false // it has not ended
	case "confirmed":
		return r.Outcome == "reserved" && r.Hold == "sold" && r.Quantity == b.TicketCount
	}
	switch r.Outcome {
	case "reserved":
		return r.Hold == "released" && r.Quantity == b.TicketCount
	case "sold_out":
		return r.Quantity == b.TicketCount
	}
	return r.Outcome == "released" // before it was asked for
}

// moneyAddsUp: every booking has at most one payment, of what it costs; money was kept for confirmed bookings, and all
// other money went back; and so say the books.
func (p *picture) moneyAddsUp(complain func(string, ...any)) {
	of := map[string][]paymentRow{}
	for _, pay := range p.payments {
		of[pay.BookingID] = append(of[pay.BookingID], pay)
	}
	for _, b := range p.bookings {
		made := of[b.ID]
		delete(of, b.ID)
		if len(made) == 0 && b.PaymentID == nil && b.Status != "confirmed" && p.called[b.ID] {
			continue // it was cancelled before it asked
		}
		if len(made) != 1 || !b.pays(made[0]) {
			complain("booking %s costs %d %s, is %s, and has payments %v", b.ID, b.AmountMinor, b.Currency, b.Status, made)
		}
	}
	for id := range of {
		complain("a payment is prepared for booking %s, which there is not", id)
	}
	for _, c := range p.books {
		if c.Captured-c.Refunded != c.Completed {
			complain("the books of %s: %d captured, %d refunded, %d completed", c.Currency, c.Captured, c.Refunded, c.Completed)
		}
	}
}

// pays reports whether a payment is that of a booking which has ended like this.
func (b bookingRow) pays(p paymentRow) bool {
	kept := int64(0)
	if b.Status == "confirmed" {
		kept = b.AmountMinor
	}
	known := b.PaymentID != nil && *b.PaymentID == p.ID || b.PaymentID == nil && p.Status == "unavailable"
	return known && p.AmountMinor == b.AmountMinor && p.Currency == b.Currency &&
		p.Captured-p.Refunded == kept && (p.Status == "completed") == (b.Status == "confirmed")
}

// nothingLeft: no backlog, nothing stuck and nothing dead but what was meant to be, and no forgotten transaction.
func (p *picture) nothingLeft(complain func(string, ...any)) {
	for service, n := range p.backlog {
		if n > 0 {
			complain("%d messages of %s are not relayed", n, service)
		}
	}
	for service, stuck := range p.stuckOut {
		for id, class := range stuck {
			complain("message %s is stuck in the outbox of %s: %s", id, service, class)
		}
	}
	for service, stuck := range p.stuckIn {
		for id, class := range stuck {
			if p.tolerated[id] != class {
				complain("message %s is stuck in the inbox of %s: %s", id, service, class)
			}
		}
	}
	for name, n := range p.queues {
		if n != p.dead[name] {
			complain("queue %s holds %d messages, want %d", name, n, p.dead[name])
		}
	}
	for what, n := range p.undone {
		if n > 0 {
			complain("%s: %d", what, n)
		}
	}
	if p.prepared > 0 {
		complain("%d prepared transactions are left", p.prepared)
	}
}

// repeated is how many publications were repetitions.
func (p *picture) repeated() int {
	seen, n := map[uuid.UUID]bool{}, 0
	for _, id := range p.tapped {
		if seen[id] {
			n++
		}
		seen[id] = true
	}
	return n
}

func lines(list []string) string { return strings.Join(list, "\n\t") }
