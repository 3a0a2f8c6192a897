package outbox

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/seed-3f7a0631/tes/db"
)

var priorityNames = [...]string{1: "CRITICAL", 2: "HIGH", 3: "MEDIUM", 4: "LOW"}

// NewMessage makes the message of one event row. ok is false for a move that is
// kept for the audit trail alone (a release, a redrive).
func NewMessage(row db.OutboxEventsRow) (m Message, ok bool, err error) {
	var subject, kind string
	var data any
	task := row.TaskID.String()
	started, ended := at(row.StartedAt), at(row.EndedAt)
	switch row.Type {
	case db.TaskEventTypeCreated:
		subject, kind = SubjectCreated, "task.instance.created"
		data = TaskCreated{
			TaskID: task, WorkflowID: row.WorkflowID, TaskType: string(row.TaskType), TaskDefinitionID: row.DefinitionID,
			Status: "PENDING", Priority: priorityNames[row.Priority], CreatedAt: row.At.UTC(),
		}
	case db.TaskEventTypeStarted:
		subject, kind = SubjectStarted, "task.instance.started"
		// Not the attempt's row: it goes when the attempt is given back.
		note := StartedNote{ExecutorID: row.Actor}
		err = read(row.Payload, &note)
		data = TaskStarted{
			TaskID: task, WorkflowID: row.WorkflowID, TaskType: string(row.TaskType), ExecutorID: note.ExecutorID, StartTime: row.At.UTC(),
		}
	case db.TaskEventTypeCompleted:
		subject, kind = SubjectCompleted, "task.instance.completed"
		var note CompletedNote
		err = read(row.Payload, &note)
		if note.OutputSummary == nil {
			note.OutputSummary = json.RawMessage("{}")
		}
		data = TaskCompleted{
			TaskID: task, WorkflowID: row.WorkflowID, TaskType: string(row.TaskType), ExecutorID: text(row.ExecutorID),
			StartTime: started, EndTime: ended, ExecutionTime: ended.Sub(started).Milliseconds(), OutputSummary: note.OutputSummary,
		}
	case db.TaskEventTypeFailed:
		subject, kind = SubjectFailed, "task.instance.failed"
		var problem Problem
		if row.Error != nil {
			err = json.Unmarshal(row.Error, &problem)
		}
		data = TaskFailed{
			TaskID: task, WorkflowID: row.WorkflowID, TaskType: string(row.TaskType), ExecutorID: text(row.ExecutorID),
			StartTime: started, EndTime: ended, ErrorCode: problem.Code, ErrorMessage: problem.Message,
			StackTrace: problem.StackTrace, Retryable: problem.Retryable,
		}
	case db.TaskEventTypeCanceled:
		subject, kind = SubjectCanceled, "task.instance.canceled"
		var note CanceledNote
		err = read(row.Payload, &note)
		data = TaskCanceled{
			TaskID: task, WorkflowID: row.WorkflowID, TaskType: string(row.TaskType), CanceledBy: row.Actor,
			Reason: note.Reason, PreviousStatus: string(*row.Was), CanceledAt: row.At.UTC(),
		}
	case db.TaskEventTypeRetry:
		subject, kind = SubjectRetry, "task.instance.retry"
		var note RetryNote
		err = read(row.Payload, &note)
		var problem Problem
		if err == nil && row.Error != nil {
			err = json.Unmarshal(row.Error, &problem)
		}
		data = TaskRetry{
			TaskID: task, WorkflowID: row.WorkflowID, TaskType: string(row.TaskType),
			RetryCount: note.RetryCount, MaxRetries: note.MaxRetries, RetryDelay: note.RetryDelay, NextRetryTime: note.NextRetryTime.UTC(),
			LastErrorCode: problem.Code, LastErrorMessage: problem.Message,
		}
	case db.TaskEventTypeAssigned:
		subject, kind = SubjectAssigned, SubjectAssigned
		var note AssignedNote
		err = read(row.Payload, &note)
		data = TaskAssigned{
			TaskID: task, WorkflowID: row.WorkflowID, AssigneeID: note.AssigneeID, AssigneeName: note.AssigneeName,
			TaskName: note.TaskName, TaskDescription: note.TaskDescription, Priority: priorityNames[row.Priority],
			DueDate: note.DueDate.UTC(), GroupID: note.GroupID,
		}
	default:
		return Message{}, false, nil
	}
	if err != nil {
		return Message{}, false, fmt.Errorf("read the payload of event %d: %w", row.ID, err)
	}
	id := EventID(row.TaskID, row.Seq).String()
	body, err := json.Marshal(Envelope[any]{
		Type: kind, ID: id, Timestamp: row.At.UTC(), Data: data,
		Metadata: Metadata{CorrelationID: row.CorrelationID, Source: Source},
	})
	if err != nil {
		return Message{}, false, fmt.Errorf("write the envelope of event %d: %w", row.ID, err)
	}
	// What may be of any text is encoded: the other attributes are of letters, digits and
	// signs that need none.
	header := map[string]string{
		"ce-specversion":     "1.0",
		"ce-id":              id,
		"ce-type":            kind,
		"ce-source":          Source,
		"ce-time":            row.At.UTC().Format(time.RFC3339Nano),
		"ce-datacontenttype": "application/json",
		"ce-subject":         task,
		"ce-correlationid":   EncodeAttribute(row.CorrelationID),
		"ce-sequence":        sequence(row.Seq),
	}
	if row.Traceparent != nil {
		header["traceparent"] = *row.Traceparent
		header["ce-traceparent"] = EncodeAttribute(*row.Traceparent)
	}
	return Message{ID: id, Subject: subject, Header: header, Body: body}, true, nil
}

// sequence is ce-sequence: compared as text, hence the zeros.
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

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func at(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
