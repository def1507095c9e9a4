package schema

import (
	"fmt"
	"net/url"
	"regexp"
	"slices"
)

// Database is one database to create and migrate.
type Database struct {
	// Name is the database's name.
	Name string
	// Source is the CloudEvents source of what is written in its outbox.
	Source string
	// Schemas are the folders to apply, in order. One with an outbox or inbox gets ops, the operators' log, in any case.
	Schemas []string
	// Login is the role that the service connects as.
	Login string
}

// Plan is what one Migrate brings about.
type Plan struct {
	Databases []Database
	// RelayLogin is the role that the relay connects as, to every database with an outbox.
	RelayLogin string
	// OperatorLogin is the role that the admin API connects as, to every database with an outbox or inbox.
	OperatorLogin string
	// Password is given to every login role.
	Password string
}

// DefaultPrefix begins the names of databases and login roles.
const DefaultPrefix = "ticketwave_"

// Services are the services with a database, in the order of the flow.
var Services = []string{"booking", "catalog", "payment", "notification", "saga"}

// TicketWave is the plan of the services. Databases and roles are named prefix + service.
func TicketWave(prefix, password string) Plan {
	plan := Plan{RelayLogin: prefix + "relay", OperatorLogin: prefix + "operator", Password: password}
	for _, service := range Services {
		plan.Databases = append(plan.Databases, Database{
			Name: prefix + service, Source: service, Login: prefix + service,
			Schemas: []string{"ops", "outbox", "inbox", service},
		})
	}
	return plan
}

var identifier = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

func (p Plan) validate() error {
	for _, db := range p.Databases {
		for _, name := range append([]string{db.Name, db.Login}, db.schemas()...) {
			if !identifier.MatchString(name) {
				return fmt.Errorf("plan of database %q: %q is no lower-case SQL identifier of at most 63 letters", db.Name, name)
			}
		}
		for _, name := range db.schemas() {
			if _, err := newest(name); err != nil {
				return fmt.Errorf("plan of database %q: %w", db.Name, err)
			}
		}
		if slices.Contains(db.Schemas, "outbox") && db.Source == "" {
			return fmt.Errorf("plan of database %q: an outbox needs a source", db.Name)
		}
	}
	for what, login := range map[string]string{"relay": p.RelayLogin, "operator": p.OperatorLogin} {
		if login != "" && !identifier.MatchString(login) {
			return fmt.Errorf("plan: %s login %q is no lower-case SQL identifier of at most 63 letters", what, login)
		}
	}
	return nil
}

// groups are the roles whose members may do the work of a schema; its migration grants to them.
func groups(schema string) []string {
	switch schema {
	case "outbox":
		return []string{"outbox_writer", "outbox_relay", "outbox_operator"}
	case "inbox":
		return []string{"inbox_consumer", "outbox_operator"}
	case "ops":
		return []string{"outbox_operator"}
	}
	return []string{schema + "_service"}
}

// memberships are the groups of a service's login role.
func (d Database) memberships() []string {
	var of []string
	for _, s := range d.Schemas {
		if s != "ops" {
			of = append(of, groups(s)[0])
		}
	}
	return of
}

// schemas are the folders to apply.
func (d Database) schemas() []string {
	if d.operated() && !slices.Contains(d.Schemas, "ops") {
		return append([]string{"ops"}, d.Schemas...)
	}
	return d.Schemas
}

// operated reports whether there is something for operators.
func (d Database) operated() bool {
	return slices.Contains(d.Schemas, "outbox") || slices.Contains(d.Schemas, "inbox")
}

// URL is adminURL with another database, user and password.
func URL(adminURL, database, login, password string) (string, error) {
	u, err := url.Parse(adminURL)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return "", fmt.Errorf("not a PostgreSQL URL: want postgres://user:password@host:port/database")
	}
	u.Path = "/" + database
	if login != "" {
		u.User = url.UserPassword(login, password)
	}
	return u.String(), nil
}
