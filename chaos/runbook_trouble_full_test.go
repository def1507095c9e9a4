//go:build full

package chaos_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/jcp/ticketwave/contracts"
	"github.com/jcp/ticketwave/outbox"
)

// connect opens a session of the harness in a service's database.
func (m *manual) connect(service string) *pgx.Conn {
	m.Helper()
	ctx, cancel := context.WithTimeout(m.Context(), 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, m.pg.url("ticketwave_"+service))
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = conn.Close(ctx) // the runbook may have ended it
	})
	return conn
}

// until runs a command line until it succeeds: what is in hand at the moment is left as it is.
func (m *manual) until(command string) {
	m.Helper()
	m.Log(command)
	var text string
	var err error
	if !within(time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
		defer cancel()
		text, err = output(ctx, m.shell(command))
		return err == nil
	}) {
		m.Fatalf("%v: %s", err, text)
	}
}

// one is the one command of a section's part that contains a text.
func (m *manual) one(section, part, text string, fill ...string) string {
	m.Helper()
	for _, command := range m.said(section, part, fill...) {
		if strings.Contains(command, text) {
			return command
		}
	}
	m.Fatalf("%q of %s says no %q", part, section, text)
	return ""
}

// first is what a pattern's group finds in the answer of a command, which may come late.
func (m *manual) first(pattern, command string) (found string) {
	m.Helper()
	var text string
	if !within(30*time.Second, func() bool {
		text = m.do(command)
		if match := regexp.MustCompile(pattern).FindStringSubmatch(text); match != nil {
			found = match[1]
		}
		return found != ""
	}) {
		m.Fatalf("%s shows nothing like %s: %s", command, pattern, text)
	}
	return found
}

// Both are found when they are a minute old.
func (m *manual) transactions() {
	conn := m.connect("booking")
	ctx, cancel := context.WithTimeout(m.Context(), 10*time.Second)
	defer cancel()
	var pid string
	if _, err := conn.Exec(ctx, `BEGIN; SELECT pg_current_xact_id()`); err != nil {
		m.Fatal(err)
	}
	if err := conn.QueryRow(ctx, `SELECT pg_backend_pid()::text`).Scan(&pid); err != nil {
		m.Fatal(err)
	}
	m.do(`db booking "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'first'"`)
	m.do(`db booking "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'second'"`)
	m.ill("long-transaction", pid)
	m.ill("prepared-transaction", "second")
	m.see("long-transaction", pid, "idle in transaction")
	m.see("prepared-transaction", "first", "second")
	m.remedy("long-transaction", "PID", pid)
	m.do(m.one("prepared-transaction", "Do", "COMMIT", "GID", "first"))
	m.do(m.one("prepared-transaction", "Do", "ROLLBACK", "GID", "second"))
	m.well()
}

// connections are taken by a crowd that does not belong there.
func (m *manual) connections() {
	crowd := []*pgx.Conn{m.connect("booking")}
	ctx, cancel := context.WithTimeout(m.Context(), time.Minute)
	defer cancel()
	for full := false; !full; {
		if err := crowd[0].QueryRow(ctx, `SELECT used * 10 >= most * 9 FROM ops.connections()`).Scan(&full); err != nil {
			m.Fatal(err)
		}
		crowd = append(crowd, m.connect("booking"))
	}
	m.ill("connections", "booking")
	m.see("connections", "postgres")
	m.remedy("connections")
	for _, conn := range crowd {
		_ = conn.Close(ctx) // they only filled the place
	}
	m.well()
}

// blocked is a broker for which its own memory is too much.
func (m *manual) blocked() {
	ctx, cancel := context.WithTimeout(m.Context(), 2*time.Minute)
	defer cancel()
	calm := func(ctx context.Context) error { return m.mq.ctl(ctx, "set_vm_memory_high_watermark", "0.4") }
	m.Cleanup(func() { _ = calm(context.Background()) }) // the broker is shared; ctl has a deadline
	if err := m.mq.ctl(ctx, "set_vm_memory_high_watermark", "0.00001"); err != nil {
		m.Fatal(err)
	}
	m.ill("broker", "")
	m.see("broker", "alarm", `"mem_alarm":true`)
	m.remedy("broker")
	if err := calm(ctx); err != nil {
		m.Fatal(err)
	}
	m.well()
}

// published is a command line that writes a message of catalog, which booking alone hears.
func published(id, key, payload string) string {
	return fmt.Sprintf(`db catalog "INSERT INTO outbox.messages (uuid, topic, key, payload) VALUES ('%s', '%s', '%s', convert_to('%s', 'UTF8'))"`,
		id, contracts.TypeCatalogEventPublished, key, strings.ReplaceAll(payload, `"`, `\"`))
}

func (m *manual) event(id string) string {
	m.Helper()
	now := time.Now().UTC()
	text, err := json.Marshal(contracts.CatalogEventPublished{
		EventID: id, Name: "Programme", StartsAt: now.AddDate(10, 0, 0), Price: 2500, Currency: "EUR", Capacity: 100, Version: 1, PublishedAt: now,
	})
	if err != nil {
		m.Fatal(err)
	}
	return string(text)
}

// queueLost deletes a queue. What was handled before is sent again, and absorbed.
func (m *manual) queueLost() {
	for range 3 {
		key := uuid.NewString()
		m.do(published(uuid.Must(uuid.NewV7()).String(), key, m.event(key)))
	}
	m.well()
	m.do("mq queues/%2F/booking.2 -X DELETE")
	m.ill("queue", "booking.2")
	m.see("queue", "booking.1")
	fill := []string{"--database booking", "--database catalog", "--to-queue catalog", "--to-queue booking"}
	m.do(m.one("queue", "Do", "topology apply"))
	m.do(m.one("queue", "Do", "reconcile"))
	hash := m.first(`"hash": ?"([^"]+)"`, m.one("queue", "Do", "replay plan", fill...)+" -o json")
	m.do(m.one("queue", "Do", "replay apply", "HASH", hash))
	m.well()
}

// routeLost takes the one route of a message away, which waits in the outbox then.
func (m *manual) routeLost() {
	id, _ := m.unrouted()
	m.seeFilled("stuck-outbox", []string{"MESSAGE-ID", id}, id)
	m.seeFilled("OutboxStuckRetrying", nil, "unroutable", id)
	m.do(m.one("OutboxStuckRetrying", "Do", "topology apply"))
	m.well() // by itself

	id, key := m.unrouted()
	m.until("outboxctl stuck park " + id + " --reason tried --yes")
	fill := []string{"MESSAGE-ID", id}
	m.seeFilled("OutboxStuckParked", fill, id, "parked")
	if err := os.WriteFile(filepath.Join(m.dir, "event.json"), []byte(m.event(key)), 0o600); err != nil {
		m.Fatal(err)
	}
	m.do(m.one("OutboxStuckParked", "Do", "stuck edit", fill...) + ` --payload-file event.json --reason mended --yes`)
	m.do(m.one("OutboxStuckRetrying", "Do", "topology apply"))
	m.do(m.one("OutboxStuckParked", "Do", "stuck replay", fill...))
	m.well()

	id, _ = m.unrouted()
	m.until(m.one("OutboxStuckParked", "Do", "stuck skip", "MESSAGE-ID", id))
	m.do(m.one("OutboxStuckRetrying", "Do", "topology apply"))
	m.well()
}

// unrouted is a message whose route is gone.
func (m *manual) unrouted() (id, key string) {
	m.Helper()
	id, key = uuid.Must(uuid.NewV7()).String(), uuid.NewString()
	m.do(fmt.Sprintf("mq bindings/%%2F/e/ticketwave.events/q/booking.%d/%s.%[1]d -X DELETE", outbox.PartitionOf(key),
		strings.TrimPrefix(contracts.TypeCatalogEventPublished, contracts.TypePrefix)))
	m.do(published(id, key, m.event(key)))
	m.ill("stuck-outbox", "catalog")
	return id, key
}

// bad are messages that a consumer cannot read: two of them not their content, one not even its id.
func (m *manual) bad() {
	keys, ids := [2]string{}, [2]string{}
	for i := range keys {
		keys[i], ids[i] = uuid.NewString(), uuid.Must(uuid.NewV7()).String()
		m.do(published(ids[i], keys[i], `{}`))
	}
	m.do(`mq exchanges/%2F/amq.default/publish -X POST -H 'content-type: application/json' -d '{"properties":{"delivery_mode":2},"routing_key":"booking.1","payload":"x","payload_encoding":"string"}'`)
	m.ill("stuck-inbox", "booking")
	for _, id := range ids {
		m.first("("+id+")", "outboxctl stuck list --side inbox")
	}
	m.ill("dead-letters", "booking.1.dead")
	letter := func() string { return m.first(`"fingerprint": ?"([^"]+)"`, "outboxctl dead list -o json") }
	fill := []string{"MESSAGE-ID", ids[0], "BOOKING-ID", keys[0], "QUEUE FINGERPRINT", "booking.1.dead " + letter()}
	m.looks(fill...)

	m.seeFilled("stuck-inbox", fill, ids[0])
	m.seeFilled("InboxStuckRetrying", fill, "undecodable", ids[0])
	m.do(`db booking "UPDATE inbox.stuck SET stuck_at = stuck_at - interval '2 hours'"`)
	m.seeFilled("InboxStuckLong", fill, ids[0])
	group := m.first(`(?m)^([0-9a-f]{8}) +booking inbox `, "outboxctl stuck groups --side inbox")
	m.until(m.one("InboxStuckRetrying", "Do", "stuck replay --group", "NAME", group))
	for _, id := range ids {
		m.until(m.one("InboxStuckRetrying", "Do", "stuck park", "MESSAGE-ID", id))
	}
	m.seeFilled("InboxStuckParked", fill, ids[0])
	if err := os.WriteFile(filepath.Join(m.dir, "event.json"), []byte(m.event(keys[0])), 0o600); err != nil {
		m.Fatal(err)
	}
	m.do(m.one("InboxStuckParked", "Do", "stuck edit", fill...) + ` --payload-file event.json --reason mended --yes`)
	m.do(m.one("InboxStuckParked", "Do", "stuck replay "+ids[0], fill...))
	m.until(m.one("InboxStuckParked", "Do", "stuck replay --group", "NAME", group)) // the other one, which fails again
	m.until(m.one("InboxStuckParked", "Do", "stuck skip", "MESSAGE-ID", ids[1]))

	m.seeFilled("dead-letters", fill, "booking.1.dead")
	m.do(m.one("dead-letters", "Do", "dead redrive", fill...)) // it comes back: no build can read it
	m.do(m.one("dead-letters", "Do", "dead discard", "QUEUE FINGERPRINT", "booking.1.dead "+letter()))
	m.well()
}

// certificate lets a second relay offer the administration API with a certificate that has expired.
func (m *manual) certificate() {
	cert, key := filepath.Join(m.dir, "cert.pem"), filepath.Join(m.dir, "key.pem")
	if err := expired(cert, key); err != nil {
		m.Fatal(err)
	}
	m, relay := m.beside("https", []string{"payment"}, "TW_ADMIN_TLS_CERT="+cert, "TW_ADMIN_TLS_KEY="+key, "TW_ADMIN_CA="+cert)
	m.first("(certificate has expired)", "! outboxctl status 2>&1")
	m.see("certificate", "notAfter", "IP Address:127.0.0.1")
	m.remedy("certificate")
	m.until("outboxctl status || [ $? = 3 ]")
	m.stops(relay)
}

// expired makes a certificate that is its own authority.
func expired(cert, key string) error {
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	of := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay"}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	signed, err := x509.CreateCertificate(rand.Reader, of, of, &secret.PublicKey, secret)
	if err != nil {
		return err
	}
	bits, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed}), 0o600),
		os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: bits}), 0o600))
}

// harmless are commands that only look.
var harmless = regexp.MustCompile(`^(db \w+ "(SELECT|SHOW|\\\\)|mq |curl |outboxctl (status|doctor|why|cursor show|dead list|dead show|stuck groups|stuck list|stuck show))`)

// looks runs every command of the whole runbook that only looks, in a house that has something to show.
func (m *manual) looks(fill ...string) {
	m.Helper()
	m.do("curl -s " + local(m.booking) + "/api/bookings")
	seen := map[string]bool{}
	for _, section := range slices.Sorted(maps.Keys(m.sections)) {
		for _, part := range []string{"See", "Do"} {
			for _, command := range m.commands(section, part, fill...) {
				if seen[command] || !harmless.MatchString(command) || regexp.MustCompile(`pg_terminate|pg_promote|pg_drop|pg_reload| -X `).MatchString(command) {
					continue
				}
				seen[command] = true
				m.look(command)
			}
		}
	}
	if len(seen) < 40 {
		m.Errorf("only %d commands look", len(seen))
	}
}

func TestWhatOnlyLooks(t *testing.T) {
	for command, want := range map[string]bool{
		`db booking "SELECT 1"`: true, `db booking "\\dp outbox.messages"`: true, `db booking "VACUUM outbox.messages_default"`: false,
		`outboxctl stuck skip x`: false, `outboxctl stuck list`: true, `outboxctl dead discard q f`: false, `bin/ticketwave migrate`: false, `mq overview`: true,
	} {
		if harmless.MatchString(command) != want {
			t.Errorf("%s: want %v", command, want)
		}
	}
}
