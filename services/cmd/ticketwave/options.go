package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/jcp/ticketwave/services/booking"
	"github.com/jcp/ticketwave/services/cmd/internal/gateways"
	"github.com/jcp/ticketwave/services/internal/daemon"
	schema "github.com/jcp/ticketwave/sql"
)

// options are read from the environment; see usage.
type options struct {
	PostgresURL   string
	AMQPURL       string
	ManagementURL string
	Password      string
	Prefix        string
	LogLevel      slog.Level
	SMTPAddr      string
	MailDir       string
	MailFrom      string
	MaxTickets    int
	Style         string        // who leads bookings
	Hold, Grace   time.Duration // of bookings
	Payments      gateways.Options
	Ports         []string // in the order of schema.Services
	RelayAddr     string   // of the relay's probes and metrics, "off" for none
	AdminAddr     string   // "off" for none
	AdminTokens   string
}

func parse(getenv func(string) string) (options, error) {
	get := func(name, fallback string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return fallback
	}
	o := options{
		PostgresURL: get("TW_POSTGRES_URL", ""), AMQPURL: get("TW_AMQP_URL", ""), ManagementURL: get("TW_RABBITMQ_MANAGEMENT_URL", ""),
		Password: get("TW_SERVICE_PASSWORD", ""), Prefix: get("TW_DATABASE_PREFIX", schema.DefaultPrefix),
		SMTPAddr: get("TW_SMTP_ADDR", ""), MailDir: get("TW_MAIL_DIR", ".run/mail"), MailFrom: get("TW_MAIL_FROM", ""),
		Ports:     strings.Split(get("TW_HTTP_PORTS", "5001,5002,5003,5004,5005"), ","),
		RelayAddr: get("TW_RELAY_HTTP_ADDR", "127.0.0.1:5010"),
		AdminAddr: get("TW_ADMIN_ADDR", "127.0.0.1:5011"), AdminTokens: get("TW_ADMIN_TOKENS", ""),
	}
	if err := o.LogLevel.UnmarshalText([]byte(get("TW_LOG_LEVEL", "info"))); err != nil {
		return o, fmt.Errorf("TW_LOG_LEVEL is %q: want debug, info, warn or error", getenv("TW_LOG_LEVEL"))
	}
	own := []daemon.Setting{
		daemon.Whole(&o.MaxTickets, "", "TW_MAX_TICKETS", booking.DefaultMaxTickets, 1, 1000),
		daemon.Checked(&o.Style, "", "TW_SAGA", booking.Choreography, "choreography or orchestration", booking.IsStyle),
		daemon.Duration(&o.Hold, "", "TW_BOOKING_HOLD", booking.DefaultHold, booking.MinHold, booking.MaxHold),
		daemon.Duration(&o.Grace, "", "TW_BOOKING_GRACE", booking.DefaultGrace, 0, booking.MaxGrace),
	}
	if err := daemon.FromEnvironment(append(own, o.Payments.Settings("")...), getenv); err != nil {
		return o, err
	}
	return o, o.check()
}

func (o options) check() error {
	const upFirst = "; \"make up\" starts one and writes .run/env"
	if err := checkURL(o.PostgresURL, "postgres", "postgresql"); err != nil {
		return errors.New("TW_POSTGRES_URL: want postgres://user:password@host:port/database" + upFirst)
	}
	if err := checkURL(o.AMQPURL, "amqp", "amqps"); err != nil {
		return errors.New("TW_AMQP_URL: want amqp://user:password@host:port/vhost" + upFirst)
	}
	if err := checkURL(o.ManagementURL, "http", "https"); o.ManagementURL != "" && err != nil {
		return errors.New("TW_RABBITMQ_MANAGEMENT_URL: want http://user:password@host:port")
	}
	if o.Password == "" {
		return errors.New("TW_SERVICE_PASSWORD: want the password to give to the services' database roles")
	}
	if o.SMTPAddr != "" {
		if _, _, err := net.SplitHostPort(o.SMTPAddr); err != nil {
			return fmt.Errorf("TW_SMTP_ADDR is %q: want host:port", o.SMTPAddr)
		}
	}
	if _, err := o.Payments.Config(); err != nil {
		return err
	}
	if len(o.Ports) != len(schema.Services) {
		return fmt.Errorf("TW_HTTP_PORTS has %d ports: want %d, separated by commas", len(o.Ports), len(schema.Services))
	}
	for _, port := range o.Ports {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 && port != "0" {
			return fmt.Errorf("TW_HTTP_PORTS: %q is no port: want numbers from 0 to 65535", port)
		}
	}
	return nil
}

func checkURL(address string, schemes ...string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return errors.New("not a URL")
	}
	for _, scheme := range schemes {
		if u.Scheme == scheme {
			return nil
		}
	}
	return errors.New("not one of " + strings.Join(schemes, ", "))
}

// plan is which databases there are.
func (o options) plan() schema.Plan { return schema.TicketWave(o.Prefix, o.Password) }

// databaseURL connects to a service's database as one of its roles.
func (o options) databaseURL(service, login string) (string, error) {
	return schema.URL(o.PostgresURL, o.Prefix+service, o.Prefix+login, o.Password)
}
