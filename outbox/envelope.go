package outbox

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

var priorityNames = [...]string{1: "CRITICAL", 2: "HIGH", 3: "MEDIUM", 4: "LOW"}

// NewMessage returns the message of an event row: the interface document's envelope with its
// CloudEvents headers. ok is false for a transition that is kept for the audit trail only (a
// release, a redrive). The same row always gives the same bytes.
func NewMessage(row db.OutboxEventsRow) (m Message, ok bool, err error) {
	kind, ok := kinds[row.Type]
	if !ok {
		return Message{}, false, nil
	}

	data, err := kind.data(row)
	if err != nil {
		return Message{}, false, fmt.Errorf("read the payload of event %d: %w", row.ID, err)
	}

	id := EventID(row.TaskID, row.Seq).String()
	body, err := json.Marshal(Envelope[any]{
		Type: kind.name, ID: id, Timestamp: row.At.UTC(), Data: data,
		Metadata: Metadata{CorrelationID: row.CorrelationID, Source: Source},
	})
	if err != nil {
		return Message{}, false, fmt.Errorf("write the envelope of event %d: %w", row.ID, err)
	}
	return Message{ID: id, Subject: kind.subject, Header: header(row, id, kind.name), Body: body}, true, nil
}

// header returns the CloudEvents attributes of an event. Attributes that a caller chooses are
// encoded. The others consist of characters that need no encoding.
func header(row db.OutboxEventsRow, id, kind string) map[string]string {
	h := map[string]string{
		"ce-specversion":     "1.0",
		"ce-id":              id,
		"ce-type":            kind,
		"ce-source":          Source,
		"ce-time":            row.At.UTC().Format(time.RFC3339Nano),
		"ce-datacontenttype": "application/json",
		"ce-subject":         row.TaskID.String(),
		"ce-correlationid":   EncodeAttribute(row.CorrelationID),
		"ce-sequence":        sequence(row.Seq),
	}

	if row.Traceparent != nil {
		h["traceparent"] = *row.Traceparent
		h["ce-traceparent"] = EncodeAttribute(*row.Traceparent)
	}

	return h
}

// kinds has the subject, the envelope's type and the data of each published event type.
var kinds = map[db.TaskEventType]struct {
	subject, name string
	data          func(db.OutboxEventsRow) (any, error)
}{
	db.TaskEventTypeCreated:   {SubjectCreated, "task.instance.created", created},
	db.TaskEventTypeStarted:   {SubjectStarted, "task.instance.started", started},
	db.TaskEventTypeCompleted: {SubjectCompleted, "task.instance.completed", completed},
	db.TaskEventTypeFailed:    {SubjectFailed, "task.instance.failed", failed},
	db.TaskEventTypeCanceled:  {SubjectCanceled, "task.instance.canceled", canceled},
	db.TaskEventTypeRetry:     {SubjectRetry, "task.instance.retry", retried},
	db.TaskEventTypeAssigned:  {SubjectAssigned, SubjectAssigned, assigned},
}

func created(row db.OutboxEventsRow) (any, error) {
	return TaskCreated{
		TaskID: row.TaskID.String(), WorkflowID: row.WorkflowID, TaskType: string(row.TaskType), TaskDefinitionID: row.DefinitionID,
		Status: "PENDING", Priority: priorityNames[row.Priority], CreatedAt: row.At.UTC(),
	}, nil
}

func started(row db.OutboxEventsRow) (any, error) {
	// Not from the attempt's row, which a release deletes.
	note := StartedNote{ExecutorID: row.Actor}
	err := read(row.Payload, &note)
	return TaskStarted{
		TaskID: row.TaskID.String(), WorkflowID: row.WorkflowID, TaskType: string(row.TaskType), ExecutorID: note.ExecutorID, StartTime: row.At.UTC(),
	}, err
}

func completed(row db.OutboxEventsRow) (any, error) {
	var note CompletedNote
	err := read(row.Payload, &note)
	// The interface document requires the member.
	if note.OutputSummary == nil {
		note.OutputSummary = json.RawMessage("{}")
	}

	start, end := orZero(row.StartedAt), orZero(row.EndedAt)
	return TaskCompleted{
		TaskID: row.TaskID.String(), WorkflowID: row.WorkflowID, TaskType: string(row.TaskType), ExecutorID: orEmpty(row.ExecutorID),
		StartTime: start, EndTime: end, ExecutionTime: end.Sub(start).Milliseconds(), OutputSummary: note.OutputSummary,
	}, err
}

func failed(row db.OutboxEventsRow) (any, error) {
	problem, err := problemOf(row)
	return TaskFailed{
		TaskID: row.TaskID.String(), WorkflowID: row.WorkflowID, TaskType: string(row.TaskType), ExecutorID: orEmpty(row.ExecutorID),
		StartTime: orZero(row.StartedAt), EndTime: orZero(row.EndedAt), ErrorCode: problem.Code, ErrorMessage: problem.Message,
		StackTrace: problem.StackTrace, Retryable: problem.Retryable,
	}, err
}

func canceled(row db.OutboxEventsRow) (any, error) {
	var note CanceledNote
	err := read(row.Payload, &note)
	return TaskCanceled{
		TaskID: row.TaskID.String(), WorkflowID: row.WorkflowID, TaskType: string(row.TaskType), CanceledBy: row.Actor,
		Reason: note.Reason, PreviousStatus: string(*row.Was), CanceledAt: row.At.UTC(),
	}, err
}

func retried(row db.OutboxEventsRow) (any, error) {
	var note RetryNote
	if err := read(row.Payload, &note); err != nil {
		return nil, err
	}

	problem, err := problemOf(row)
	return TaskRetry{
		TaskID: row.TaskID.String(), WorkflowID: row.WorkflowID, TaskType: string(row.TaskType),
		RetryCount: note.RetryCount, MaxRetries: note.MaxRetries, RetryDelay: note.RetryDelay, NextRetryTime: note.NextRetryTime.UTC(),
		LastErrorCode: problem.Code, LastErrorMessage: problem.Message,
	}, err
}

func assigned(row db.OutboxEventsRow) (any, error) {
	var note AssignedNote
	err := read(row.Payload, &note)
	return TaskAssigned{
		TaskID: row.TaskID.String(), WorkflowID: row.WorkflowID, AssigneeID: note.AssigneeID, AssigneeName: note.AssigneeName,
		TaskName: note.TaskName, TaskDescription: note.TaskDescription, Priority: priorityNames[row.Priority],
		DueDate: note.DueDate.UTC(), GroupID: note.GroupID,
	}, err
}

// problemOf returns the error of the event's attempt.
func problemOf(row db.OutboxEventsRow) (problem Problem, err error) {
	if row.Error != nil {
		err = json.Unmarshal(row.Error, &problem)
	}
	return problem, err
}

// sequence returns ce-sequence. Receivers compare it as text; hence the leading zeros.
func sequence(seq int32) string {
	digits := strconv.Itoa(int(seq))
	return "0000000000"[:10-len(digits)] + digits
}

func read(payload *string, into any) error {
	if payload == nil {
		return nil
	}
	return json.Unmarshal([]byte(*payload), into)
}

func orEmpty(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
