package jobs

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/seed-3f7a0631/tes/db"
)

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

// kindSome stands, among the places where work can be waiting, for every kind that only
// some processes run: see waitingKind. No job has it.
const kindSome = "task.some"

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

// executorGo is the executor of the Go code that a process brings along.
const executorGo = "go"

// longestKind bounds a kind: River takes 127 characters.
const longestKind = 127

// waitingKind is the kind of a job that waits for a process. Every process that takes
// automated tasks takes KindAutomated. What only some can run waits under a kind that says
// so: "task.go:" and the Go handler, for the processes that registered it. A job that runs
// has the kind of kindOf again: River's leader discards running jobs of kinds that it does
// not know.
func waitingKind(t Type, executor, handler string) string {
	kind := kindOf(t, executor)
	if kind == KindAutomated && executor == executorGo {
		return someKind(executor, handler)
	}
	return kind
}

// kind is that of a new task's first job.
func (c *creation) kind() string {
	return waitingKind(c.req.TaskType, c.executor, c.settings.config.Handler)
}

// someKind is the kind under which a job waits for a process that has its executor, and,
// for Go code, its handler. A long handler is told by the start of its name and a hash.
func someKind(executor, handler string) string {
	kind := "task." + executor
	if executor == executorGo {
		kind += ":" + handler
	}
	if len(kind) <= longestKind {
		return kind
	}

	sum := sha256.Sum256([]byte(kind))
	return strings.ToValidUTF8(kind[:longestKind-33], "") + "~" + hex.EncodeToString(sum[:16])
}

// HandlerOf is the Go handler that a job of this kind waits for; empty for other kinds.
func HandlerOf(kind string) string {
	_, handler, _ := strings.Cut(kind, "task.go:")
	return handler
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
	{LaneRetry, []string{KindAutomated, kindSome, KindIntegration, KindManual}},
	{LaneAutomated, []string{KindAutomated, kindSome}},
	{LaneIntegration, []string{KindIntegration}},
	{LaneManual, []string{KindManual}},
}
