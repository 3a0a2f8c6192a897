// Package jobs is the life of a task: every transition, the claiming and running of waiting
// jobs, the leases, and the use of River's tables.
//
//	          create
//	            │
//	            ▼     claim          result
//	┌────────▶ PENDING ─────▶ RUNNING ─────▶ COMPLETED
//	│ retry,    │  │            │ │ │
//	│ release   │  │ assign     │ │ └──────▶ FAILED, TIMED_OUT ──▶ dead letter
//	└───────────│──│────────────┘ │              │ redrive
//	            │  ▼              │              ▼
//	            │ ASSIGNED ◀──────┘           PENDING
//	            ▼
//	        CANCELLED (from any state but an end)
//
// # What is authoritative
//
// The row in table task is authoritative. A row in river_job, a job, only delivers an attempt:
// each attempt has its own job, inserted by the commit that calls for the attempt. A lease names
// the owner of a running attempt and the time at which the lease expires. Every write has an
// expectation (job, attempt, version, status), and is rejected if the task does not match. So
// the write of a superseded attempt changes nothing.
//
// A transition is one commit of the row, its event and its job. Many transitions share a
// commit (package batch, batchWriter).
//
// # Writers
//
//	create.go        Tasks.Create            a task, its first job, its created event
//	claim.go         claimer                 takes jobs of a queue (LaneClaim), run by run
//	run.go           run                     one attempt in this process: start, end, release
//	complete.go      completionItems         the success of an attempt in process (TaskComplete)
//	transition.go    transitionItems         the remaining transitions (TaskMove)
//	retry.go         failTransition          the next attempt, or the end and a dead letter
//	lease.go         Leases                  remote workers: acquire
//	heartbeat.go     Leases                  remote workers: extend leases
//	worker.go        Leases                  remote workers: complete, fail, release
//	person.go        Worklist                people: claim, complete, unclaim
//	deadletter.go    DeadLetterOps           dead letters: discard, redrive, undo
//	signal.go        Runner.applySignals     changes of jobs by operators in River UI or psql
//	reap.go          Runner                  heartbeats, expired leases, orphaned claims
//
// # When something fails
//
//	a process is killed      its leases run out after the visibility timeout, and the reaper of
//	                         any process ends the attempts; the sweep replaces its jobs that
//	                         were claimed and not begun
//	the database is away     results wait and are written after the outage; creates and calls
//	                         get ErrUnavailable at once
//	a commit's answer is     the next flush looks for the event ids, which are used once: a
//	lost                     found event proves the commit
//	a row is locked by       the row's item waits apart, and the rest of the batch is written
//	another session
package jobs
