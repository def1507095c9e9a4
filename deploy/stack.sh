#!/usr/bin/env bash
# Starts and stops the PostgreSQL and RabbitMQ that TicketWave works on: see usage.
#
# Private servers live under .run/ with their own data, ports, node name and cookie. Servers that somebody
# else runs, on the default ports or any other, are never touched.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
run=$root/.run
pg=$run/postgres
mq=$run/rabbitmq

usage() {
	cat <<'TEXT'
usage: deploy/stack.sh up | down | clean | status | programs | install PACKAGE...

up      makes PostgreSQL and RabbitMQ available, each from the first of these that there is:
          1. the URL in the environment: TW_POSTGRES_URL, TW_AMQP_URL
          2. server programs on this machine, started as private instances under .run/
          3. a Docker engine, through docker-compose.yml
          4. as root on Debian or Ubuntu: apt-get install, then a private instance
        TW_STACK=env|private|docker allows that one alone. The URLs are written to .run/env.
down    stops what up started and nothing else; the data stays
clean   down, and removes the data
status  says what runs
programs  prints where the server programs are, for who starts servers of his own; installs them, as root, if need be
install installs Debian packages, as root, or says which are missing
TEXT
}

say() { printf '%s\n' "$*"; }
die() {
	printf 'stack: %s\n' "$*" >&2
	exit 1
}

# --- helpers ---------------------------------------------------------------------------------------------

secret() { # secret NAME: a random word, made once
	local file=$run/secrets/$1
	if [ ! -s "$file" ]; then
		mkdir -p "$run/secrets"
		chmod 700 "$run/secrets"
		(umask 077 && od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >"$file")
	fi
	cat "$file"
}

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_port() { # a port below the ephemeral range on which nobody listens
	local port try
	for try in $(seq 200); do
		port=$((20000 + (RANDOM * 32768 + RANDOM + try) % 12000))
		if ! listening "$port"; then
			printf '%s' "$port"
			return
		fi
	done
	die "no free port between 20000 and 32000"
}

alive() { # alive PID WORD: the process runs, is no zombie, and has WORD on its command line
	local state
	[ -n "$1" ] && [ -r "/proc/$1/stat" ] || return 1
	state=$(sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null) || return 1
	[ "$state" != Z ] && tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null | grep -qF -- "$2"
}

wait_gone() { # wait_gone PID WORD SECONDS
	local i
	for i in $(seq $(($3 * 10))); do
		alive "$1" "$2" || return 0
		sleep 0.1
	done
	return 1
}

stop_process() { # stop_process PID WORD SIGNAL
	alive "$1" "$2" || return 0
	kill -"$3" "$1" 2>/dev/null || true
	wait_gone "$1" "$2" 20 && return 0
	kill -9 "$1" 2>/dev/null || true
	wait_gone "$1" "$2" 5 || die "process $1 does not end"
}

install_packages() { # install_packages PACKAGE...: without starting a service or making a cluster
	say "stack: installing $* (apt-get)"
	mkdir -p /etc/postgresql-common
	local conf=/etc/postgresql-common/createcluster.conf policy=/usr/sbin/policy-rc.d made_conf='' made_policy=''
	if [ ! -e "$conf" ]; then
		printf 'create_main_cluster = false\n' >"$conf"
		made_conf=1
	fi
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
		made_policy=1
	fi
	local ok=1
	{
		apt-get update -qq &&
			DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
				-o Dpkg::Options::=--force-confold "$@"
	} </dev/null >"$run/apt.log" 2>&1 || ok=''
	[ -z "$made_policy" ] || rm -f "$policy"
	[ -z "$made_conf" ] || [ ! -e "$conf" ] || grep -qv '^create_main_cluster = false$' "$conf" || rm -f "$conf"
	[ -n "$ok" ] || die "apt-get install $* failed, see .run/apt.log"
}

can_install() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
has_docker() { command -v docker >/dev/null && docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; }
stack() { printf '%s' "${TW_STACK:-any}"; }

# --- PostgreSQL ------------------------------------------------------------------------------------------

pg_bin() { # the newest installed PostgreSQL's programs
	local dir
	for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -Vr); do
		if [ -x "$dir/initdb" ]; then
			printf '%s' "$dir"
			return
		fi
	done
	dir=$(command -v initdb 2>/dev/null) && dirname "$dir"
}

pg_as=() # how to become a user whom initdb accepts, who may still pass directories closed to others
if [ "$(id -u)" = 0 ]; then
	pg_as=(setpriv --reuid=postgres --regid=postgres --init-groups --)
	for cap in dac_read_search dac_override; do # a container may have been given the second alone
		if setpriv --inh-caps=+$cap --ambient-caps=+$cap true 2>/dev/null; then
			pg_as=(setpriv --reuid=postgres --regid=postgres --init-groups --inh-caps=+$cap --ambient-caps=+$cap --)
			break
		fi
	done
fi

pg_pid() { head -n1 "$pg/data/postmaster.pid" 2>/dev/null || true; }
pg_running() { alive "$(pg_pid)" "$pg/data"; }

pg_init() {
	[ -s "$pg/data/PG_VERSION" ] && return
	say "stack: making a PostgreSQL data directory"
	mkdir -p "$pg"
	rm -rf "$pg/data"
	if [ "$(id -u)" = 0 ]; then chown postgres: "$pg"; fi
	secret postgres >/dev/null
	(cd "$pg" && "${pg_as[@]}" "$(pg_bin)/initdb" -D "$pg/data" -U postgres -A scram-sha-256 \
		--pwfile="$run/secrets/postgres" --no-locale -E UTF8) >"$run/initdb.log" 2>&1 </dev/null ||
		die "initdb failed, see .run/initdb.log"
}

pg_launch() { # pg_launch PORT: starts the server and waits until it answers or ends
	local port=$1 pid i bin
	bin=$(pg_bin)
	# A zombie's pid makes PostgreSQL believe that another server runs.
	pg_running || rm -f "$pg/data/postmaster.pid"
	touch "$pg/log"
	cd "$pg"
	setsid "${pg_as[@]}" "$bin/postgres" -D "$pg/data" -p "$port" \
		-c listen_addresses=127.0.0.1 -c unix_socket_directories= \
		-c max_connections=300 -c max_prepared_transactions=20 -c shared_buffers=256MB \
		-c max_wal_size=2GB -c log_min_messages=warning -c log_line_prefix='%m [%p] %d ' \
		</dev/null >>"$pg/log" 2>&1 &
	pid=$!
	cd "$root"
	for i in $(seq 600); do
		if "$bin/pg_isready" -q -h 127.0.0.1 -p "$port" && pg_running; then return 0; fi
		kill -0 "$pid" 2>/dev/null || return 1
		sleep 0.1
	done
	return 1
}

pg_start() {
	local try
	if pg_running; then
		say "PostgreSQL  private, already running on port $(cat "$pg/port")"
		return
	fi
	pg_init
	for try in 1 2 3 4 5; do
		[ "$try" = 1 ] && [ -s "$pg/port" ] && ! listening "$(cat "$pg/port")" || free_port >"$pg/port"
		if pg_launch "$(cat "$pg/port")"; then
			say "PostgreSQL  private ($(pg_bin)), port $(cat "$pg/port"), data in .run/postgres"
			return
		fi
		rm -f "$pg/port"
	done
	tail -n 5 "$pg/log" >&2
	die "PostgreSQL does not start, see .run/postgres/log"
}

pg_url() { printf 'postgres://postgres:%s@127.0.0.1:%s/postgres?sslmode=disable' "$(secret postgres)" "$(cat "$pg/port")"; }

# --- RabbitMQ --------------------------------------------------------------------------------------------

mq_sbin() {
	local dir
	for dir in $(printf '%s\n' /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin | sort -Vr); do
		if [ -x "$dir/rabbitmq-server" ]; then
			printf '%s' "$dir"
			return
		fi
	done
	return 1
}

mq_pid() { cat "$mq/pid" 2>/dev/null || true; }
mq_running() { alive "$(mq_pid)" "$mq/"; }
mq_port() { cat "$mq/port.$1"; }

mq_env() { # exports what keeps a node to itself
	export HOME=$mq/home RABBITMQ_NODENAME=tw@localhost RABBITMQ_CONF_ENV_FILE=$mq/rabbitmq-env.conf \
		RABBITMQ_CONFIG_FILE=$mq/rabbitmq.conf RABBITMQ_MNESIA_BASE=$mq/mnesia RABBITMQ_LOG_BASE=$mq/log \
		RABBITMQ_ENABLED_PLUGINS_FILE=$mq/enabled_plugins RABBITMQ_PID_FILE=$mq/pid \
		RABBITMQ_DIST_PORT RABBITMQ_SCHEDULER_BUSY_WAIT_THRESHOLD=none ERL_EPMD_PORT ERL_EPMD_ADDRESS=127.0.0.1 \
		RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='-kernel inet_dist_use_interface {127,0,0,1}'
	RABBITMQ_DIST_PORT=$(mq_port dist)
	ERL_EPMD_PORT=$(mq_port epmd)
	unset RABBITMQ_NODE_PORT RABBITMQ_NODE_IP_ADDRESS
}

mq_configure() {
	local word
	mkdir -p "$mq/home" "$mq/mnesia" "$mq/log"
	if [ ! -s "$mq/home/.erlang.cookie" ]; then
		secret cookie >"$mq/home/.erlang.cookie"
		chmod 400 "$mq/home/.erlang.cookie"
	fi
	for word in amqp management dist epmd; do free_port >"$mq/port.$word"; done
	: >"$mq/rabbitmq-env.conf"
	printf '[rabbitmq_management].\n' >"$mq/enabled_plugins"
	cat >"$mq/rabbitmq.conf" <<TEXT
listeners.tcp.default = 127.0.0.1:$(mq_port amqp)
management.tcp.ip = 127.0.0.1
management.tcp.port = $(mq_port management)
load_definitions = $mq/definitions.json
loopback_users = none
disk_free_limit.absolute = 50MB
vm_memory_high_watermark.relative = 0.4
log.file.level = warning
TEXT
	(umask 077 && cat >"$mq/definitions.json") <<TEXT
{
  "users": [{"name": "ticketwave", "password": "$(secret rabbitmq)", "tags": "administrator"}],
  "vhosts": [{"name": "/"}],
  "permissions": [{"user": "ticketwave", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}]
}
TEXT
}

mq_launch() ( # in a subshell: the environment stays its own
	mq_env
	rm -f "$mq/pid"
	cd "$mq"
	setsid "$(mq_sbin)/rabbitmq-server" </dev/null >>"$mq/log/console" 2>&1 &
	pid=$!
	for _ in $(seq 1200); do
		if mq_running && listening "$(mq_port amqp)" && listening "$(mq_port management)"; then exit 0; fi
		kill -0 "$pid" 2>/dev/null || break
		sleep 0.1
	done
	mq_kill_epmd
	exit 1
)

epmd_program() {
	local epmd
	for epmd in $(command -v epmd) /usr/lib/erlang/erts-*/bin/epmd; do
		if [ -x "$epmd" ]; then
			printf '%s' "$epmd"
			return
		fi
	done
}

mq_kill_epmd() { # a node leaves its port mapper behind
	local epmd
	epmd=$(epmd_program)
	[ -z "$epmd" ] || "$epmd" -port "$(mq_port epmd)" -kill >/dev/null 2>&1 || true
}

mq_start() {
	local try
	if mq_running; then
		say "RabbitMQ    private, already running on port $(mq_port amqp)"
		return
	fi
	for try in 1 2 3; do
		mq_configure
		if mq_launch; then
			say "RabbitMQ    private ($(mq_sbin)), port $(mq_port amqp), management on port $(mq_port management), data in .run/rabbitmq"
			return
		fi
	done
	tail -n 20 "$mq/log/console" >&2
	die "RabbitMQ does not start, see .run/rabbitmq/log"
}

mq_stop() {
	[ -s "$mq/port.epmd" ] || return 0
	stop_process "$(mq_pid)" "$mq/" TERM
	mq_kill_epmd
	rm -f "$mq/pid"
}

# --- Docker ----------------------------------------------------------------------------------------------

compose() {
	TW_POSTGRES_PORT=$(cat "$run/docker.postgres") TW_AMQP_PORT=$(cat "$run/docker.amqp") \
		TW_MANAGEMENT_PORT=$(cat "$run/docker.management") \
		docker compose -p "$(cat "$run/docker.project")" -f "$root/docker-compose.yml" "$@"
}

docker_start() { # docker_start SERVICE
	local word
	for word in postgres amqp management; do
		[ -s "$run/docker.$word" ] || free_port >"$run/docker.$word"
	done
	[ -s "$run/docker.project" ] || printf 'ticketwave-%s' "$(printf '%s' "$root" | cksum | cut -d' ' -f1)" >"$run/docker.project"
	compose up -d --wait "$1" >"$run/docker.log" 2>&1 || die "docker compose up $1 failed, see .run/docker.log"
}

# --- choosing --------------------------------------------------------------------------------------------

choose() { # choose NAME URL INSTALLED PACKAGES: env, private, docker or die
	local name=$1 url=$2 installed=$3
	case $(stack) in
	env) [ -n "$url" ] || die "TW_STACK=env, but the URL of $name is not in the environment ($4)" ;;
	docker)
		has_docker || die "TW_STACK=docker, but no Docker engine with compose answers (docker info)"
		url=''
		installed=''
		;;
	private)
		url=''
		[ -n "$installed" ] || can_install || die "TW_STACK=private, but $name is not installed: apt-get install $5 as root"
		;;
	any) ;;
	*) die "TW_STACK is \"$TW_STACK\": want env, private or docker" ;;
	esac
	if [ -n "$url" ]; then
		echo env
	elif [ -n "$installed" ]; then
		echo private
	elif [ "$(stack)" != private ] && has_docker; then
		echo docker
	elif can_install; then
		echo install
	else
		die "no $name: set $4, or install it (Debian, Ubuntu: apt-get install $5), or start Docker, or run as root on Debian or Ubuntu"
	fi
}

up_postgres() {
	local how installed=''
	if [ -n "$(pg_bin || true)" ]; then installed=1; fi
	how=$(choose PostgreSQL "${TW_POSTGRES_URL:-}" "$installed" TW_POSTGRES_URL postgresql)
	case $how in
	env)
		say "PostgreSQL  from TW_POSTGRES_URL"
		put TW_POSTGRES_URL "$TW_POSTGRES_URL"
		return
		;;
	docker)
		docker_start postgres
		say "PostgreSQL  docker compose, port $(cat "$run/docker.postgres")"
		put TW_POSTGRES_URL "postgres://postgres:postgres@127.0.0.1:$(cat "$run/docker.postgres")/postgres?sslmode=disable"
		return
		;;
	install) install_packages postgresql ;;
	esac
	pg_start
	put TW_POSTGRES_URL "$(pg_url)"
}

up_rabbitmq() {
	local how installed=''
	if [ -n "$(mq_sbin || true)" ]; then installed=1; fi
	how=$(choose RabbitMQ "${TW_AMQP_URL:-}" "$installed" TW_AMQP_URL rabbitmq-server)
	case $how in
	env)
		say "RabbitMQ    from TW_AMQP_URL"
		put TW_AMQP_URL "$TW_AMQP_URL"
		[ -z "${TW_RABBITMQ_MANAGEMENT_URL:-}" ] || put TW_RABBITMQ_MANAGEMENT_URL "$TW_RABBITMQ_MANAGEMENT_URL"
		return
		;;
	docker)
		docker_start rabbitmq
		say "RabbitMQ    docker compose, port $(cat "$run/docker.amqp")"
		put TW_AMQP_URL "amqp://admin:admin123@127.0.0.1:$(cat "$run/docker.amqp")/"
		put TW_RABBITMQ_MANAGEMENT_URL "http://admin:admin123@127.0.0.1:$(cat "$run/docker.management")"
		return
		;;
	install) install_packages rabbitmq-server ;;
	esac
	mq_start
	put TW_AMQP_URL "amqp://ticketwave:$(secret rabbitmq)@127.0.0.1:$(mq_port amqp)/"
	put TW_RABBITMQ_MANAGEMENT_URL "http://ticketwave:$(secret rabbitmq)@127.0.0.1:$(mq_port management)"
}

put() { printf "%s='%s'\n" "$1" "$2" >>"$run/env.new"; }

# --- verbs -----------------------------------------------------------------------------------------------

up() {
	mkdir -p "$run"
	exec 9>"$run/lock"
	flock -w 300 9 || die "another make up holds .run/lock"
	(umask 077 && : >"$run/env.new")
	up_postgres 9>&-
	up_rabbitmq 9>&-
	put TW_SERVICE_PASSWORD "${TW_SERVICE_PASSWORD:-$(secret service)}"
	mv "$run/env.new" "$run/env"
	say "URLs        .run/env"
}

down() {
	if mq_running; then say "stopping RabbitMQ"; fi
	mq_stop
	if pg_running; then say "stopping PostgreSQL"; fi
	stop_process "$(pg_pid)" "$pg/data" INT
	if [ -s "$run/docker.project" ] && has_docker; then
		say "stopping containers"
		compose down >"$run/docker.log" 2>&1 || die "docker compose down failed, see .run/docker.log"
	fi
	rm -f "$run/env"
}

clean() {
	down
	if [ -s "$run/docker.project" ] && has_docker; then compose down -v >/dev/null 2>&1 || true; fi
	rm -rf "$run"
	say "removed .run"
}

status() {
	pg_running && say "PostgreSQL  private, port $(cat "$pg/port")" || say "PostgreSQL  no private instance"
	mq_running && say "RabbitMQ    private, port $(mq_port amqp)" || say "RabbitMQ    no private instance"
}

programs() {
	mkdir -p "$run"
	if [ -z "$(pg_bin || true)" ] || [ -z "$(mq_sbin || true)" ]; then
		can_install || die "no server programs on this machine: install them (Debian, Ubuntu: apt-get install postgresql rabbitmq-server)"
		install_packages postgresql rabbitmq-server >&2
	fi
	say "postgres=$(pg_bin)"
	say "rabbitmq=$(mq_sbin)"
	say "epmd=$(epmd_program)"
}

install() {
	can_install || die "missing: $*. Install them (Debian, Ubuntu: apt-get install $*)"
	mkdir -p "$run"
	install_packages "$@"
}

case ${1:-} in
install)
	shift
	install "$@"
	;;
up | down | clean | status | programs) "$1" ;;
*)
	usage
	exit 2
	;;
esac
