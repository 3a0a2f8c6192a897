package peer

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"regexp"
)

// Integrations calls the Integration Service.
type Integrations struct {
	caller *caller
	once   *caller // without retries
}

// InvokeRequest is a call of an integration. CredentialRef is a reference: the Integration Service
// resolves the secret, which never reaches this process.
type InvokeRequest struct {
	Method        string          `json:"method"`
	Parameters    json.RawMessage `json:"parameters"` // default {}
	Connection    string          `json:"connection,omitempty"`
	CredentialRef string          `json:"credentialRef,omitempty"`

	Async          bool   `json:"-"` // an acceptance (202) is preferred; the service decides
	IdempotencyKey string `json:"-"` // <taskId>:<attempt>; every repetition carries the same
	CorrelationID  string `json:"-"`
}

// InvokeAnswer is the result of an invocation that succeeded or was accepted.
type InvokeAnswer struct {
	Data         json.RawMessage // any JSON value; nil: none, or the invocation was accepted
	InvocationID string          // of an accepted invocation, whose result arrives as an event
}

// integrationID is strict, because neither joining nor escaping a path would stop "..".
var integrationID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// Invoke calls an integration. A *jobs.Failure means that the service was asked once and refused
// (or not at all, for a request that cannot be sent). Without a response the request is repeated
// under the same IdempotencyKey; a *jobs.Outage means that the policy, or ctx, has ended.
func (c *Integrations) Invoke(ctx context.Context, id string, req InvokeRequest) (InvokeAnswer, error) {
	if !integrationID.MatchString(id) {
		return InvokeAnswer{}, refusal("VALIDATION_ERROR", "the integration's id is not valid")
	}

	// The member is required, and an object.
	if req.Parameters == nil {
		req.Parameters = json.RawMessage("{}")
	}

	got, err := c.caller.ask(ctx, question{
		method:         http.MethodPost,
		path:           "/api/integrations/" + id + "/invoke",
		body:           req,
		idempotencyKey: req.IdempotencyKey,
		correlationID:  req.CorrelationID,
		async:          req.Async,
		of:             id,
	})
	if err != nil {
		return InvokeAnswer{}, err
	}

	if err := got.refused(); err != nil {
		return InvokeAnswer{}, err
	}

	return invoked(got)
}

// invoked reads a success: 200 {status:"SUCCESS", data} or 202 {invocationId}. Other bodies are
// refused.
func invoked(got *answer) (InvokeAnswer, error) {
	var body struct {
		Status       string          `json:"status"`
		Data         json.RawMessage `json:"data"`
		InvocationID string          `json:"invocationId"`
	}

	if err := got.decode(&body); err != nil {
		return InvokeAnswer{}, err
	}

	switch {
	case got.status == http.StatusAccepted && body.InvocationID != "":
		return InvokeAnswer{InvocationID: body.InvocationID}, nil
	case got.status == http.StatusOK && body.Status == "SUCCESS":
		// Null and absent are the same result.
		if string(body.Data) == "null" {
			body.Data = nil
		}
		return InvokeAnswer{Data: body.Data}, nil
	default:
		return InvokeAnswer{}, got.unusable("neither a success nor an acceptance")
	}
}

// Connection returns the state of an integration's connection, such as CONNECTED; an empty name
// means the integration's own connection. It sends one request, because its callers can continue
// without the result. An unknown connection is a *jobs.Failure with the service's message.
func (c *Integrations) Connection(ctx context.Context, id, connection string) (string, error) {
	if !integrationID.MatchString(id) {
		return "", refusal("VALIDATION_ERROR", "the integration's id is not valid")
	}

	q := question{method: http.MethodGet, path: "/api/integrations/" + id + "/connection"}
	if connection != "" {
		q.query = url.Values{"connection": {connection}}
	}

	var body struct {
		Status string `json:"status"`
	}

	err := c.once.call(ctx, q, &body)
	return body.Status, err
}
