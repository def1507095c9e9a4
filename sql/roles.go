package schema

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// create makes the plan's roles and databases.
func create(ctx context.Context, adminURL string, plan Plan) error {
	conn, err := connect(ctx, adminURL)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	return locked(ctx, conn, createLock, func() error {
		for _, db := range plan.Databases {
			if err := createDatabase(ctx, conn, db, plan); err != nil {
				return fmt.Errorf("create database %s: %w", db.Name, err)
			}
		}
		return nil
	})
}

func createDatabase(ctx context.Context, conn *pgx.Conn, db Database, plan Plan) error {
	for _, s := range db.schemas() {
		for _, group := range groups(s) {
			if err := createRole(ctx, conn, group, "NOLOGIN"); err != nil {
				return err
			}
		}
	}
	if err := createLogin(ctx, conn, db.Login, plan.Password, db.memberships()); err != nil {
		return err
	}
	logins := []string{db.Login}
	if plan.RelayLogin != "" && slices.Contains(db.Schemas, "outbox") {
		if err := createLogin(ctx, conn, plan.RelayLogin, plan.Password, []string{"outbox_relay"}); err != nil {
			return err
		}
		logins = append(logins, plan.RelayLogin)
	}
	if plan.OperatorLogin != "" && db.operated() {
		if err := createLogin(ctx, conn, plan.OperatorLogin, plan.Password, []string{"outbox_operator"}); err != nil {
			return err
		}
		logins = append(logins, plan.OperatorLogin)
	}
	var exists bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, db.Name).Scan(&exists)
	if err != nil {
		return err
	}
	if !exists {
		if _, err := conn.Exec(ctx, `CREATE DATABASE `+quote(db.Name)+` TEMPLATE template0 ENCODING 'UTF8'`); err != nil {
			return err
		}
	}
	return admit(ctx, conn, db.Name, logins)
}

// admit lets only the database's own roles connect.
func admit(ctx context.Context, conn *pgx.Conn, database string, logins []string) error {
	if _, err := conn.Exec(ctx, `REVOKE ALL ON DATABASE `+quote(database)+` FROM PUBLIC`); err != nil {
		return err
	}
	for _, login := range logins {
		if _, err := conn.Exec(ctx, `GRANT CONNECT ON DATABASE `+quote(database)+` TO `+quote(login)); err != nil {
			return err
		}
	}
	return nil
}

func createRole(ctx context.Context, conn *pgx.Conn, name, attributes string) error {
	_, err := conn.Exec(ctx, `CREATE ROLE `+quote(name)+` `+attributes)
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42710" { // duplicate_object
		return nil
	}
	return err
}

func createLogin(ctx context.Context, conn *pgx.Conn, name, password string, memberOf []string) error {
	if err := createRole(ctx, conn, name, "LOGIN"); err != nil {
		return err
	}
	literal, err := conn.PgConn().EscapeString(password)
	if err != nil {
		return errors.New("the password of the login roles has characters that SQL cannot take")
	}
	if _, err := conn.Exec(ctx, `ALTER ROLE `+quote(name)+` PASSWORD '`+literal+`'`); err != nil {
		return err
	}
	for _, group := range memberOf {
		if _, err := conn.Exec(ctx, `GRANT `+quote(group)+` TO `+quote(name)); err != nil {
			return err
		}
	}
	return nil
}

// Drop removes the plan's databases, whoever is connected, and its login roles. For tests.
func Drop(ctx context.Context, adminURL string, plan Plan) error {
	conn, err := connect(ctx, adminURL)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	return locked(ctx, conn, createLock, func() error {
		roles := []string{plan.RelayLogin, plan.OperatorLogin}
		for _, db := range plan.Databases {
			if _, err := conn.Exec(ctx, `DROP DATABASE IF EXISTS `+quote(db.Name)+` WITH (FORCE)`); err != nil {
				return err
			}
			roles = append(roles, db.Login)
		}
		for _, role := range roles {
			if _, err := conn.Exec(ctx, `DROP ROLE IF EXISTS `+quote(role)); role != "" && err != nil {
				return err
			}
		}
		return nil
	})
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
