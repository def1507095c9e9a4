package chaos_test

import (
	"net/http"
	"net/url"
	"syscall"
	"time"
)

func backendsKilled(r *run) {
	r.begin()
	for range 8 {
		r.pause(200*time.Millisecond, 700*time.Millisecond)
		eventually(r.T, 30*time.Second, func() bool { // those of the last time have come back
			var n int
			r.w.admin(r.T, "booking", `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename LIKE $1`, []any{r.w.prefix + "%"}, &n)
			return n > 0
		}, "no backend is there to be killed")
	}
	r.healed("PostgreSQL")
}

func postgresCrash(r *run) {
	r.begin()
	r.w.pg.crash()
	r.pause(300*time.Millisecond, 1500*time.Millisecond)
	r.postgresBack()
}

func postgresImmediate(r *run) {
	r.begin()
	for range 2 {
		r.pause(200*time.Millisecond, 800*time.Millisecond)
		if err := r.w.pg.stop(syscall.SIGQUIT); err != nil {
			r.Fatal(err)
		}
		r.postgresBack()
	}
}

// postgresBack starts the server again.
func (r *run) postgresBack() {
	r.Helper()
	ctx, cancel := r.context(time.Minute)
	defer cancel()
	if err := r.w.pg.restart(ctx); err != nil {
		r.Fatal(err)
	}
	r.healed("PostgreSQL")
}

func brokerCrash(r *run) {
	r.begin()
	if err := r.w.mq.crash(); err != nil {
		r.Fatal(err)
	}
	r.load.await(r.T, 20) // bookings are taken while the broker is away
	ctx, cancel := r.context(2 * time.Minute)
	defer cancel()
	if err := r.w.mq.start(ctx); err != nil {
		r.Fatal(err)
	}
	r.healed("broker")
}

// ctl runs rabbitmqctl.
func (r *run) ctl(args ...string) {
	r.Helper()
	ctx, cancel := r.context(time.Minute)
	defer cancel()
	if err := r.w.mq.ctl(ctx, args...); err != nil {
		r.Fatal(err)
	}
}

func brokerAppStop(r *run) {
	r.begin()
	r.ctl("stop_app")
	r.load.await(r.T, 20)
	r.ctl("start_app")
	r.healed("broker")
}

func connectionsClosed(r *run) {
	r.begin()
	for range 12 {
		r.pause(100*time.Millisecond, 900*time.Millisecond)
		r.closeConnections()
	}
	r.healed("broker")
}

// closeConnections is what rabbitmqctl close_all_connections does, without its start-up.
func (r *run) closeConnections() {
	r.Helper()
	ctx, cancel := r.context(30 * time.Second)
	defer cancel()
	var list []struct{ Name string }
	if err := r.w.mq.manage(ctx, http.MethodGet, "/api/vhosts/"+r.w.vhost+"/connections", nil, &list); err != nil {
		r.Fatal(err)
	}
	for _, c := range list {
		_ = r.w.mq.manage(ctx, http.MethodDelete, "/api/connections/"+url.PathEscape(c.Name), nil, nil) // it may be gone by now
	}
}

func memoryAlarm(r *run) {
	alarm(r, []string{"set_vm_memory_high_watermark", "0.00001"}, []string{"set_vm_memory_high_watermark", "0.4"})
}

func diskAlarm(r *run) {
	alarm(r, []string{"set_disk_free_limit", "100000GB"}, []string{"set_disk_free_limit", "50MB"})
}

// alarm blocks publishers, sees that nothing hangs, stops programs meanwhile, and lifts it.
func alarm(r *run, set, lift []string) {
	r.Helper()
	r.begin()
	r.ctl(set...)
	lifted := false
	defer func() {
		if !lifted {
			r.ctl(lift...)
		}
	}()
	relay := r.w.procs["relay"]
	eventually(r.T, 30*time.Second, func() bool {
		connected, ok := relay.metric("outbox_relay_broker_connected", "")
		return ok && connected == 0
	}, "the relay does not notice the alarm")
	r.load.await(r.T, 20) // bookings are taken
	for _, name := range []string{"relay", "catalog"} {
		began := time.Now()
		r.w.stop(r.T, name)
		r.note("%s stopped in %s", name, time.Since(began).Round(100*time.Millisecond))
		r.w.launch(r.T, name)
	}
	r.load.await(r.T, 10)
	r.ctl(lift...)
	lifted = true
	r.w.awaitReady(r.T, "catalog")
	r.w.awaitReady(r.T, "relay")
	r.healed("broker")
}
