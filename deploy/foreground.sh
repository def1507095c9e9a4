#!/usr/bin/env bash
# Runs a program; at a terminal as a foreground job of its own, so that Ctrl-C reaches it and not make, whose status
# would then be that of an interruption.
if [ ! -t 0 ]; then
	exec "$@"
fi
set -m
"$@" &
fg >/dev/null
