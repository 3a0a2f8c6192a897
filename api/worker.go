package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// LeasePath is the path of a lease.
type LeasePath struct {
	LeaseToken string `path:"leaseToken" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9_-]+$" doc:"The leaseToken of the dequeue."`
}

// Heartbeat is the body of POST …/heartbeat.
type Heartbeat struct {
	ExtendMs   int64           `json:"extendMs,omitempty" minimum:"1000" maximum:"43200000" doc:"The length of the lease from now, in milliseconds. Extensions do not add up, and never pass the attempt's timeout. Default: the visibility timeout."`
	Progress   json.RawMessage `json:"progress,omitempty" doc:"The progress of the attempt, such as {percent, message}."`
	Checkpoint json.RawMessage `json:"checkpoint,omitempty" doc:"The state from which the next attempt should continue if this attempt ends early."`
}

// BulkHeartbeat is one item of POST …/heartbeats.
type BulkHeartbeat struct {
	LeaseToken string `json:"leaseToken" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9_-]+$"`
	Heartbeat
}

// Heartbeats is the body of POST …/heartbeats.
type Heartbeats struct {
	Heartbeats []BulkHeartbeat `json:"heartbeats" minItems:"1" maxItems:"1000"`
}

// HeartbeatAnswer is the new end of a lease and a directive.
type HeartbeatAnswer struct {
	LeaseExpiresAt time.Time      `json:"leaseExpiresAt"`
	Directive      jobs.Directive `json:"directive" enum:"CONTINUE,CANCEL,DRAIN" doc:"CANCEL: the result is not wanted any more. DRAIN: finish the attempt, and take no more from this process."`
	Reason         string         `json:"reason,omitempty"`
}

// HeartbeatResult is a HeartbeatAnswer or an error.
type HeartbeatResult struct {
	LeaseExpiresAt *time.Time     `json:"leaseExpiresAt,omitempty"`
	Directive      jobs.Directive `json:"directive,omitempty" enum:"CONTINUE,CANCEL,DRAIN"`
	Reason         string         `json:"reason,omitempty"`
	Error          *ErrorBody     `json:"error,omitempty" doc:"LEASE_LOST, TASK_TERMINAL, NOT_FOUND or FORBIDDEN."`
}

// HeartbeatResults has one result for each heartbeat, in their order.
type HeartbeatResults struct {
	Results []HeartbeatResult `json:"results"`
}

type heartbeatInput struct {
	LeasePath
	Body *Heartbeat `required:"false"`
}

type heartbeatOutput struct{ Body *HeartbeatAnswer }

type heartbeatsInput struct{ Body Heartbeats }

type heartbeatsOutput struct{ Body *HeartbeatResults }

// LeaseCompletion is the body of POST …/complete.
type LeaseCompletion struct {
	Output json.RawMessage `json:"output,omitempty" doc:"Validated against the definition's outputSchema. An invalid output is a 422, and the lease is kept."`
}

// AttemptFailure is the body of POST …/fail.
type AttemptFailure struct {
	ErrorCode    string          `json:"errorCode" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9_.:-]+$" doc:"Compared with the retry policy's retryableErrors. TIMEOUT also means that the attempt timed out: without a retry left the task becomes TIMED_OUT."`
	ErrorMessage string          `json:"errorMessage,omitempty" maxLength:"2000"`
	Details      json.RawMessage `json:"details,omitempty"`
	StackTrace   string          `json:"stackTrace,omitempty" maxLength:"16384"`
	Retryable    *bool           `json:"retryable,omitempty" doc:"false: the task fails without a retry. Default: the retry policy decides."`
	RetryAfterMs *int64          `json:"retryAfterMs,omitempty" minimum:"0" maximum:"86400000" nullable:"true" doc:"The earliest time of the next attempt from now, in milliseconds. It can lengthen the policy's delay, never shorten it."`
}

// Releasing is the body of POST …/release.
type Releasing struct {
	DelayMs int64  `json:"delayMs,omitempty" minimum:"0" maximum:"86400000" doc:"How long the task waits before the next attempt, in milliseconds."`
	Reason  string `json:"reason,omitempty" maxLength:"1000" doc:"Kept in the audit trail."`
}

// AttemptEnd is the response to the end of an attempt.
type AttemptEnd struct {
	TaskID        string      `json:"taskId" format:"uuid"`
	Status        jobs.Status `json:"status" doc:"The task's current status. PENDING: the task waits for its next attempt."`
	Attempt       int32       `json:"attempt"`
	NextRetryTime *time.Time  `json:"nextRetryTime" doc:"The time of the next attempt; null if none is scheduled."`
	Version       int32       `json:"version"`
}

type attemptEndOutput struct{ Body *AttemptEnd }

type completeLeaseInput struct {
	LeasePath
	Body *LeaseCompletion `required:"false"`
}

type failLeaseInput struct {
	LeasePath
	Body AttemptFailure
}

type releaseLeaseInput struct {
	LeasePath
	Body *Releasing `required:"false"`
}

const lateText = " An expired lease stays valid until the task has another holder; after that the response is 409 LEASE_LOST, or 410 " +
	"TASK_TERMINAL if the task has ended. Repeating the request gets the same response; a different result is 409 CONFLICT."

var lateErrors = []int{http.StatusNotFound, http.StatusConflict, http.StatusGone, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType}

var exampleEnd = map[string]any{"taskId": "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", "status": "COMPLETED", "attempt": 1, "nextRetryTime": nil, "version": 3}

var heartbeatDoc = doc{
	id: "heartbeat", tag: tagLeases, summary: "Extend a lease",
	description: "Returns the new end of the lease and a directive. The worker of a cancelled task gets CANCEL until its lease would have " +
		"ended.",
	errors: lateErrors, optional: true, ownKey: true,
	request: map[string]any{"extendMs": 30000, "progress": map[string]any{"percent": 40, "message": "rendering"}, "checkpoint": map[string]any{"page": 12}},
	answer:  map[string]any{"leaseExpiresAt": "2026-01-15T10:30:30Z", "directive": "CONTINUE"},
}

var heartbeatsDoc = doc{
	id: "heartbeats", tag: tagLeases, summary: "Extend many leases",
	description: "Returns one result for each lease, in their order. A lost lease does not affect the others.",
	errors:      []int{413, 415},
	ownKey:      true,
	request:     map[string]any{"heartbeats": []any{map[string]any{"leaseToken": exampleToken, "extendMs": 30000}}},
	answer:      map[string]any{"results": []any{map[string]any{"leaseExpiresAt": "2026-01-15T10:30:30Z", "directive": "CONTINUE"}}},
}

var completeLeaseDoc = doc{
	id: "completeLease", tag: tagLeases, summary: "Complete the task", description: "Completes the task with its output." + lateText,
	errors: lateErrors, optional: true,
	request: map[string]any{"output": map[string]any{"pages": 24}}, answer: exampleEnd,
}

var failLeaseDoc = doc{
	id: "failLease", tag: tagLeases, summary: "Fail the attempt",
	description: "Ends the attempt. The task's retry policy decides whether another attempt follows; otherwise the task becomes FAILED, and a " +
		"dead letter." + lateText,
	errors:  lateErrors,
	request: map[string]any{"errorCode": "TIMEOUT", "errorMessage": "the renderer did not answer", "retryable": true},
	answer:  map[string]any{"taskId": exampleEnd["taskId"], "status": "PENDING", "attempt": 1, "nextRetryTime": "2026-01-15T10:30:05Z", "version": 3},
}

var releaseLeaseDoc = doc{
	id: "releaseLease", tag: tagLeases, summary: "Release the task",
	description: "Returns the task to its queue. The attempt does not count: the next one has the same number and a new lease token." + lateText,
	errors:      lateErrors, optional: true,
	request: map[string]any{"delayMs": 0, "reason": "shutting down"},
	answer:  map[string]any{"taskId": exampleEnd["taskId"], "status": "PENDING", "attempt": 0, "nextRetryTime": nil, "version": 3},
}

func (h *leaseHandlers) heartbeat(ctx context.Context, in *heartbeatInput) (*heartbeatOutput, error) {
	if err := h.mayHold(ctx, in.LeaseToken); err != nil {
		return nil, err
	}

	beat := jobs.Heartbeat{Token: in.LeaseToken}
	if in.Body != nil {
		beat.Extend, beat.Progress, beat.Checkpoint = milliseconds(in.Body.ExtendMs), given(in.Body.Progress), given(in.Body.Checkpoint)
	}

	out, err := h.tasks.Leases.Heartbeat(ctx, callerOf(ctx).Tenant, []jobs.Heartbeat{beat})
	if err != nil {
		return nil, err
	}
	// The only heartbeat's error is the response.
	if out[0].Err != nil {
		return nil, out[0].Err
	}

	return &heartbeatOutput{&HeartbeatAnswer{LeaseExpiresAt: out[0].ExpiresAt, Directive: out[0].Directive, Reason: out[0].Reason}}, nil
}

func (h *leaseHandlers) heartbeats(ctx context.Context, in *heartbeatsInput) (*heartbeatsOutput, error) {
	// One was spent when the token was checked.
	if p := h.gate.spend(callOf(ctx), len(in.Body.Heartbeats), 1); p != nil {
		return nil, p
	}

	results := make([]HeartbeatResult, len(in.Body.Heartbeats))
	var beats []jobs.Heartbeat
	// Positions of the valid heartbeats in the results.
	var places []int
	// A lease that the caller may not hold gets its own error and is not part of the call.
	for i, b := range in.Body.Heartbeats {
		if err := h.mayHold(ctx, b.LeaseToken); err != nil {
			results[i].Error = &problemOf(ctx, err).Err
			continue
		}
		places = append(places, i)
		beats = append(beats, jobs.Heartbeat{Token: b.LeaseToken, Extend: milliseconds(b.ExtendMs), Progress: given(b.Progress), Checkpoint: given(b.Checkpoint)})
	}

	out, err := h.tasks.Leases.Heartbeat(ctx, callerOf(ctx).Tenant, beats)
	if err != nil {
		return nil, err
	}

	for n, one := range out {
		if one.Err != nil {
			results[places[n]].Error = &problemOf(ctx, one.Err).Err
			continue
		}
		results[places[n]] = HeartbeatResult{LeaseExpiresAt: &one.ExpiresAt, Directive: one.Directive, Reason: one.Reason}
	}

	return &heartbeatsOutput{&HeartbeatResults{results}}, nil
}

func (h *leaseHandlers) completeLease(ctx context.Context, in *completeLeaseInput) (*attemptEndOutput, error) {
	if err := h.mayHold(ctx, in.LeaseToken); err != nil {
		return nil, err
	}

	var output json.RawMessage
	if in.Body != nil {
		output = given(in.Body.Output)
	}

	row, err := h.tasks.Leases.Complete(ctx, callerOf(ctx).Tenant, in.LeaseToken, output)
	return ended(ctx, row, err)
}

func (h *leaseHandlers) failLease(ctx context.Context, in *failLeaseInput) (*attemptEndOutput, error) {
	if err := h.mayHold(ctx, in.LeaseToken); err != nil {
		return nil, err
	}

	b := in.Body
	// Absent, null and 0 mean the same here: the policy's delay.
	var later time.Duration
	if b.RetryAfterMs != nil {
		later = milliseconds(*b.RetryAfterMs)
	}

	row, err := h.tasks.Leases.Fail(ctx, callerOf(ctx).Tenant, in.LeaseToken, &jobs.Failure{
		Code: b.ErrorCode, Message: b.ErrorMessage, Details: given(b.Details), StackTrace: b.StackTrace, Retryable: b.Retryable,
	}, later)
	return ended(ctx, row, err)
}

func (h *leaseHandlers) releaseLease(ctx context.Context, in *releaseLeaseInput) (*attemptEndOutput, error) {
	if err := h.mayHold(ctx, in.LeaseToken); err != nil {
		return nil, err
	}

	var delay time.Duration
	reason := ""
	if in.Body != nil {
		delay, reason = milliseconds(in.Body.DelayMs), in.Body.Reason
	}

	row, err := h.tasks.Leases.Release(ctx, callerOf(ctx).Tenant, in.LeaseToken, delay, reason)
	return ended(ctx, row, err)
}

// ended is the response to the end of an attempt, or the error.
func ended(ctx context.Context, row db.Task, err error) (*attemptEndOutput, error) {
	if err != nil {
		return nil, err
	}
	about(ctx, row.TaskID)
	return &attemptEndOutput{&AttemptEnd{
		TaskID: row.TaskID.String(), Status: jobs.Status(row.Status), Attempt: row.Attempt, NextRetryTime: utc(row.NextRetryAt), Version: row.Version,
	}}, nil
}
