// Package outbox tells others what happened to a task: at least once, in order
// for each task, with the same id and the same bytes at every redelivery.
//
// What is told was committed together with the move that it tells of (package
// jobs); here it is read back, put into the interface document's envelope, and
// handed to the bus by one relay at a time.
package outbox

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"time"

	"github.com/google/uuid"
)

// Source is metadata.source of every event we publish.
const Source = "task-execution-layer"

// Subjects on the bus. The envelope's type is the schema's name, which for most
// differs from the subject: task.created carries task.instance.created.
const (
	SubjectCreated   = "task.created"
	SubjectStarted   = "task.started"
	SubjectCompleted = "task.completed"
	SubjectFailed    = "task.failed"
	SubjectCanceled  = "task.canceled"
	SubjectRetry     = "task.retry"
	SubjectAssigned  = "task.manual.assigned"
)

// Envelope is every event, spoken or heard.
type Envelope[D any] struct {
	Type      string    `json:"type"`
	ID        string    `json:"id"`
	Timestamp time.Time `json:"timestamp"`
	Data      D         `json:"data"`
	Metadata  Metadata  `json:"metadata"`
}

// Metadata goes with every event.
type Metadata struct {
	CorrelationID string `json:"correlationId" maxLength:"128" doc:"Links the event to its workflow."`
	TaskID        string `json:"taskId,omitempty" doc:"The task, where data does not name it."` // heard only
	Source        string `json:"source" maxLength:"256" doc:"Who speaks."`
}

// TaskCreated is told when a task is accepted.
type TaskCreated struct {
	TaskID           string    `json:"taskId" format:"uuid"`
	WorkflowID       string    `json:"workflowId"`
	TaskType         string    `json:"taskType" enum:"AUTOMATED,INTEGRATION,MANUAL"`
	TaskDefinitionID string    `json:"taskDefinitionId"`
	Status           string    `json:"status" enum:"PENDING"` // always PENDING
	Priority         string    `json:"priority" enum:"LOW,MEDIUM,HIGH,CRITICAL"`
	CreatedAt        time.Time `json:"createdAt"`
}

// TaskStarted is told at the beginning of every attempt.
type TaskStarted struct {
	TaskID     string    `json:"taskId" format:"uuid"`
	WorkflowID string    `json:"workflowId"`
	TaskType   string    `json:"taskType" enum:"AUTOMATED,INTEGRATION,MANUAL"`
	ExecutorID string    `json:"executorId" doc:"The process, the integration, or the person."`
	StartTime  time.Time `json:"startTime"`
}

// TaskCompleted is told once, at success. ExecutionTime is in milliseconds.
// OutputSummary holds the output's short scalar members; GET has the whole.
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

// TaskFailed is told once, when no retry is left. A task that timed out says
// TIMEOUT.
type TaskFailed struct {
	TaskID       string    `json:"taskId" format:"uuid"`
	WorkflowID   string    `json:"workflowId"`
	TaskType     string    `json:"taskType" enum:"AUTOMATED,INTEGRATION,MANUAL"`
	ExecutorID   string    `json:"executorId" doc:"The process, the integration, or the person."`
	StartTime    time.Time `json:"startTime"`
	EndTime      time.Time `json:"endTime"`
	ErrorCode    string    `json:"errorCode" doc:"TIMEOUT where it timed out."`
	ErrorMessage string    `json:"errorMessage"`
	StackTrace   string    `json:"stackTrace"`
	Retryable    bool      `json:"retryable"`
}

// TaskCanceled is told once, when a task is cancelled.
type TaskCanceled struct {
	TaskID         string    `json:"taskId" format:"uuid"`
	WorkflowID     string    `json:"workflowId"`
	TaskType       string    `json:"taskType" enum:"AUTOMATED,INTEGRATION,MANUAL"`
	CanceledBy     string    `json:"canceledBy"`
	Reason         string    `json:"reason"`
	PreviousStatus string    `json:"previousStatus" enum:"PENDING,ASSIGNED,RUNNING"`
	CanceledAt     time.Time `json:"canceledAt"`
}

// TaskRetry is told when an attempt failed and another is due. RetryDelay is in
// milliseconds.
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

// TaskAssigned is told when a manual task gets, or changes, its person or group.
type TaskAssigned struct {
	TaskID          string    `json:"taskId" format:"uuid"`
	WorkflowID      string    `json:"workflowId"`
	AssigneeID      string    `json:"assigneeId" doc:"Empty where a group has it."`
	AssigneeName    string    `json:"assigneeName"`
	TaskName        string    `json:"taskName"`
	TaskDescription string    `json:"taskDescription"`
	Priority        string    `json:"priority" enum:"LOW,MEDIUM,HIGH,CRITICAL"`
	DueDate         time.Time `json:"dueDate"`
	GroupID         string    `json:"groupId,omitempty"` // where a group, not a person, is to do it
}

// What an event row carries beside the columns; the rest of its envelope is read
// from task and task_attempt.
type (
	// StartedNote goes with started where the actor is not who does the work: a
	// person's start is told by somebody else.
	StartedNote struct {
		ExecutorID string `json:"executorId,omitempty"`
	}
	// CompletedNote goes with completed. The comment is a person's, and stays in the
	// audit trail.
	CompletedNote struct {
		OutputSummary json.RawMessage `json:"outputSummary,omitempty"`
		Comment       string          `json:"comment,omitempty"`
	}
	// CanceledNote goes with canceled.
	CanceledNote struct {
		Reason string `json:"reason,omitempty"`
	}
	// RetryNote goes with retry.
	RetryNote struct {
		RetryCount    int       `json:"retryCount"`
		MaxRetries    int       `json:"maxRetries"`
		RetryDelay    int64     `json:"retryDelay"`
		NextRetryTime time.Time `json:"nextRetryTime"`
	}
	// AssignedNote goes with assigned.
	AssignedNote struct {
		AssigneeID      string    `json:"assigneeId,omitempty"`
		AssigneeName    string    `json:"assigneeName,omitempty"`
		GroupID         string    `json:"groupId,omitempty"`
		TaskName        string    `json:"taskName,omitempty"`
		TaskDescription string    `json:"taskDescription,omitempty"`
		DueDate         time.Time `json:"dueDate"`
		Reason          string    `json:"reason,omitempty"`
	}
	// RedrivenNote goes with redriven, and with the release that undoes it. Neither
	// is told; both stay in the audit trail. Input is what the task had before, where
	// the redrive changed it.
	RedrivenNote struct {
		OperationID string          `json:"operationId"`
		Reason      string          `json:"reason,omitempty"`
		Undone      bool            `json:"undone,omitempty"`
		Input       json.RawMessage `json:"input,omitempty"`
	}
	// Problem is the document's error, as task and task_attempt keep it.
	Problem struct {
		Code       string          `json:"code"`
		Message    string          `json:"message"`
		Details    json.RawMessage `json:"details,omitempty"`
		StackTrace string          `json:"stackTrace,omitempty"`
		Timestamp  time.Time       `json:"timestamp"`
		Retryable  bool            `json:"retryable"`
	}
)

// EventID is the id of a task's seq-th event. It is derived, not stored, so that
// no redelivery can ever carry another. report.event_id says the same in SQL.
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

// Subjects that we hear.
const (
	SubjectTaskRequested       = "workflow.task_requested"
	SubjectIntegrationResponse = "integration.response_received"
	SubjectShutdown            = "system.shutdown_requested"
	SubjectMaintenance         = "system.maintenance_mode"
)

// ShutdownRequested is data of system.shutdown_requested. Target is a service or
// one process of it; empty means every process of ours.
type ShutdownRequested struct {
	Target       string   `json:"target,omitempty" maxLength:"256" doc:"A service, a process of it or its host; empty or absent: every process."`
	GraceSeconds *float64 `json:"graceSeconds,omitempty" minimum:"0" maximum:"86400" doc:"How long running work may go on; default the service's own patience."` // default the service's own patience
	Reason       string   `json:"reason,omitempty" maxLength:"1024"`
}

// MaintenanceMode is data of system.maintenance_mode. Lanes are queue names; none
// means all five.
type MaintenanceMode struct {
	Enabled bool       `json:"enabled" doc:"true: give nothing out; false: go on."`
	Lanes   []string   `json:"lanes,omitempty" maxItems:"64" enum:"task-execution-automated,task-execution-integration,task-execution-manual,task-execution-retry,task-execution-deadletter" doc:"None named: all five."`
	Reason  string     `json:"reason,omitempty" maxLength:"1024"`
	Until   *time.Time `json:"until,omitempty" doc:"When it ends by itself; absent: when somebody says so."`
}

// IntegrationResponse is data of integration.response_received.
type IntegrationResponse struct {
	TaskID        string          `json:"taskId" maxLength:"128" doc:"May be in metadata instead."`
	InvocationID  string          `json:"invocationId,omitempty" maxLength:"256" doc:"As the 202 named it."`
	IntegrationID string          `json:"integrationId" maxLength:"256"`
	Status        string          `json:"status" enum:"SUCCESS,FAILED"` // SUCCESS or FAILED
	Data          json.RawMessage `json:"data,omitempty" doc:"The task's output, of SUCCESS."`
	Error         *Problem        `json:"error,omitempty" doc:"Why, of FAILED."`
	Retryable     *bool           `json:"retryable,omitempty" doc:"Whether another attempt may help; default by the error's code."`
}
