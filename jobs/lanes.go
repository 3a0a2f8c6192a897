package jobs

import "github.com/seed-3f7a0631/tes/db"

// The five lanes, which are River queues.
const (
	LaneAutomated   = "task-execution-automated"
	LaneIntegration = "task-execution-integration"
	LaneManual      = "task-execution-manual"
	LaneRetry       = "task-execution-retry"
	LaneDeadLetter  = "task-execution-deadletter"
)

// Lanes lists them in the interface document's order.
var Lanes = []string{LaneAutomated, LaneIntegration, LaneManual, LaneRetry, LaneDeadLetter}

// The kinds of jobs. What executors in process run goes by the task's type; what
// only a remote worker may take is a kind of its own, so that neither walks past
// the other's jobs.
const (
	KindAutomated   = "task.automated"
	KindIntegration = "task.integration"
	KindManual      = "task.manual"
	KindWorker      = "task.worker"
	KindDeadLetter  = "task.deadletter"
)

// Kinds lists every kind.
var Kinds = []string{KindAutomated, KindIntegration, KindManual, KindWorker, KindDeadLetter}

// laneOf is the lane of a task that is new, released or redriven.
func laneOf(t Type) string {
	switch t {
	case Integration:
		return LaneIntegration
	case Manual:
		return LaneManual
	default:
		return LaneAutomated
	}
}

// kindOf is the kind of a task's jobs.
func kindOf(t Type, executor string) string {
	switch {
	case executor == ExecutorWorker:
		return KindWorker
	case t == Integration:
		return KindIntegration
	case t == Manual:
		return KindManual
	default:
		return KindAutomated
	}
}

// executorOf is the executor of every job of a kind, where there is but one.
var executorOf = map[string]string{KindIntegration: executors[Integration][0], KindManual: executors[Manual][0]}

// ExecutorWorker leaves a task to remote workers.
const ExecutorWorker = "worker"

// lanesOf is what a process works: each lane with the kinds it takes there. The
// retry lane has places of its own, so a retry never waits behind a full
// standard lane.
var lanesOf = []struct {
	lane  db.TaskLane
	kinds []string
}{
	{LaneRetry, []string{KindAutomated, KindIntegration, KindManual}},
	{LaneAutomated, []string{KindAutomated}},
	{LaneIntegration, []string{KindIntegration}},
	{LaneManual, []string{KindManual}},
}
