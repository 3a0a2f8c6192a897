package api

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// AuditQuery selects a page of a task's events or attempts. It is exported because huma ignores
// embedded unexported structs.
type AuditQuery struct {
	Limit  int32  `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"The largest number of items on a page."`
	Cursor string `query:"cursor" maxLength:"512" pattern:"^[A-Za-z0-9_-]+$" doc:"nextCursor of the previous page."`
}

type auditInput struct {
	TaskPath
	AuditQuery
}

type listTaskEventsInput struct {
	TaskPath
	AuditQuery
	Include string `query:"include" enum:"payloads" doc:"payloads: return every payload in full, however long."`
}

// TaskEvent is one transition of a task.
type TaskEvent struct {
	Seq     int32           `json:"seq" doc:"The task's version after the transition."`
	At      time.Time       `json:"at"`
	Type    string          `json:"type" enum:"created,started,completed,failed,canceled,retry,assigned,released,redriven" doc:"The type of the event. released and redriven are not published on the bus."`
	Attempt int32           `json:"attempt" doc:"The number of the attempt; 0 before the first attempt."`
	Was     *formerStatus   `json:"was" doc:"The status before the transition; null for created."`
	Now     jobs.Status     `json:"now" doc:"The status after the transition."`
	Actor   string          `json:"actor" doc:"The caller or the process that made the transition."`
	Payload json.RawMessage `json:"payload" nullable:"true" doc:"Details of the event; null if there are none."`

	Truncated []string `json:"truncated,omitempty" enum:"payload" doc:"Names payload if the payload is longer than 4 KiB and was left out; include=payloads returns it."`
}

// TaskEventPage is a page of a task's events, oldest first.
type TaskEventPage struct {
	Items      []TaskEvent `json:"items"`
	NextCursor *string     `json:"nextCursor" doc:"The cursor of the next page; null on the last page."`
}

// TaskAttempt is one attempt of a task.
type TaskAttempt struct {
	Attempt    int32           `json:"attempt"`
	ExecutorID string          `json:"executorId" doc:"The process, worker or person that ran the attempt."`
	StartedAt  time.Time       `json:"startedAt"`
	EndedAt    *time.Time      `json:"endedAt" doc:"The end of the attempt; null while it runs."`
	Outcome    *outcomeName    `json:"outcome" doc:"The outcome of the attempt; null while it runs."`
	Error      json.RawMessage `json:"error" nullable:"true" doc:"The error of a failed attempt; null otherwise."`
	Lease      *TaskLease      `json:"lease,omitempty" doc:"The lease of a running attempt; absent otherwise."`
	Progress   json.RawMessage `json:"progress,omitempty" doc:"The progress that the last heartbeat of the attempt reported; absent without any."`
}

// TaskLease is the lease of a running attempt.
type TaskLease struct {
	Kind       string     `json:"kind" enum:"process,worker,response,person" doc:"The kind of holder. response: another system does the work, and its response is awaited."`
	Owner      string     `json:"owner"`
	ExpiresAt  time.Time  `json:"expiresAt" doc:"The end of the lease, unless it is extended."`
	DeadlineAt *time.Time `json:"deadlineAt" doc:"The end of the attempt's timeout, which heartbeats do not extend."`
}

// TaskAttemptPage is a page of a task's attempts, oldest first.
type TaskAttemptPage struct {
	Items      []TaskAttempt `json:"items"`
	NextCursor *string       `json:"nextCursor" doc:"The cursor of the next page; null on the last page."`
}

type (
	formerStatus string
	outcomeName  string
)

// Schema implements huma.SchemaProvider.
func (formerStatus) Schema(huma.Registry) *huma.Schema { return orNull("", jobs.Statuses...) }

// Schema implements huma.SchemaProvider.
func (outcomeName) Schema(huma.Registry) *huma.Schema {
	return orNull("", db.AttemptOutcomeCOMPLETED, db.AttemptOutcomeFAILED, db.AttemptOutcomeTIMEDOUT,
		db.AttemptOutcomeLEASEEXPIRED, db.AttemptOutcomeCANCELLED, db.AttemptOutcomeRELEASED)
}

type (
	taskEventPageOutput   struct{ Body *TaskEventPage }
	taskAttemptPageOutput struct{ Body *TaskAttemptPage }
)

var listTaskEventsDoc = doc{
	id: "listTaskEvents", tag: tagTasks, summary: "List a task's events",
	description: "Lists the events of a task, oldest first: one for each transition.",
	errors:      []int{404},
	answer: map[string]any{"items": []any{
		map[string]any{"seq": 1, "at": "2026-11-02T09:30:00.000001Z", "type": "created", "attempt": 0, "was": nil, "now": "PENDING", "actor": "workflow-orchestrator", "payload": nil},
		map[string]any{"seq": 2, "at": "2026-11-02T09:30:00.004Z", "type": "started", "attempt": 1, "was": "PENDING", "now": "RUNNING", "actor": "tes-1/1/6f1f0d5e", "payload": nil},
	}, "nextCursor": nil},
}

var listTaskAttemptsDoc = doc{
	id: "listTaskAttempts", tag: tagTasks, summary: "List a task's attempts",
	description: "Lists the attempts of a task, oldest first: the executor, the outcome, and the lease of a running attempt. A released " +
		"attempt is not listed; the next attempt reuses its number.",
	errors: []int{404},
	answer: map[string]any{"items": []any{
		map[string]any{
			"attempt": 1, "executorId": "tes-1/1/6f1f0d5e", "startedAt": "2026-11-02T09:30:00.004Z", "endedAt": "2026-11-02T09:30:01.004Z", "outcome": "FAILED",
			"error": map[string]any{"code": "CONNECTION_ERROR", "message": "connection refused", "timestamp": "2026-11-02T09:30:01.004Z", "retryable": true},
		},
		map[string]any{
			"attempt": 2, "executorId": "tes-2/1/0a6c9b6f", "startedAt": "2026-11-02T09:30:02.1Z", "endedAt": nil, "outcome": nil, "error": nil,
			"lease": map[string]any{"kind": "process", "owner": "tes-2/1/0a6c9b6f", "expiresAt": "2026-11-02T09:30:32.1Z", "deadlineAt": "2026-11-02T09:35:02.1Z"},
		},
	}, "nextCursor": nil},
}

func (h *taskHandlers) listTaskEvents(ctx context.Context, in *listTaskEventsInput) (*taskEventPageOutput, error) {
	// With full payloads a portion is small: its rows are held in memory before they are measured.
	most, portion := int32(mostListed), 200
	if in.Include == payloads {
		most, portion = math.MaxInt32, 4
	}

	var rows []db.TaskEventsRow
	var more bool
	id, err := h.readAudit(ctx, "events", &auditInput{in.TaskPath, in.AuditQuery}, func(q *db.Queries, id uuid.UUID, from int32) (err error) {
		rows, more, err = fill(int(in.Limit), portion, func(last *db.TaskEventsRow, n int32) ([]db.TaskEventsRow, error) {
			if last != nil {
				from = last.Seq
			}
			return q.TaskEvents(ctx, db.TaskEventsParams{TaskID: id, After: from, Page: n, Most: most})
		}, func(row *db.TaskEventsRow) int { return 512 + 2*len(row.Actor) + len(row.Payload) })
		return err
	})
	if err != nil {
		return nil, err
	}

	out := &TaskEventPage{Items: make([]TaskEvent, 0, len(rows))}
	if more {
		out.NextCursor = in.next("events", id, rows[len(rows)-1].Seq)
	}

	for _, row := range rows {
		e := TaskEvent{
			Seq: row.Seq, At: row.At.UTC(), Type: string(row.Type), Attempt: row.Attempt,
			Was: (*formerStatus)(row.Was), Now: jobs.Status(row.Now), Actor: row.Actor,
		}
		// A payload that the query left out has a length and no text.
		switch {
		case row.Payload != "":
			e.Payload = json.RawMessage(row.Payload)
		case row.PayloadBytes > 0:
			e.Truncated = []string{"payload"}
		}
		out.Items = append(out.Items, e)
	}

	return &taskEventPageOutput{Body: out}, nil
}

func (h *taskHandlers) listTaskAttempts(ctx context.Context, in *auditInput) (*taskAttemptPageOutput, error) {
	var rows []db.TaskAttemptsRow
	var more bool
	id, err := h.readAudit(ctx, "attempts", in, func(q *db.Queries, id uuid.UUID, from int32) (err error) {
		rows, more, err = fill(int(in.Limit), 32, func(last *db.TaskAttemptsRow, n int32) ([]db.TaskAttemptsRow, error) {
			if last != nil {
				from = last.Attempt
			}
			return q.TaskAttempts(ctx, db.TaskAttemptsParams{TaskID: id, After: from, Page: n})
		}, func(row *db.TaskAttemptsRow) int {
			return 1024 + 2*len(row.ExecutorID) + len(row.Error) + len(row.Progress)
		})
		return err
	})
	if err != nil {
		return nil, err
	}

	out := &TaskAttemptPage{Items: make([]TaskAttempt, 0, len(rows))}
	if more {
		out.NextCursor = in.next("attempts", id, rows[len(rows)-1].Attempt)
	}

	for _, row := range rows {
		one := TaskAttempt{
			Attempt: row.Attempt, ExecutorID: row.ExecutorID, StartedAt: row.StartedAt.UTC(), EndedAt: utc(row.EndedAt),
			Outcome: (*outcomeName)(row.Outcome), Error: row.Error, Progress: row.Progress,
		}
		// The query joins the lease to the running attempt alone.
		if row.Owner != nil {
			one.Lease = &TaskLease{Kind: string(*row.Kind), Owner: *row.Owner, ExpiresAt: row.ExpiresAt.UTC(), DeadlineAt: utc(row.DeadlineAt)}
		}
		out.Items = append(out.Items, one)
	}

	return &taskAttemptPageOutput{Body: out}, nil
}

// readAudit reads a page of a task's events or attempts, after the number in the cursor. A task of
// another tenant is a 404.
func (h *taskHandlers) readAudit(ctx context.Context, list string, in *auditInput, page func(q *db.Queries, id uuid.UUID, from int32) error) (id uuid.UUID, err error) {
	if id, err = in.id(); err != nil {
		return id, err
	}

	about(ctx, id)
	last, err := after(in.Cursor, list, id.String())
	if err != nil {
		return id, err
	}

	var from int32
	switch {
	case len(last) == 4:
		from = int32(binary.BigEndian.Uint32(last))
	case last != nil:
		return id, violation("query.cursor", "the cursor is not valid")
	}
	err = h.read(ctx, func(q *db.Queries) error {
		// Row-level security hides the events of a foreign task, which would be an empty page instead
		// of a 404.
		tenant, err := q.TaskTenant(ctx, id)
		switch {
		case err != nil:
			return err
		case tenant != callerOf(ctx).Tenant:
			return pgx.ErrNoRows
		}
		return page(q, id, from)
	})
	if err != nil {
		return id, readFailed(list+" of task "+in.TaskID, err)
	}

	return id, nil
}

// next is the cursor of the page after the given number.
func (p AuditQuery) next(list string, id uuid.UUID, last int32) *string {
	text := cursor(binary.BigEndian.AppendUint32(nil, uint32(last)), list, id.String())
	return &text
}
