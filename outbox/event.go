// Package outbox has the vocabulary of what tes publishes and receives: events, envelopes,
// messages and outcomes.
//
// An event is committed together with the transition that it reports (package jobs), and is
// published at least once, in order for each task, with the same id and the same bytes at every
// redelivery. The packages below do the work:
//
//   - relay publishes committed events to the bus; one process leads.
//   - callback posts status updates to the callbackUrl of tasks, with webhook.
//   - inbox makes messages from the bus idempotent.
//   - natsbus is the bus, on NATS JetStream.
//   - egress is the HTTP client for addresses that callers choose.
//   - retry has the policies of retries and the breakers; once logs each kind of error once;
//     redact removes credentials.
package outbox

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"time"

	"github.com/google/uuid"
)

// Source is metadata.source of every event that tes publishes.
const Source = "task-execution-layer"

// Subjects of published events. The envelope's type is the name of the schema, and differs from
// most subjects: the type of task.created is task.instance.created.
const (
	SubjectCreated   = "task.created"
	SubjectStarted   = "task.started"
	SubjectCompleted = "task.completed"
	SubjectFailed    = "task.failed"
	SubjectCanceled  = "task.canceled"
	SubjectRetry     = "task.retry"
	SubjectAssigned  = "task.manual.assigned"
)

// Envelope is the JSON of every event, published or received.
type Envelope[D any] struct {
	Type      string    `json:"type"`
	ID        string    `json:"id"`
	Timestamp time.Time `json:"timestamp"`
	Data      D         `json:"data"`
	Metadata  Metadata  `json:"metadata"`
}

// Metadata is a part of every event.
type Metadata struct {
	CorrelationID string `json:"correlationId" maxLength:"128" doc:"Links the event to its workflow."`
	TaskID        string `json:"taskId,omitempty" doc:"The task, if data does not name the task."` // in received events only
	Source        string `json:"source" maxLength:"256" doc:"The service that published the event."`
}

// TaskCreated is published when a task is accepted.
type TaskCreated struct {
	TaskID           string    `json:"taskId" format:"uuid"`
	WorkflowID       string    `json:"workflowId"`
	TaskType         string    `json:"taskType" enum:"AUTOMATED,INTEGRATION,MANUAL"`
	TaskDefinitionID string    `json:"taskDefinitionId"`
	Status           string    `json:"status" enum:"PENDING"` // always PENDING
	Priority         string    `json:"priority" enum:"LOW,MEDIUM,HIGH,CRITICAL"`
	CreatedAt        time.Time `json:"createdAt"`
}

// TaskStarted is published at the beginning of every attempt.
type TaskStarted struct {
	TaskID     string    `json:"taskId" format:"uuid"`
	WorkflowID string    `json:"workflowId"`
	TaskType   string    `json:"taskType" enum:"AUTOMATED,INTEGRATION,MANUAL"`
	ExecutorID string    `json:"executorId" doc:"The process, the integration, or the person."`
	StartTime  time.Time `json:"startTime"`
}

// TaskCompleted is published once, at success. ExecutionTime is in milliseconds. OutputSummary has
// the short scalar members of the output; GET returns the whole output.
type TaskCompleted struct {
	TaskID        string          `json:"taskId" format:"uuid"`
	WorkflowID    string          `json:"workflowId"`
	TaskType      string          `json:"taskType" enum:"AUTOMATED,INTEGRATION,MANUAL"`
	ExecutorID    string          `json:"executorId" doc:"The process, the integration, or the person."`
	StartTime     time.Time       `json:"startTime"`
	EndTime       time.Time       `json:"endTime"`
	ExecutionTime int64           `json:"executionTime" minimum:"0" doc:"Milliseconds."`
	OutputSummary json.RawMessage `json:"outputSummary" doc:"The output's short scalar members."`
}

// TaskFailed is published once, when no retry is left. ErrorCode is TIMEOUT for a task that timed
// out.
type TaskFailed struct {
	TaskID       string    `json:"taskId" format:"uuid"`
	WorkflowID   string    `json:"workflowId"`
	TaskType     string    `json:"taskType" enum:"AUTOMATED,INTEGRATION,MANUAL"`
	ExecutorID   string    `json:"executorId" doc:"The process, the integration, or the person."`
	StartTime    time.Time `json:"startTime"`
	EndTime      time.Time `json:"endTime"`
	ErrorCode    string    `json:"errorCode" doc:"TIMEOUT if the task timed out."`
	ErrorMessage string    `json:"errorMessage"`
	StackTrace   string    `json:"stackTrace"`
	Retryable    bool      `json:"retryable"`
}

// TaskCanceled is published once, when a task is cancelled.
type TaskCanceled struct {
	TaskID         string    `json:"taskId" format:"uuid"`
	WorkflowID     string    `json:"workflowId"`
	TaskType       string    `json:"taskType" enum:"AUTOMATED,INTEGRATION,MANUAL"`
	CanceledBy     string    `json:"canceledBy"`
	Reason         string    `json:"reason"`
	PreviousStatus string    `json:"previousStatus" enum:"PENDING,ASSIGNED,RUNNING"`
	CanceledAt     time.Time `json:"canceledAt"`
}

// TaskRetry is published when an attempt failed and another is due. RetryDelay is in milliseconds.
type TaskRetry struct {
	TaskID           string    `json:"taskId" format:"uuid"`
	WorkflowID       string    `json:"workflowId"`
	TaskType         string    `json:"taskType" enum:"AUTOMATED,INTEGRATION,MANUAL"`
	RetryCount       int       `json:"retryCount" minimum:"1"`
	MaxRetries       int       `json:"maxRetries" minimum:"0"`
	RetryDelay       int64     `json:"retryDelay" minimum:"0" doc:"Milliseconds."`
	NextRetryTime    time.Time `json:"nextRetryTime"`
	LastErrorCode    string    `json:"lastErrorCode"`
	LastErrorMessage string    `json:"lastErrorMessage"`
}

// TaskAssigned is published when a manual task is assigned to a person or a group.
type TaskAssigned struct {
	TaskID          string    `json:"taskId" format:"uuid"`
	WorkflowID      string    `json:"workflowId"`
	AssigneeID      string    `json:"assigneeId" doc:"Empty if the task is assigned to a group."`
	AssigneeName    string    `json:"assigneeName"`
	TaskName        string    `json:"taskName"`
	TaskDescription string    `json:"taskDescription"`
	Priority        string    `json:"priority" enum:"LOW,MEDIUM,HIGH,CRITICAL"`
	DueDate         time.Time `json:"dueDate"`
	GroupID         string    `json:"groupId,omitempty"` // if the task is assigned to a group
}

// Notes are the payload column of an event row. The rest of the envelope is read from the tables
// task and task_attempt.
type (
	// StartedNote is the payload of started if the executor is not the actor: the service of the
	// user interface reports that a person has started.
	StartedNote struct {
		ExecutorID string `json:"executorId,omitempty"`
	}
	// CompletedNote is the payload of completed. Comment is a person's, and is not published.
	CompletedNote struct {
		OutputSummary json.RawMessage `json:"outputSummary,omitempty"`
		Comment       string          `json:"comment,omitempty"`
	}
	// CanceledNote is the payload of canceled.
	CanceledNote struct {
		Reason string `json:"reason,omitempty"`
	}
	// RetryNote is the payload of retry. RetryDelay is in milliseconds.
	RetryNote struct {
		RetryCount    int       `json:"retryCount"`
		MaxRetries    int       `json:"maxRetries"`
		RetryDelay    int64     `json:"retryDelay"`
		NextRetryTime time.Time `json:"nextRetryTime"`
	}
	// AssignedNote is the payload of assigned.
	AssignedNote struct {
		AssigneeID      string    `json:"assigneeId,omitempty"`
		AssigneeName    string    `json:"assigneeName,omitempty"`
		GroupID         string    `json:"groupId,omitempty"`
		TaskName        string    `json:"taskName,omitempty"`
		TaskDescription string    `json:"taskDescription,omitempty"`
		DueDate         time.Time `json:"dueDate"`
		Reason          string    `json:"reason,omitempty"`
	}
	// RedrivenNote is the payload of redriven, and of the release that undoes a redrive. Both are
	// for the audit trail only. Input is the task's input before the redrive, if the redrive
	// changed the input.
	RedrivenNote struct {
		OperationID string          `json:"operationId"`
		Reason      string          `json:"reason,omitempty"`
		Undone      bool            `json:"undone,omitempty"`
		Input       json.RawMessage `json:"input,omitempty"`
	}
	// Problem is the interface document's error, as stored in task and task_attempt.
	Problem struct {
		Code       string          `json:"code"`
		Message    string          `json:"message"`
		Details    json.RawMessage `json:"details,omitempty"`
		StackTrace string          `json:"stackTrace,omitempty"`
		Timestamp  time.Time       `json:"timestamp"`
		Retryable  bool            `json:"retryable"`
	}
)

// EventID returns the id of a task's seq-th event, a UUID of version 8. The id is derived and not
// stored, so that every redelivery has the same id. report.event_id is the same function in SQL.
func EventID(task uuid.UUID, seq int32) uuid.UUID {
	var key [20]byte
	copy(key[:], task[:])
	binary.BigEndian.PutUint32(key[16:], uint32(seq))
	sum := sha256.Sum256(key[:])
	id := uuid.UUID(sum[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// Subjects of received messages.
const (
	SubjectTaskRequested       = "workflow.task_requested"
	SubjectIntegrationResponse = "integration.response_received"
	SubjectShutdown            = "system.shutdown_requested"
	SubjectMaintenance         = "system.maintenance_mode"
)

// ShutdownRequested is the data of system.shutdown_requested. Target is a service, one process of
// the service, or a host; empty means every process.
type ShutdownRequested struct {
	Target       string   `json:"target,omitempty" maxLength:"256" doc:"The service, one of its processes, or a host. Empty or absent: every process."`
	GraceSeconds *float64 `json:"graceSeconds,omitempty" minimum:"0" maximum:"86400" doc:"How long running attempts may go on. Default: the service's own setting."` // default the process's own setting
	Reason       string   `json:"reason,omitempty" maxLength:"1024"`
}

// MaintenanceMode is the data of system.maintenance_mode. Lanes are names of queues; an empty list
// means all five.
type MaintenanceMode struct {
	Enabled bool       `json:"enabled" doc:"true: stop starting tasks; false: start tasks again."`
	Lanes   []string   `json:"lanes,omitempty" maxItems:"64" enum:"task-execution-automated,task-execution-integration,task-execution-manual,task-execution-retry,task-execution-deadletter" doc:"Empty or absent: all five."`
	Reason  string     `json:"reason,omitempty" maxLength:"1024"`
	Until   *time.Time `json:"until,omitempty" doc:"The end of the maintenance. Absent: it ends with the next message with enabled false."`
}

// IntegrationResponse is the data of integration.response_received.
type IntegrationResponse struct {
	TaskID        string          `json:"taskId" maxLength:"128" doc:"The task. metadata.taskId may name it instead."`
	InvocationID  string          `json:"invocationId,omitempty" maxLength:"256" doc:"The invocation id in the service's answer 202."`
	IntegrationID string          `json:"integrationId" maxLength:"256"`
	Status        string          `json:"status" enum:"SUCCESS,FAILED"` // SUCCESS or FAILED
	Data          json.RawMessage `json:"data,omitempty" doc:"The task's output, if status is SUCCESS."`
	Error         *Problem        `json:"error,omitempty" doc:"The reason, if status is FAILED."`
	Retryable     *bool           `json:"retryable,omitempty" doc:"Whether another attempt may succeed. Default: decided by the error's code."`
}
