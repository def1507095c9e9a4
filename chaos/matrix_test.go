package chaos_test

// matrix is FAULTS.md.
var matrix = []row{
	{number: 1, fault: "writer dies before commit", inject: "SIGKILL at a failpoint", quick: true, run: writerDiesBeforeCommit},
	{number: 2, fault: "writer dies after commit, no reply", inject: "SIGKILL at a failpoint; the reply dropped in a proxy", run: writerDiesAfterCommit},
	{number: 3, fault: "relay dies before publish", inject: "SIGKILL at a failpoint", run: relayDiesBeforePublish},
	{number: 4, fault: "relay dies after confirm", inject: "SIGKILL at a failpoint, before its cursor moves", quick: true, run: relayDiesAfterConfirm},
	{number: 5, fault: "relay dies mid-window", inject: "SIGKILL at random", run: relayDiesMidWindow},
	{number: 6, fault: "relay paused longer than its lease", inject: "SIGSTOP, SIGCONT", run: relayPaused},
	{number: 7, fault: "two relays, then five; clean stops", inject: "start them, SIGTERM", run: manyRelays},
	{number: 8, fault: "consumer dies before its commit", inject: "SIGKILL at a failpoint", quick: true, run: consumerDiesBeforeCommit},
	{number: 9, fault: "consumer dies after commit, before ack", inject: "SIGKILL at a failpoint", quick: true, run: consumerDiesAfterCommit},
	{number: 10, fault: "PostgreSQL backend killed", inject: "pg_terminate_backend", run: backendsKilled},
	{number: 11, fault: "PostgreSQL crash", inject: "kill -9 of the postmaster", quick: true, run: postgresCrash},
	{number: 12, fault: "PostgreSQL immediate restart", inject: "SIGQUIT to the postmaster", run: postgresImmediate},
	{number: 20, fault: "broker crash", inject: "kill -9 of the Erlang VM", quick: true, run: brokerCrash},
	{number: 21, fault: "broker application stop", inject: "rabbitmqctl stop_app, start_app", run: brokerAppStop},
	{number: 22, fault: "all connections closed, again and again", inject: "close_all_connections", run: connectionsClosed},
	{number: 23, fault: "memory alarm", inject: "set_vm_memory_high_watermark", run: memoryAlarm},
	{number: 24, fault: "disk alarm", inject: "set_disk_free_limit", run: diskAlarm},
}
