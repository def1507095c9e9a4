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

var subjects = map[contracts.NotificationType][2]string{
	contracts.NotificationBookingCreated:   {"We have your booking", "Your tickets are being reserved. You will be asked to pay as soon as they are yours."},
	contracts.NotificationBookingConfirmed: {"Your booking is confirmed", "Your tickets are paid for. Enjoy the show."},
	contracts.NotificationBookingRejected:  {"Your booking was not possible", "There are not enough tickets left. You have not been charged."},
	contracts.NotificationBookingCancelled: {"Your booking is cancelled", "Your tickets have been given back."},
}

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
