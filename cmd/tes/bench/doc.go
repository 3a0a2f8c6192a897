// Package bench measures tes against a bare River client on the same PostgreSQL in the same run.
//
// # Overview
//
// Rates depend on the machine; ratios to River hardly do. A suite has sections, and a section has
// rounds: each round measures tes and River one after the other, and the median of the rounds
// counts.
//
//	drain, drainPublished  empty a queue of no-op tasks; until the events are published
//	http                   create tasks through the whole service
//	latency                single tasks through an idle service
//	events                 the relay alone
//	backlog                claim rates by queue depth, and with ageing priorities
//	wal                    WAL bytes per task
//
// The package knows neither flags nor environment: package main parses Options and hands in an
// Env with the functions that start PostgreSQL and the service.
//
// # A timed part
//
//	fresh ──▶ fill ──▶ quiesce ──▶ settle ──▶ clock ═══════▶ clock ──▶ verify ──▶ drop
//	copy of   rows     VACUUM,     Go heap    from           to        count
//	a template         CHECKPOINT                                      rows
//
// The database is authoritative for the amount of work: verify counts rows, and a figure whose row
// count is wrong is an error, never a result. The clocks are those of this process; processor times
// come from /proc.
//
// # Where a line belongs
//
//   - bench.go: the flags, the sizes, the order of the sections
//   - server.go: PostgreSQL, template databases, buses
//   - engine.go, river.go: the two sides of a comparison, each on a database of its own
//   - drain.go, http.go, latency.go, events.go, backlog.go: the sections
//   - cpu.go: processor time, and the load of other programs
//   - result.go: the JSON, the table, the limits
//
// # Failure Handling
//
//   - Other programs use the machine: the table warns, with the number of their cores
//     (foreignMost). The figures are printed all the same.
//   - A limit is missed: the line is marked, and the exit code stays 0, because a busy machine misses
//     limits too.
//   - A wrong row count, or no progress for three minutes (patience): the suite ends with an error.
//   - Ctrl-C: the databases on the operator's server are dropped, and a private server is stopped.
//   - The process is killed: a private server is removed by the next start of one. On the operator's
//     server the databases tes_bench_… stay and must be dropped by hand.
package bench
