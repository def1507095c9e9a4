// Package schema holds the SQL of every database and brings databases up to date.
//
// Each folder is one database schema with its numbered, forward-only migrations and its own version table.
// Databases, roles and grants are made here too, so that only whoever runs the migrations needs the right to
// create: a service's login role can append to the outbox, use the inbox, and work in its own schema.
package schema

import "embed"

//go:embed */*.sql
var files embed.FS
