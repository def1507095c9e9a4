package notification

import (
	"embed"
	"fmt"
	htmltemplate "html/template"
	netmail "net/mail"
	"strings"
	texttemplate "text/template"

	"github.com/wneessen/go-mail"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox/inbox"
)

//go:embed templates/*.tmpl
var templates embed.FS

var (
	textBody = texttemplate.Must(texttemplate.ParseFS(templates, "templates/booking.txt.tmpl"))
	htmlBody = htmltemplate.Must(htmltemplate.ParseFS(templates, "templates/booking.html.tmpl"))
)

// letter is one mail, ready to be sent. The same request always makes the same letter.
type letter struct {
	name      string // of its file
	messageID string
	recipient string
	msg       *mail.Msg
}

// writer makes letters.
type writer struct {
	from   *netmail.Address
	domain string // of the recipients
}

func newWriter(from *netmail.Address, recipients string) writer {
	return writer{from: from, domain: recipients}
}

// content is what the templates show.
type content struct {
	Headline, Sentence string
	contracts.SendBookingNotification
}

// subjects are the headline and the sentences of each letter. Whoever made the booking may have paid by the time it ends.
var subjects = map[contracts.NotificationType][2]string{
	contracts.NotificationBookingCreated:   {"We have your booking", "Your tickets are being reserved. You will be asked to pay as soon as they are yours."},
	contracts.NotificationBookingConfirmed: {"Your booking is confirmed", "Your tickets are paid for. Enjoy the show."},
	contracts.NotificationBookingRejected:  {"Your booking was not possible", "We could not get these tickets for you. " + refunded},
	contracts.NotificationBookingCancelled: {"Your booking is cancelled", "Your tickets have been given back. " + refunded},
	contracts.NotificationBookingExpired:   {"Your booking has expired", "It was not paid in time, and your tickets have been given back. " + refunded},
	contracts.NotificationPaymentFailed:    {"Your payment did not go through", "Your tickets have been given back, and you are welcome to book again. " + refunded},
}

const refunded = "If you have paid, your money is on its way back to you."

func (w writer) write(meta inbox.Meta, r contracts.SendBookingNotification) (letter, error) {
	words, ok := subjects[r.NotificationType]
	if !ok {
		return letter{}, fmt.Errorf("no words for notification type %q", r.NotificationType)
	}
	id := meta.ID.String()
	l := letter{
		name: id + ".eml", recipient: "user-" + r.UserID + "@" + w.domain,
		messageID: id + "@" + w.from.Address[strings.LastIndexByte(w.from.Address, '@')+1:],
		msg:       mail.NewMsg(mail.WithBoundary(strings.ReplaceAll(id, "-", "")), mail.WithNoDefaultUserAgent()),
	}
	l.msg.FromMailAddress(w.from)
	if err := l.msg.To(l.recipient); err != nil {
		return letter{}, fmt.Errorf("recipient %q: %w", l.recipient, err)
	}
	l.msg.Subject(words[0])
	l.msg.SetMessageIDWithValue(l.messageID)
	l.msg.SetDateWithValue(r.RequestedAt.UTC())
	l.msg.SetGenHeader("Auto-Submitted", "auto-generated")
	data := content{words[0], words[1], r}
	if err := l.msg.SetBodyTextTemplate(textBody, data); err != nil {
		return letter{}, err
	}
	return l, l.msg.AddAlternativeHTMLTemplate(htmlBody, data)
}
