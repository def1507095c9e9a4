// Package failpoint lets tests stop or kill a program at a named place. Only programs built with the tag
// failpoints have any; in all others Hit is empty and costs nothing.
//
// The environment variable TW_FAILPOINTS says what happens where, once each:
//
//	TW_FAILPOINTS='outbox.before-commit=kill@3;inbox.after-commit=pause:/tmp/here'
//
// kill ends the process with SIGKILL. pause:FILE makes the file and goes on when somebody has removed it, or after
// a minute. "@3" means the third time that the program comes there; without it, the first.
//
// The points are outbox.before-commit and outbox.after-commit (InTx with events, around its COMMIT),
// relay.before-publish and relay.after-confirm (around the publication of a message), inbox.before-commit (the
// handlers have run) and inbox.after-commit (nothing is acknowledged yet).
package failpoint
