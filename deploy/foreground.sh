#!/usr/bin/env bash
# Runs a program as the terminal's foreground job, so that Ctrl-C reaches it alone and its exit status is what counts,
# not that make was interrupted. A signal to this shell is passed on.
set -m
"$@" &
trap 'kill -INT %1 2>/dev/null' INT TERM HUP
if [ -t 0 ]; then
	fg >/dev/null
	exit
fi
while :; do
	wait %1
	status=$?
	kill -0 %1 2>/dev/null || exit "$status"
done
