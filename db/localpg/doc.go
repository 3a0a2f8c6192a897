// Package localpg runs a private PostgreSQL: the package finds or downloads the
// binaries, makes a cluster with initdb, starts postgres as a child process, and stops
// the child with the program. `tes dev` and `go test` need nothing installed by hand.
//
// # The start
//
//	Start ─ account ─ place (lock) ─ binaries ─ initdb ─ postgres ─ ready
//	                    │               │          │         │
//	                    │               │          │         └ child in its own process group
//	                    │               │          └ in a side directory, renamed when complete
//	                    │               └ TES_PG_BIN, installed, cache, download
//	                    └ an flock: the only authority on "in use"
//
// # The two kinds of cluster
//
// A durable cluster is in a base directory:
//
//	<base>/lock          held from Start to Stop. The lock protects all of <base>, also
//	                     files of other packages (the store of the embedded JetStream)
//	<base>/pg            the data directory
//	<base>/password      of role tes, for TCP; the socket needs no password
//	<base>/postgres.log  of the current run only
//	<base>/cache         downloaded binaries
//
// A throw-away cluster is in $TMPDIR/tespg-<uid>/c-…, with its lock c-….lock beside the
// directory. postgres listens on a socket only, and Stop removes the directory.
//
// # Who owns a directory
//
// The holder of the lock, and nobody else. The lock is an flock: the kernel releases an
// flock when its holder dies, so a free lock proves that no process of tes uses the
// directory. A pid in a file proves nothing, because pids are reused. A postgres may
// still be running behind a free lock; the next holder stops that postgres by its
// postmaster.pid.
//
// # States of a private PostgreSQL
//
//	             Start                          ready
//	no process ────────► starting (lock held) ────────► serving
//	    ▲                    │                             │
//	    │          failed:   │                             │ Stop: SIGINT (durable, clean) or
//	    │          abort()   │                             │       SIGQUIT (throw-away); SIGQUIT and
//	    │                    ▼                             │       SIGKILL if postgres does not end
//	    └─────────────── no postgres, lock released ◄──────┤
//	                                                       │ postgres ends by itself
//	                                                       ▼
//	                                           Done is closed, Err has the log,
//	                                           lock held until Stop
//
// # When a part dies
//
//   - The program is killed. On Linux the kernel sends postgres the parent-death signal:
//     SIGINT for a durable cluster (clean shutdown), SIGQUIT for a throw-away cluster.
//     Elsewhere the guard does: a shell that waits at the end of a pipe, sends the signal
//     when the pipe closes, and, for a throw-away cluster on any system, removes the
//     directories.
//   - The program and the guard are killed. postgres may go on without a parent. The next
//     Start on the same base directory stops that postgres (clearStalePID). The next start
//     of any throw-away cluster stops and removes abandoned throw-away clusters (sweep).
//   - postgres dies. The Cluster does not restart postgres: Done is closed and Err returns
//     the end of the log. The next Start recovers from the write-ahead log.
//   - initdb is killed. Its directory has another name than the data directory, so a half
//     made cluster is never used; the next Start removes the directory.
//   - A download is killed. The unpacked directory is renamed into the cache only when
//     complete; the next download removes the rest.
//   - The machine loses power. A durable cluster recovers as any PostgreSQL does. A
//     throw-away cluster is abandoned, and removed by the next sweep.
//
// Start never deletes the data of a durable cluster. It removes only unfinished initdb and
// download directories. If a directory cannot be used, the error says why and what to do. Messages name environment variables for the person who
// sets them; this package itself reads only TMPDIR, HOME and XDG_DATA_HOME.
package localpg
