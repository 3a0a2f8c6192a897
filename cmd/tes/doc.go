// Command tes is the Task Execution Service: the service, and commands to try, operate, check and
// measure it.
//
// # Overview
//
// main.go parses the command line. Each command has a file with the name of the command: serve.go,
// dev.go, migrate.go, check.go and so on. config.go reads the environment, and no other file does.
// Two commands are packages of their own, bench and demo: they import nothing of package main, which
// hands in the functions that start PostgreSQL and the service.
//
// service.go starts and stops a service. Four commands start one:
//
//	serve ──────────────────────────────────▶ service
//	bench ── PostgreSQL, bus, fakes ────────▶ service, several in a row
//	dev, demo ── local.go: PostgreSQL, bus, fakes ──▶ service
//
// # The start and the stop of a service
//
// A part starts after the parts that it needs, and stops before them. A failed start stops the parts
// that were started.
//
//	start │  1 listener: every request is answered with "starting"   ▲ stop
//	      │  2 database pools; the schema must be this program's     │
//	      │  3 tracing                                               │
//	      │  4 relay, and callback dispatcher                        │
//	      │  5 runner: claims and runs tasks                         │
//	      │  6 River's client: leader election, notices              │
//	      │  7 API: requests reach their handlers                    │
//	      ▼  8 inbox: consumes the bus                               │ before: /readyz answers 503
//
// The bus is opened before the service, by the command. In serve the service closes the bus, between
// the relay and tracing.
//
// # Settings that change while the service runs
//
// Certificates, keys, the service token and the callback secrets may change in their files. A
// watched value (watch.go) reads its files when the value is used, at most once a second.
// SIGHUP (reload.go) reads all files at once and logs the settings that need a restart. An invalid
// file never replaces a valid value.
//
// # Failure Handling
//
//   - The address is taken, or the schema is older: the start fails before any task is claimed.
//   - The bus is away at the start: the service starts, and events wait in the outbox.
//   - The database is away at the start: the start fails, and the supervisor of the process tries
//     again. Later: /readyz answers 503 until the database is back.
//   - A peer service is away: its breaker opens. Tasks that need the service wait in their queues.
//   - The first signal, or an order on the bus, stops the service: running tasks may finish for
//     TES_SHUTDOWN_GRACE. The second signal ends the process at once, and other processes take over
//     the tasks, as after a crash.
//   - PostgreSQL of dev ends: dev stops with an error.
package main
