package api

import (
	"context"
	"encoding/binary"
	"math"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// deadLetterHandlers serve /api/internal/dead-letters, redrives included.
type deadLetterHandlers struct{ *core }

type listDeadLettersInput struct {
	GroupBy          string    `query:"groupBy" enum:"fingerprint" doc:"Return groups of similar dead letters instead of tasks."`
	Queue            string    `query:"queue" enum:"task-execution-automated,task-execution-integration,task-execution-manual" doc:"Only dead letters of the task types that use this queue."`
	Since            time.Time `query:"since" doc:"Only dead letters that ended at this time or later. From year 2000 to 8999, in UTC."`
	TaskDefinitionID string    `query:"taskDefinitionId" maxLength:"128" doc:"Only dead letters of this definition."`
	ErrorCode        string    `query:"errorCode" maxLength:"128" doc:"Only dead letters with this error code."`
	Fingerprint      string    `query:"fingerprint" maxLength:"64" doc:"Only dead letters of this group; ignored with groupBy."`
	Limit            int32     `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"The largest number of items on a page."`
	Cursor           string    `query:"cursor" maxLength:"512" pattern:"^[A-Za-z0-9_-]+$" doc:"nextCursor of the previous page, with the same filters."`
}

// DeadLetter is a task that failed for good and was neither redriven nor discarded.
type DeadLetter struct {
	TaskID           uuid.UUID `json:"taskId" format:"uuid"`
	TaskDefinitionID string    `json:"taskDefinitionId"`
	WorkflowID       string    `json:"workflowId"`
	Lane             string    `json:"lane" doc:"The queue that a redrive puts the task into."`
	ErrorCode        string    `json:"errorCode"`
	ErrorMessage     string    `json:"errorMessage"`
	Attempt          int32     `json:"attempt" doc:"The number of attempts so far."`
	EndedAt          time.Time `json:"endedAt"`
	Fingerprint      string    `json:"fingerprint" doc:"Equal for similar failures: a hash of the definition, the code, and the message without numbers, ids, hex and quoted texts."`
}

// DeadLetterGroup is a group of dead letters with the same fingerprint.
type DeadLetterGroup struct {
	Fingerprint      string      `json:"fingerprint"`
	ErrorCode        string      `json:"errorCode"`
	Message          string      `json:"message" doc:"The message, with placeholders for the parts in which the messages of the group differ."`
	TaskDefinitionID string      `json:"taskDefinitionId"`
	Count            int64       `json:"count"`
	FirstAt          time.Time   `json:"firstAt" doc:"The end of the oldest dead letter of the group."`
	LastAt           time.Time   `json:"lastAt" doc:"The end of the newest dead letter of the group."`
	Samples          []uuid.UUID `json:"samples" doc:"The ids of up to three tasks of the group, newest first."`
}

// DeadLetterPage is a page of dead letters or of groups.
type DeadLetterPage struct {
	Items      []DeadLetter      `json:"items,omitzero" doc:"Without groupBy: the tasks, by priority and then by age, oldest first. A page may have fewer items than limit although another page follows."`
	Groups     []DeadLetterGroup `json:"groups,omitzero" doc:"With groupBy: the groups, largest first."`
	Complete   bool              `json:"complete" doc:"false: there are more dead letters than one request examines (20000 with groupBy, or the limit of one page)."`
	NextCursor *string           `json:"nextCursor" doc:"The cursor of the next page; null on the last page."`
}

type deadLetterPageOutput struct{ Body *DeadLetterPage }

// DiscardRequest is the body of POST …/discard.
type DiscardRequest struct {
	Reason string `json:"reason" minLength:"1" maxLength:"1000" doc:"Kept in the audit trail."`
}

type discardInput struct {
	TaskPath
	Body DiscardRequest
}

// DiscardAnswer names the first caller that discarded the dead letter.
type DiscardAnswer struct {
	TaskID uuid.UUID `json:"taskId" format:"uuid"`
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

type discardOutput struct{ Body *DiscardAnswer }

var listDeadLettersDoc = doc{
	id: "listDeadLetters", tag: tagDeadLetters, summary: "List dead letters",
	description: "Lists the tasks that failed for good and were neither redriven nor discarded, or with groupBy=fingerprint groups of similar " +
		"ones, page by page.",
	answer: map[string]any{"groups": []any{map[string]any{
		"fingerprint": "5b1d0c6f2a9e4477", "errorCode": "CONNECTION_ERROR", "message": "connection to <n> refused",
		"taskDefinitionId": "calculate-order-total", "count": 120, "firstAt": "2026-11-02T09:30:01Z", "lastAt": "2026-11-02T09:58:00Z",
		"samples": []any{exampleTask["taskId"]},
	}}, "complete": true, "nextCursor": nil},
}

var discardDoc = doc{
	id: "discardDeadLetter", tag: tagDeadLetters, summary: "Discard a dead letter",
	description: "Discards a dead letter: the task keeps its status and cannot be redriven any more. Repeating the request has no effect. A " +
		"task that is not a dead letter is a 409.",
	errors:  []int{404, 409, 413, 415},
	request: map[string]any{"reason": "the customer has cancelled"},
	answer:  map[string]any{"taskId": exampleTask["taskId"], "at": "2026-11-02T10:00:00Z", "by": "error-handler", "reason": "the customer has cancelled"},
}

func (h *deadLetterHandlers) listDeadLetters(ctx context.Context, in *listDeadLettersInput) (*deadLetterPageOutput, error) {
	tenant := callerOf(ctx).Tenant
	if !in.Since.IsZero() {
		if err := jobs.GuardTime(in.Since); err != nil {
			return nil, violation("query.since", err.Error())
		}
	}

	f := jobs.DeadLetterFilter{
		Fingerprint: in.Fingerprint, TaskDefinitionID: in.TaskDefinitionID, ErrorCode: in.ErrorCode, Lane: in.Queue, Since: in.Since.UTC(),
	}

	// Every filter is part of the cursor's hash.
	filters := []string{"dead letters", in.GroupBy, tenant, f.Fingerprint, f.TaskDefinitionID, f.ErrorCode, f.Lane, f.Since.Format(time.RFC3339Nano)}
	last, err := after(in.Cursor, filters...)
	if err != nil {
		return nil, err
	}
	if in.GroupBy != "" {
		if in.Fingerprint != "" {
			return nil, violation("query.fingerprint", "cannot be combined with groupBy")
		}
		return h.groups(ctx, in, f, last, filters)
	}

	// The position is (priority, time, job): see place.
	var from jobs.DeadLetterCursor
	switch {
	case len(last) == 18:
		from.Priority = int16(binary.BigEndian.Uint16(last))
		from.At = time.UnixMicro(int64(binary.BigEndian.Uint64(last[2:]))).UTC()
		from.Job = int64(binary.BigEndian.Uint64(last[10:]))
	case last != nil:
		return nil, violation("query.cursor", "the cursor is not valid")
	}
	var rows []db.DeadLetterListRow
	var next *jobs.DeadLetterCursor
	err = h.read(ctx, func(q *db.Queries) (err error) {
		rows, next, err = jobs.DeadLetters(ctx, q, tenant, f, from, in.Limit)
		return err
	})
	if err != nil {
		return nil, readFailed("list dead letters", err)
	}

	out := &DeadLetterPage{Items: make([]DeadLetter, 0, len(rows)), Complete: next == nil || len(rows) == int(in.Limit)}
	for _, row := range rows {
		out.Items = append(out.Items, DeadLetter{
			TaskID: row.TaskID, TaskDefinitionID: row.DefinitionID, WorkflowID: row.WorkflowID, Lane: jobs.LaneOf(jobs.Type(row.Type)),
			ErrorCode: row.Code, ErrorMessage: row.Message, Attempt: row.Attempt, EndedAt: row.EndedAt.UTC(), Fingerprint: row.Fingerprint,
		})
	}

	if next != nil {
		text := cursor(place(*next), filters...)
		out.NextCursor = &text
	}

	return &deadLetterPageOutput{Body: out}, nil
}

// place encodes a position in the list for a cursor, in 18 bytes.
func place(p jobs.DeadLetterCursor) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(p.Priority))
	b = binary.BigEndian.AppendUint64(b, uint64(p.At.UnixMicro()))
	return binary.BigEndian.AppendUint64(b, uint64(p.Job))
}

// groups lists dead letters by fingerprint. f has no fingerprint.
func (h *deadLetterHandlers) groups(ctx context.Context, in *listDeadLettersInput, f jobs.DeadLetterFilter, last []byte, filters []string) (*deadLetterPageOutput, error) {
	p := db.DeadLetterGroupsParams{
		AfterN: math.MaxInt64, Page: in.Limit + 1, Walk: jobs.DeadLetterWalk, TenantID: callerOf(ctx).Tenant, Type: f.Type(),
		DefinitionID: f.TaskDefinitionID, ErrorCode: f.ErrorCode, Since: f.Since,
	}

	// Groups are in the order of their size, and then of their fingerprint.
	switch {
	case len(last) > 8:
		p.AfterN, p.AfterFingerprint = int64(binary.BigEndian.Uint64(last)), string(last[8:])
	case last != nil:
		return nil, violation("query.cursor", "the cursor is not valid")
	}
	var rows []db.DeadLetterGroupsRow
	var more bool
	err := h.read(ctx, func(q *db.Queries) (err error) {
		if rows, err = q.DeadLetterGroups(ctx, p); err != nil {
			return err
		}
		// In the same snapshot as the groups.
		more, err = jobs.MoreDeadLetters(ctx, q)
		return err
	})
	if err != nil {
		return nil, readFailed("group dead letters", err)
	}

	// A walk over more dead letters than one request examines is not complete, however few groups it
	// has found.
	out := &DeadLetterPage{Groups: make([]DeadLetterGroup, 0, len(rows)), Complete: !more}
	if len(rows) > int(in.Limit) {
		rows = rows[:in.Limit]
		end := rows[len(rows)-1]
		text := cursor(append(binary.BigEndian.AppendUint64(nil, uint64(end.N)), end.Fingerprint...), filters...)
		out.NextCursor = &text
	}

	for _, row := range rows {
		out.Groups = append(out.Groups, DeadLetterGroup{
			Fingerprint: row.Fingerprint, ErrorCode: row.Code, Message: row.Pattern, TaskDefinitionID: row.DefinitionID, Count: row.N,
			FirstAt: row.FirstAt.UTC(), LastAt: row.LastAt.UTC(), Samples: row.Samples,
		})
	}

	return &deadLetterPageOutput{Body: out}, nil
}

func (h *deadLetterHandlers) discardDeadLetter(ctx context.Context, in *discardInput) (*discardOutput, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}

	about(ctx, id)
	discarded, err := h.tasks.DeadLetters.Discard(ctx, id, actorOf(ctx, in.Body.Reason))
	if err != nil {
		return nil, err
	}

	return discardAnswer(discarded), nil
}

func discardAnswer(d jobs.Discarded) *discardOutput {
	return &discardOutput{Body: &DiscardAnswer{TaskID: d.TaskID, At: d.At, By: d.By, Reason: d.Reason}}
}
