package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/services/internal/web"
)

//go:embed templates/checkout.html.tmpl templates/checkout.css
var pages embed.FS

var (
	checkoutPage  = template.Must(template.ParseFS(pages, "templates/checkout.html.tmpl"))
	checkoutStyle = mustRead("templates/checkout.css")
	// checkoutPolicy lets the page use its own style and send its own form, and nothing else.
	checkoutPolicy = "default-src 'none'; style-src 'sha256-" + digest(checkoutStyle) + "'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

func mustRead(name string) string {
	text, err := pages.ReadFile(name)
	if err != nil {
		panic(err) // it is embedded
	}
	return string(text)
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// Routes adds the checkout page. Who knows a session's id may pay it: it is a secret of 74 random bits, and there are no
// cookies, so a strange site has no authority to borrow; its forms are refused all the same.
func (s *Sandbox) Routes(r *web.Router) {
	r.Handle(http.MethodGet, "/pay/{id}", s.getPage)
	r.Handle(http.MethodPost, "/pay/{id}", s.postPage)
}

// view is what the page shows.
type view struct {
	Style            template.CSS
	Title, Sentence  string
	Open             bool
	Amount, Currency string
	Until            string
	ID               string
}

func (s *Sandbox) getPage(w http.ResponseWriter, r *http.Request) error {
	found, err := s.find(r)
	if err != nil {
		return err
	}
	return show(w, found)
}

// find is a problem of status 404 where there is no session.
func (s *Sandbox) find(r *http.Request) (session, error) {
	id, err := web.PathID(r, "id")
	if err != nil {
		return session{}, err
	}
	found, err := sessionByID(r.Context(), s.cfg.Pool, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return found, web.NotFound("there is nothing to pay here")
	}
	if err != nil {
		return found, fmt.Errorf("read session %s: %w", id, err)
	}
	return found, nil
}

func show(w http.ResponseWriter, s session) error {
	v := view{Amount: s.Amount.String(), Currency: s.Currency, Until: s.ExpiresAt.UTC().Format("2 January 2006, 15:04:05 UTC"), ID: s.ID.String()}
	v.Title, v.Sentence, v.Open = words(s)
	return write(w, v)
}

// Thanks is the page for people who come back from another gateway's. It knows nothing of how their payment went.
func Thanks(w http.ResponseWriter) error {
	return write(w, view{Title: "Thank you", Sentence: "You will get a mail about your booking in a moment."})
}

func write(w http.ResponseWriter, v view) error {
	v.Style = template.CSS(checkoutStyle) //nolint:gosec // it is embedded
	var page bytes.Buffer
	if err := checkoutPage.Execute(&page, v); err != nil {
		return fmt.Errorf("make the checkout page: %w", err)
	}
	h := w.Header()
	h.Set("Content-Security-Policy", checkoutPolicy)
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(page.Len()))
	_, _ = w.Write(page.Bytes()) // a client that has gone
	return nil
}

// words are the page's headline and sentence, and whether the session can be paid.
func words(s session) (title, sentence string, open bool) {
	switch {
	case s.State == "paid":
		return "Paid", "Thank you. Your tickets will be confirmed in a moment.", false
	case s.State == "paying":
		return "Your payment is on its way", "It will arrive after the time to pay has ended, and then be given back.", false
	case s.State == "declined":
		return "Declined", "You have not been charged. Your tickets are given back.", false
	case s.State == "closed" || s.Over:
		return "Too late", "The time to pay has ended. You have not been charged.", false
	}
	return "Pay for your tickets", "", true
}

// actions are what the page's buttons do to a session.
var actions = map[string]struct{ state, typ string }{
	"pay":     {"paid", typeCaptured},
	"late":    {"paying", typeCaptured},
	"decline": {"declined", typeDeclined},
}

var crossOrigin = http.NewCrossOriginProtection()

// postPage does what the button says, once, and shows the page again.
func (s *Sandbox) postPage(w http.ResponseWriter, r *http.Request) error {
	if err := crossOrigin.Check(r); err != nil {
		return &web.Error{Status: http.StatusForbidden, Detail: "this form belongs to another site"}
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		return &web.Error{Status: http.StatusUnsupportedMediaType, Field: "Content-Type", Detail: "send a form"}
	}
	if err := r.ParseForm(); err != nil {
		return web.Malformed("", "the form cannot be read")
	}
	action, ok := actions[r.PostForm.Get("action")]
	if !ok {
		return web.Malformed("action", "must be pay, late or decline")
	}
	found, err := s.find(r)
	if err != nil {
		return err
	}
	if err := s.act(r.Context(), found, action.state, action.typ); err != nil {
		return fmt.Errorf("session %s: %w", found.ID, err)
	}
	w.Header().Set("Location", found.ID.String()) // relative: the same page, whatever stands before it
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// act changes an open session and stores the webhook that tells of it, together. A session that has ended stays as it is.
func (s *Sandbox) act(ctx context.Context, found session, state, typ string) error {
	n := notice{Type: typ, Timestamp: s.cfg.Now().UTC().Truncate(time.Millisecond),
		Data: noticeData{PaymentID: found.ID, Amount: found.Amount, Currency: found.Currency}}
	if typ == typeCaptured {
		n.Data.Charge = chargePrefix + found.ID.String()
	}
	body, err := json.Marshal(n)
	if err != nil {
		return err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	var late time.Duration
	if state == "paying" {
		late = s.cfg.Lateness
	}
	err = pgx.BeginFunc(ctx, s.cfg.Pool, func(tx pgx.Tx) error {
		changed, err := changeSession(ctx, tx, found.ID, state)
		if err != nil || !changed {
			return err
		}
		return insertWebhook(ctx, tx, "evt_"+id.String(), found, body, late)
	})
	if err == nil {
		s.deliver.Ring()
	}
	return err
}
