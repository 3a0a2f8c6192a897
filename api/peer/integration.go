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
	once   *caller // the same, for a question that is not worth a retry
}

// InvokeRequest is what an integration is to do. CredentialRef is a reference:
// the secret itself is resolved over there and never comes here.
type InvokeRequest struct {
	Method        string          `json:"method"`
	Parameters    json.RawMessage `json:"parameters"` // default {}
	Connection    string          `json:"connection,omitempty"`
	CredentialRef string          `json:"credentialRef,omitempty"`

	Async          bool   `json:"-"` // an acceptance (202) is preferred; the service decides
	IdempotencyKey string `json:"-"` // <taskId>:<attempt>; every repetition carries the same
	CorrelationID  string `json:"-"`
}

// InvokeAnswer is an invocation that succeeded, or was accepted.
type InvokeAnswer struct {
	Data         json.RawMessage // any JSON value; nil if there was none, and when accepted
	InvocationID string          // set when accepted: the answer comes by event
}

// integrationID is narrow because neither joining nor escaping a path keeps
// ".." from climbing out of it.
var integrationID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// Invoke has the integration id do something, once as far as it answers: a
// *jobs.Failure means one request was made (or none, for a request that cannot
// be sent). Where no answer comes it is asked again under the same
// IdempotencyKey, and a *jobs.Outage says that the policy, or ctx, has ended.
func (c *Integrations) Invoke(ctx context.Context, id string, req InvokeRequest) (InvokeAnswer, error) {
	if !integrationID.MatchString(id) {
		return InvokeAnswer{}, refusal("VALIDATION_ERROR", "there can be no integration of that id")
	}
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

// invoked reads a good answer: 200 {status:"SUCCESS", data} or 202
// {invocationId}, and nothing else.
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
		if string(body.Data) == "null" {
			body.Data = nil
		}
		return InvokeAnswer{Data: body.Data}, nil
	default:
		return InvokeAnswer{}, got.unusable("it is neither a success nor an acceptance")
	}
}

// Connection says how a connection of an integration stands, such as CONNECTED; an
// empty name is the integration's own. It is asked once: who wants to know goes on
// without the answer. One that is not known is a *jobs.Failure of the service's words.
func (c *Integrations) Connection(ctx context.Context, id, connection string) (string, error) {
	if !integrationID.MatchString(id) {
		return "", refusal("VALIDATION_ERROR", "there can be no integration of that id")
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
