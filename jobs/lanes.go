package jobs

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/seed-3f7a0631/tes/db"
)

// The five queues of tasks. They are River queues; JSON and SQL call them lanes.
const (
	LaneAutomated   = "task-execution-automated"
	LaneIntegration = "task-execution-integration"
	LaneManual      = "task-execution-manual"
	LaneRetry       = "task-execution-retry"
	LaneDeadLetter  = "task-execution-deadletter"
)

// Lanes lists the queues in the interface document's order.
var Lanes = []string{LaneAutomated, LaneIntegration, LaneManual, LaneRetry, LaneDeadLetter}

// The kinds of jobs. A job for an executor in process has the kind of the task's type. Jobs for remote
// workers have a kind of their own, so that claims for executors do not walk past jobs for workers.
const (
	KindAutomated   = "task.automated"
	KindIntegration = "task.integration"
	KindManual      = "task.manual"
	KindWorker      = "task.worker"
	KindDeadLetter  = "task.deadletter"
)

// kindSome stands, in wakeKinds and lanesOf, for every kind that only some processes claim: see
// waitingKind. No job has kind kindSome.
const kindSome = "task.some"

// Kinds lists every kind.
var Kinds = []string{KindAutomated, KindIntegration, KindManual, KindWorker, KindDeadLetter}

// laneOf is the queue of a task that is new, released or redriven.
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

// executorGo is the executor of Go code that is compiled into a process.
const executorGo = "go"

// longestKind bounds a kind: River takes 127 characters.
const longestKind = 127

// waitingKind is the kind of a job that waits for a process. Every process that runs automated tasks
// claims KindAutomated. A job for a Go handler waits under "task.go:" and the name of the handler, for
// the processes that registered the handler. A running job has the kind of kindOf again, because
// River's leader discards running jobs of unknown kinds.
func waitingKind(t Type, executor, handler string) string {
	kind := kindOf(t, executor)
	if kind == KindAutomated && executor == executorGo {
		return someKind(executor, handler)
	}
	return kind
}

// someKind is the kind of the jobs that wait for a process with an executor and, for Go code, a
// handler. A long kind is its beginning and a hash.
func someKind(executor, handler string) string {
	kind := "task." + executor
	if executor == executorGo {
		kind += ":" + handler
	}
	if len(kind) <= longestKind {
		return kind
	}

	// 33 bytes for the tilde and 16 bytes of hash in hex. The cut may split a character.
	sum := sha256.Sum256([]byte(kind))
	return strings.ToValidUTF8(kind[:longestKind-33], "") + "~" + hex.EncodeToString(sum[:16])
}

// HandlerOf is the Go handler that a job of this kind waits for; empty for kinds without a handler.
// Long handlers are cut: see someKind.
func HandlerOf(kind string) string {
	_, handler, _ := strings.Cut(kind, "task.go:")
	return handler
}

// executorOf is the executor of each kind whose jobs have a common executor.
var executorOf = map[string]string{KindIntegration: executors[Integration][0], KindManual: executors[Manual][0]}

// ExecutorWorker leaves a task to remote workers.
const ExecutorWorker = "worker"

// lanesOf lists the queues of a process, each with the kinds to claim. The retry queue has slots of
// its own, so that a retry never waits behind a full standard queue.
var lanesOf = []struct {
	lane  db.TaskLane
	kinds []string
}{
	{LaneRetry, []string{KindAutomated, kindSome, KindIntegration, KindManual}},
	{LaneAutomated, []string{KindAutomated, kindSome}},
	{LaneIntegration, []string{KindIntegration}},
	{LaneManual, []string{KindManual}},
}
