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

// Blocker is the reason why a task is not running.
type Blocker string

// The blockers. Clients branch on them, so a blocker never changes.
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

// Schema implements huma.SchemaProvider.
func (Blocker) Schema(huma.Registry) *huma.Schema {
	return orNull("", blockedPaused, blockedMaintenance, blockedNoWorker, blockedNoHandler, blockedRetry, blockedAhead, blockedBreaker, blockedAssignee, blockedResponse)
}

// Why is the response of why.
type Why struct {
	TaskID    uuid.UUID   `json:"taskId" format:"uuid"`
	State     jobs.Status `json:"state"`
	BlockedBy *Blocker    `json:"blockedBy" doc:"The reason why the task is not running; null if the task is running, is the next in its queue, or has ended."`
	Position  *int32      `json:"position" doc:"The number of jobs of the same queue and kind that are claimed before the task's, counted up to 10000; null if the task is in no queue."`
	Since     *time.Time  `json:"since" doc:"The time since which this has been so."`
	Detail    string      `json:"detail" doc:"The same in words, for people."`

	Progress json.RawMessage `json:"progress,omitempty" doc:"The progress that the last heartbeat of the running attempt reported."`
}

type (
	whyTaskInput  struct{ TaskPath }
	whyTaskOutput struct{ Body *Why }
)

var whyTaskDoc = doc{
	id: "whyTask", tag: tagTasks, summary: "Ask why a task is not running",
	description: "Returns the reason why a task is not running, computed in one snapshot from the conditions by which jobs are claimed. PAUSED: the " +
		"queue, the definition or the task is paused (detail has the caller, the time and the reason). MAINTENANCE: the queue is in " +
		"maintenance. NO_WORKER: no remote worker asks for the definition, or no process is running. NO_HANDLER: no process has the " +
		"executor or the Go handler. WAITING_RETRY: the next attempt is not due. AHEAD_IN_QUEUE: other jobs are claimed first. " +
		"BREAKER_OPEN: the Integration Service does not respond. ASSIGNEE: a person has to act. RESPONSE: another system has to respond.",
	errors: []int{404},
	answer: map[string]any{
		"taskId": "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", "state": "PENDING", "blockedBy": "AHEAD_IN_QUEUE", "position": 12,
		"since": "2026-11-02T09:30:00.000001Z", "detail": "12 jobs of task-execution-automated are ahead of it",
	},
}

// mostAhead bounds the count of jobs ahead, and so the cost of the query.
const mostAhead = 10_000

func (h *taskHandlers) whyTask(ctx context.Context, in *whyTaskInput) (*whyTaskOutput, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}
	about(ctx, id)

	// One statement, so that the conditions belong to one moment.
	row, err := fetch(ctx, h.core, (*db.Queries).TaskWhy, db.TaskWhyParams{
		TaskID: id, TenantID: callerOf(ctx).Tenant, SilenceSeconds: jobs.Silence.Seconds(), Most: mostAhead,
	})
	if err != nil {
		return nil, readFailed("find out why task "+in.TaskID+" is not running", err)
	}
	w := &Why{TaskID: id, State: jobs.Status(row.Status), Progress: row.Progress}
	w.explain(&row, h.breakers())
	w.Detail = sanitize(w.Detail, 600)
	return &whyTaskOutput{Body: w}, nil
}

// explain fills the answer, by the task's status.
func (w *Why) explain(row *db.TaskWhyRow, breakers []retry.Status) {
	switch {
	case w.State.Terminal():
		w.Since, w.Detail = utc(row.EndedAt), fmt.Sprintf("%s since %s", w.State, clock(row.EndedAt))
		if w.State != jobs.Completed && row.ErrorCode != "" {
			w.Detail += ", with " + row.ErrorCode
		}
		if row.DiscardedAt != nil {
			w.Detail += fmt.Sprintf("; %s discarded the dead letter at %s: %s", row.DiscardedBy, clock(row.DiscardedAt), row.DiscardReason)
		}
	case w.State == jobs.Running:
		w.running(row)
	case w.State == jobs.Assigned:
		w.by(blockedAssignee, row.AssignedAt, "waiting for "+assignee(row)+" since "+clock(row.AssignedAt))
		if row.DueAt != nil {
			w.Detail += ", due " + clock(row.DueAt)
		}
	default:
		w.pending(row, breakers)
	}
}

// running explains a RUNNING task by its lease.
func (w *Why) running(row *db.TaskWhyRow) {
	w.Since = utc(row.StartedAt)
	switch {
	case row.LeaseKind == nil:
		// Without a lease only the start is known.
		w.Detail = fmt.Sprintf("attempt %d has run since %s", row.Attempt, clock(row.StartedAt))
	case !row.ExpiresAt.After(row.ReadAt):
		w.Detail = fmt.Sprintf("attempt %d began at %s; the lease of %s expired at %s, so the attempt is about to be ended", row.Attempt, clock(row.StartedAt), *row.Owner, clock(row.ExpiresAt))
	case *row.LeaseKind == db.LeaseKindResponse:
		w.by(blockedResponse, row.StartedAt, fmt.Sprintf("another system accepted attempt %d at %s; its response is awaited until %s", row.Attempt, clock(row.StartedAt), clock(row.ExpiresAt)))
	default:
		w.Detail = fmt.Sprintf("%s has run attempt %d since %s; the lease lasts until %s", *row.Owner, row.Attempt, clock(row.StartedAt), clock(row.ExpiresAt))
	}
}

// pending explains a PENDING task by its job, because processes claim jobs, not tasks.
func (w *Why) pending(row *db.TaskWhyRow, breakers []retry.Status) {
	// Without a job the task cannot continue by itself. Runners look for such tasks and make a new job.
	if row.JobState == nil {
		w.Detail = fmt.Sprintf("job %d is not in the queue any more, so no process can claim it", row.JobID)
		return
	}
	switch *row.JobState {
	case db.RiverJobStateCancelled, db.RiverJobStateCompleted, db.RiverJobStateDiscarded:
		w.Detail = fmt.Sprintf("job %d is %s, so no process can claim it", row.JobID, *row.JobState)
		return
	case db.RiverJobStateRunning:
		// The job is claimed, and the attempt's start is not committed yet.
		claimant := "a process"
		if n := len(row.AttemptedBy); n > 0 {
			claimant = row.AttemptedBy[n-1]
		}
		w.Since, w.Detail = utc(row.AttemptedAt), fmt.Sprintf("%s claimed the job at %s and is starting the attempt", claimant, clock(row.AttemptedAt))
		return
	case db.RiverJobStatePending:
		w.heldBack(row)
		return
	case db.RiverJobStateAvailable:
	default:
		// Scheduled or retryable: River makes the job available soon after it is due.
		w.waits(row, breakers)
		return
	}
	// Available jobs can lie in the future too: a claim skips them until then.
	if row.ScheduledAt.After(row.ReadAt) {
		w.waits(row, breakers)
		return
	}
	// From here on the job could be claimed, so that its position in the queue has a meaning.
	w.Position = &row.Ahead
	switch {
	case row.MaintenanceSince != nil:
		detail := fmt.Sprintf("%s has been in maintenance since %s", *row.Queue, clock(row.MaintenanceSince))
		if row.MaintenanceUntil != nil {
			detail += ", until " + clock(row.MaintenanceUntil)
		}
		if row.MaintenanceReason != "" {
			detail += ": " + row.MaintenanceReason
		}
		w.by(blockedMaintenance, later(row.MaintenanceSince, row.ScheduledAt), detail)
	case row.PausedAt != nil:
		w.by(blockedPaused, later(row.PausedAt, row.ScheduledAt), pausedText(*row.Queue, row.PausedAt, row.QueuePausedBy, row.QueuePauseReason))
	case row.HeldScope != "":
		// The job is still available: the process that claims it holds it back.
		w.heldBack(row)
	case *row.Kind == jobs.KindWorker && !row.WorkerThere:
		w.noWorker(row)
	case *row.Kind != jobs.KindWorker && !row.Attended:
		w.by(blockedNoWorker, row.ScheduledAt, fmt.Sprintf("no process that claims jobs was seen within %s; the task has waited since %s", jobs.Silence, clock(row.ScheduledAt)))
	case *row.Kind != jobs.KindWorker && !row.Claimable:
		w.by(blockedNoHandler, row.ScheduledAt, fmt.Sprintf("no process that was seen within %s has %s; the task has waited since %s", jobs.Silence, needs(row), clock(row.ScheduledAt)))
	case w.broken(row, breakers):
	case row.Ahead == 0:
		w.Since, w.Detail = utc(row.ScheduledAt), "next in line in "+*row.Queue
		if *row.Kind == jobs.KindWorker {
			w.Detail += ", for a remote worker, of which at least one asks for the definition"
		}
	default:
		count := fmt.Sprintf("%d jobs of %s are", row.Ahead, *row.Queue)
		switch row.Ahead {
		case 1:
			count = fmt.Sprintf("1 job of %s is", *row.Queue)
		case mostAhead:
			count = "at least " + count
		}
		w.by(blockedAhead, row.ScheduledAt, count+" ahead of it")
	}
}

// heldBack explains a job that no process claims or starts because the definition or the task is
// paused.
func (w *Why) heldBack(row *db.TaskWhyRow) {
	if row.HeldScope == "" {
		w.Since, w.Detail = utc(row.ScheduledAt), "the pause was resumed: the task is about to return to "+*row.Queue
		return
	}
	w.by(blockedPaused, later(&row.HeldAt, row.ScheduledAt), pausedText(row.HeldScope+" "+row.HeldName, &row.HeldAt, row.HeldBy, row.HeldReason))
}

// pausedText describes a pause. Pauses by SQL may lack the caller and the reason.
func pausedText(paused string, since *time.Time, by, reason string) string {
	text := paused + " has been paused since " + clock(since)
	if by != "" {
		text += " by " + by
	}
	if reason != "" {
		text += ": " + reason
	}
	return text
}

// noWorker explains a task whose definition no remote worker asks for.
func (w *Why) noWorker(row *db.TaskWhyRow) {
	// The query returns the epoch for "never". Workers are remembered for an hour.
	if row.WorkerSeenAt.Unix() == 0 {
		w.by(blockedNoWorker, row.ScheduledAt, fmt.Sprintf("no remote worker has asked for %s within an hour; the task has waited since %s", row.DefinitionID, clock(row.ScheduledAt)))
		return
	}
	w.by(blockedNoWorker, later(&row.WorkerSeenAt, row.ScheduledAt), fmt.Sprintf("no remote worker asks for %s: the last one asked at %s", row.DefinitionID, clock(&row.WorkerSeenAt)))
}

// needs names the executor or the Go handler of a task.
func needs(row *db.TaskWhyRow) string {
	if handler := jobs.HandlerOf(*row.Kind); handler != "" {
		return "the Go handler " + strconv.Quote(handler)
	}
	return "the executor " + row.Executor
}

// integrationBreaker is the name of the Integration Service's circuit breaker, which holds back every
// integration task.
const integrationBreaker = "integration"

// broken explains an integration job that waits because the Integration Service is unavailable, as
// this process sees it: other processes have breakers of their own. It returns false otherwise.
func (w *Why) broken(row *db.TaskWhyRow, breakers []retry.Status) bool {
	if *row.Kind != jobs.KindIntegration {
		return false
	}
	for _, b := range breakers {
		if b.Name != integrationBreaker || b.State == retry.Closed {
			continue
		}
		detail := "the integration service does not respond: its circuit breaker has been open since " + clock(&b.Since)
		if b.State == retry.HalfOpen {
			detail = "the integration service did not respond: its circuit breaker has let one request at a time through since " + clock(&b.Since)
		}
		w.by(blockedBreaker, &b.Since, detail)
		return true
	}
	return false
}

// waits explains a job that is not due. A job that an outage returned to the integration queue waits
// for the circuit breaker first.
func (w *Why) waits(row *db.TaskWhyRow, breakers []retry.Status) {
	if *row.Queue == jobs.LaneIntegration && w.broken(row, breakers) {
		return
	}
	// Since is the time when the job was made, together with its due time.
	w.by(blockedRetry, row.QueuedAt, fmt.Sprintf("attempt %d is due at %s", row.Attempt+1, clock(row.ScheduledAt)))
	// A pause does not change the due time, and follows it.
	if row.HeldScope != "" {
		w.Detail += "; " + pausedText(row.HeldScope+" "+row.HeldName, &row.HeldAt, row.HeldBy, row.HeldReason)
	}
}

// by sets the blocker.
func (w *Why) by(blocker Blocker, since *time.Time, detail string) {
	w.BlockedBy, w.Since, w.Detail = &blocker, utc(since), detail
}

func later(a, b *time.Time) *time.Time {
	if b.After(*a) {
		return b
	}
	return a
}

// assignee names the person or the group that a task is assigned to.
func assignee(row *db.TaskWhyRow) string {
	switch {
	case row.AssigneeID != nil:
		return *row.AssigneeID
	case row.GroupID != nil:
		return "a member of the group " + *row.GroupID
	}
	return "one of its candidates"
}

// clock formats a time like the JSON members of the answer.
func clock(t *time.Time) string {
	if t == nil {
		return "an unknown time"
	}
	return t.UTC().Format(time.RFC3339Nano)
}
