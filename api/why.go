package api

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// Blocker is what keeps a task from being run.
type Blocker string

// What a task may wait for.
const (
	blockedPaused      Blocker = "PAUSED"
	blockedMaintenance Blocker = "MAINTENANCE"
	blockedNoWorker    Blocker = "NO_WORKER"
	blockedNoHandler   Blocker = "NO_HANDLER"
	blockedRetry       Blocker = "WAITING_RETRY"
	blockedAhead       Blocker = "AHEAD_IN_QUEUE"
	blockedBreaker     Blocker = "BREAKER_OPEN"
	blockedAssignee    Blocker = "ASSIGNEE"
	blockedResponse    Blocker = "RESPONSE"
)

// Schema is how huma asks.
func (Blocker) Schema(huma.Registry) *huma.Schema {
	return orNull("", blockedPaused, blockedMaintenance, blockedNoWorker, blockedNoHandler, blockedRetry, blockedAhead, blockedBreaker, blockedAssignee, blockedResponse)
}

// Why says why a task is not running.
type Why struct {
	TaskID    uuid.UUID   `json:"taskId" format:"uuid"`
	State     jobs.Status `json:"state"`
	BlockedBy *Blocker    `json:"blockedBy" doc:"What it waits for; null when nothing holds it up: it runs, it is next, or it has ended."`
	Position  *int32      `json:"position" doc:"How many jobs of its queue and kind are taken before it, counted up to 10000; null where it stands in no queue."`
	Since     *time.Time  `json:"since" doc:"Since when it is so."`
	Detail    string      `json:"detail" doc:"The same for a person."`

	Progress json.RawMessage `json:"progress,omitempty" doc:"How far the attempt that runs has come, as the last heartbeat said."`
}

type (
	whyTaskInput  struct{ TaskPath }
	whyTaskOutput struct{ Body *Why }
)

var whyTaskDoc = doc{
	id: "whyTask", tag: tagTasks, summary: "Ask why a task is not running",
	description: "Answers what a task waits for, from the same conditions by which jobs are taken, as they are at one moment: " +
		"a queue, a definition or a task that is paused (with who paused it, when and why), a lane in maintenance, nobody there to do it (NO_WORKER: no remote worker asks for its definition, or no process lives; NO_HANDLER: no process has its executor or Go handler), its next attempt not due, others before it, a person, another system's answer.",
	errors: []int{404},
	answer: map[string]any{
		"taskId": "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", "state": "PENDING", "blockedBy": "AHEAD_IN_QUEUE", "position": 12,
		"since": "2026-11-02T09:30:00.000001Z", "detail": "12 jobs of task-execution-automated are taken before it",
	},
}

// mostAhead bounds the count of what is ahead: beyond it, how many is no news.
const mostAhead = 10_000

func (h *taskHandlers) whyTask(ctx context.Context, in *whyTaskInput) (*whyTaskOutput, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	about(ctx, id)
	row, err := fetch(ctx, h.core, (*db.Queries).TaskWhy, db.TaskWhyParams{
		TaskID: id, TenantID: callerOf(ctx).Tenant, SilenceSeconds: jobs.Silence.Seconds(), Most: mostAhead,
	})
	if err != nil {
		return nil, readFailed("why task "+in.TaskID+" is not running", err)
	}
	w := &Why{TaskID: id, State: jobs.Status(row.Status), Progress: row.Progress}
	w.explain(&row, h.breakers())
	w.Detail = sanitize(w.Detail, 600)
	return &whyTaskOutput{Body: w}, nil
}

// explain asks in the order in which a task gets on.
func (w *Why) explain(row *db.TaskWhyRow, breakers []retry.Status) {
	switch {
	case w.State.Terminal():
		w.Since, w.Detail = utc(row.EndedAt), fmt.Sprintf("it is %s since %s", w.State, clock(row.EndedAt))
		if w.State != jobs.Completed && row.ErrorCode != "" {
			w.Detail += ", with " + row.ErrorCode
		}
		if row.DiscardedAt != nil {
			w.Detail += fmt.Sprintf("; %s laid its dead letter aside at %s: %s", row.DiscardedBy, clock(row.DiscardedAt), row.DiscardReason)
		}
	case w.State == jobs.Running:
		w.running(row)
	case w.State == jobs.Assigned:
		w.by(blockedAssignee, row.AssignedAt, "it waits for "+who(row)+" since "+clock(row.AssignedAt))
		if row.DueAt != nil {
			w.Detail += ", due " + clock(row.DueAt)
		}
	default:
		w.pending(row, breakers)
	}
}

func (w *Why) running(row *db.TaskWhyRow) {
	w.Since = utc(row.StartedAt)
	switch {
	case row.LeaseKind == nil:
		w.Detail = fmt.Sprintf("attempt %d runs since %s", row.Attempt, clock(row.StartedAt))
	case !row.ExpiresAt.After(row.ReadAt):
		w.Detail = fmt.Sprintf("attempt %d began at %s, and the lease of %s ran out at %s: it is about to be ended", row.Attempt, clock(row.StartedAt), *row.Owner, clock(row.ExpiresAt))
	case *row.LeaseKind == db.LeaseKindResponse:
		w.by(blockedResponse, row.StartedAt, fmt.Sprintf("another system has the work of attempt %d since %s; its answer is waited for until %s", row.Attempt, clock(row.StartedAt), clock(row.ExpiresAt)))
	default:
		w.Detail = fmt.Sprintf("%s runs attempt %d since %s; the lease lasts until %s", *row.Owner, row.Attempt, clock(row.StartedAt), clock(row.ExpiresAt))
	}
}

// pending goes by the job, which is what is taken.
func (w *Why) pending(row *db.TaskWhyRow, breakers []retry.Status) {
	if row.JobState == nil {
		w.Detail = fmt.Sprintf("its job %d is not in the queue any more, so nobody can take it", row.JobID)
		return
	}
	switch *row.JobState {
	case db.RiverJobStateCancelled, db.RiverJobStateCompleted, db.RiverJobStateDiscarded:
		w.Detail = fmt.Sprintf("its job %d is %s, so nobody can take it", row.JobID, *row.JobState)
		return
	case db.RiverJobStateRunning:
		taker := "a process"
		if n := len(row.AttemptedBy); n > 0 {
			taker = row.AttemptedBy[n-1]
		}
		w.Since, w.Detail = utc(row.AttemptedAt), fmt.Sprintf("%s took it at %s and begins", taker, clock(row.AttemptedAt))
		return
	case db.RiverJobStatePending:
		w.heldBack(row)
		return
	case db.RiverJobStateAvailable:
	default: // scheduled: it is made available soon after it is due
		w.waits(row, breakers)
		return
	}
	if row.ScheduledAt.After(row.ReadAt) {
		w.waits(row, breakers)
		return
	}
	w.Position = &row.Ahead
	switch {
	case row.MaintenanceSince != nil:
		detail := fmt.Sprintf("%s is in maintenance since %s", *row.Queue, clock(row.MaintenanceSince))
		if row.MaintenanceUntil != nil {
			detail += ", until " + clock(row.MaintenanceUntil)
		}
		if row.MaintenanceReason != "" {
			detail += ": " + row.MaintenanceReason
		}
		w.by(blockedMaintenance, later(row.MaintenanceSince, row.ScheduledAt), detail)
	case row.PausedAt != nil:
		w.by(blockedPaused, later(row.PausedAt, row.ScheduledAt), pausedText(*row.Queue, row.PausedAt, row.QueuePausedBy, row.QueuePauseReason))
	case row.HeldScope != "": // whoever claims it holds it back
		w.heldBack(row)
	case *row.Kind == jobs.KindWorker && !row.WorkerThere:
		w.noWorker(row)
	case *row.Kind != jobs.KindWorker && !row.Attended:
		w.by(blockedNoWorker, row.ScheduledAt, fmt.Sprintf("no process that takes jobs was seen within %s; it waits since %s", jobs.Silence, clock(row.ScheduledAt)))
	case *row.Kind != jobs.KindWorker && !row.Claimable:
		w.by(blockedNoHandler, row.ScheduledAt, fmt.Sprintf("no process that was seen within %s has %s; it waits since %s", jobs.Silence, needs(row), clock(row.ScheduledAt)))
	case w.broken(row, breakers):
	case row.Ahead == 0:
		w.Since, w.Detail = utc(row.ScheduledAt), "next in line in "+*row.Queue
		if *row.Kind == jobs.KindWorker {
			w.Detail += ", for a remote worker that asks for its definition, as one does"
		}
	default:
		count := fmt.Sprintf("%d jobs of %s are", row.Ahead, *row.Queue)
		switch row.Ahead {
		case 1:
			count = fmt.Sprintf("1 job of %s is", *row.Queue)
		case mostAhead:
			count = "at least " + count
		}
		w.by(blockedAhead, row.ScheduledAt, count+" taken before it")
	}
}

// heldBack is a job that is not taken, or is not started by who takes it, because its
// definition or its task is paused.
func (w *Why) heldBack(row *db.TaskWhyRow) {
	if row.HeldScope == "" {
		w.Since, w.Detail = utc(row.ScheduledAt), "the pause that held it back was resumed: it is about to be put back into "+*row.Queue
		return
	}
	w.by(blockedPaused, later(&row.HeldAt, row.ScheduledAt), pausedText(row.HeldScope+" "+row.HeldName, &row.HeldAt, row.HeldBy, row.HeldReason))
}

// pausedText says what is paused, since when, by whom and why, as far as it is known.
func pausedText(what string, since *time.Time, by, reason string) string {
	text := what + " is paused since " + clock(since)
	if by != "" {
		text += " by " + by
	}
	if reason != "" {
		text += ": " + reason
	}
	return text
}

// noWorker is a task that is left to remote workers, and none asks for its like.
func (w *Why) noWorker(row *db.TaskWhyRow) {
	if row.WorkerSeenAt.Unix() == 0 {
		w.by(blockedNoWorker, row.ScheduledAt, fmt.Sprintf("no remote worker has asked for %s within an hour; it waits since %s", row.DefinitionID, clock(row.ScheduledAt)))
		return
	}
	w.by(blockedNoWorker, later(&row.WorkerSeenAt, row.ScheduledAt), fmt.Sprintf("no remote worker asks for %s: the last did at %s", row.DefinitionID, clock(&row.WorkerSeenAt)))
}

// needs names what runs a task.
func needs(row *db.TaskWhyRow) string {
	if handler := jobs.HandlerOf(*row.Kind); handler != "" {
		return "the Go handler " + strconv.Quote(handler)
	}
	return "the executor " + row.Executor
}

// integrationBreaker is the breaker of what every integration task needs.
const integrationBreaker = "integration"

// broken says whether the job is left in its lane because the service that it needs is
// away, as this process sees it.
func (w *Why) broken(row *db.TaskWhyRow, breakers []retry.Status) bool {
	if *row.Kind != jobs.KindIntegration {
		return false
	}
	for _, b := range breakers {
		if b.Name != integrationBreaker || b.State == retry.Closed {
			continue
		}
		detail := "the integration service does not answer: its breaker is open since " + clock(&b.Since)
		if b.State == retry.HalfOpen {
			detail = "the integration service did not answer: one request at a time is tried since " + clock(&b.Since)
		}
		w.by(blockedBreaker, &b.Since, detail)
		return true
	}
	return false
}

// waits is a job whose time has not come. What made the job also said when. One that an
// outage gave back to its lane waits for the breaker first.
func (w *Why) waits(row *db.TaskWhyRow, breakers []retry.Status) {
	if *row.Queue == jobs.LaneIntegration && w.broken(row, breakers) {
		return
	}
	w.by(blockedRetry, row.QueuedAt, fmt.Sprintf("attempt %d is due at %s", row.Attempt+1, clock(row.ScheduledAt)))
	if row.HeldScope != "" {
		w.Detail += "; " + pausedText(row.HeldScope+" "+row.HeldName, &row.HeldAt, row.HeldBy, row.HeldReason)
	}
}

func (w *Why) by(what Blocker, since *time.Time, detail string) {
	w.BlockedBy, w.Since, w.Detail = &what, utc(since), detail
}

func later(a, b *time.Time) *time.Time {
	if b.After(*a) {
		return b
	}
	return a
}

// who is whom a task is assigned to.
func who(row *db.TaskWhyRow) string {
	switch {
	case row.AssigneeID != nil:
		return *row.AssigneeID
	case row.GroupID != nil:
		return "somebody of the group " + *row.GroupID
	}
	return "one of its candidates"
}

// clock is a time as the rest of the answer writes it.
func clock(t *time.Time) string {
	if t == nil {
		return "an unknown time"
	}
	return t.UTC().Format(time.RFC3339Nano)
}
