#!/usr/bin/env bash
# Runs a program on the stack. If the stack was not up, it is stopped again afterwards.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
env=$here/../.run/env
if [ ! -e "$env" ]; then
	trap '"$here/stack.sh" down >/dev/null' EXIT # the program has the last word
fi
"$here/stack.sh" up
set -a
# shellcheck source=/dev/null
. "$env"
set +a
"$@"
