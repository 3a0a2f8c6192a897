// Package jobs is the life of a task: it applies every transition, claims and runs what waits
// in the queues, keeps the leases, and is the package that uses River's tables.
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
//	        CANCELLED (from any state that is not an end)
//
// # What is authoritative
//
// The row in table task is the truth. A row in river_job is a delivery token: one for each
// attempt, made in the commit in which the attempt becomes due. A lease says who runs the
// attempt and until when. Every write states what it expects of the task (expectation: job,
// attempt, version, status) and is rejected where the task has gone on: the write of a
// superseded attempt changes nothing.
//
// A transition is one commit of the row, its event and its job. Many transitions share a
// commit (package batch, batchWriter).
//
// # Who writes
//
//	create.go        Tasks.Create            a task, its first job, its created event
//	claim.go         claimer                 takes jobs of a queue (LaneClaim), run by run
//	run.go           run                     one attempt in this process: start, end, release
//	complete.go      completionItems         the success of an attempt in process (TaskComplete)
//	transition.go    transitionItems         every other transition (TaskMove)
//	retry.go         failTransition          the next attempt, or the end and a dead letter
//	lease.go         Leases                  remote workers: acquire
//	heartbeat.go     Leases                  remote workers: extend leases
//	worker.go        Leases                  remote workers: complete, fail, release
//	person.go        Worklist                people: claim, complete, unclaim
//	deadletter.go    DeadLetterOps           dead letters: discard, redrive, undo
//	signal.go        Runner.applySignals     what operators did to jobs in River UI or psql
//	reap.go          Runner                  heartbeats, expired leases, orphaned claims
//
// # When something fails
//
//	a process is killed      its leases run out after the visibility timeout, and the reaper of
//	                         any process ends the attempts; jobs that it had claimed and not
//	                         begun are replaced by the sweep
//	the database is away     results wait and are written when it is back; creates and calls are
//	                         told ErrUnavailable at once
//	a commit's answer is     the next flush looks for the event ids, which are used once, and
//	lost                     learns whether it committed
//	a row is locked by       its item waits apart, and the rest of the batch is written without
//	another session          it
package jobs
