package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/canonical"
)

// Every write accepts an Idempotency-Key, so that a client that lost the response can send the
// request again and get the same response. jobs.Call describes the mechanism. The key is looked up
// once the caller is authenticated and the body is known to be valid JSON, before any other
// validation.
//
// Three kinds of writes handle their keys themselves (doc.ownKey): a create, whose key is stored
// with the task; a dequeue, whose requestId identifies its leases; and heartbeats, which are
// idempotent anyway.

const (
	keyHeader      = "Idempotency-Key"
	replayedHeader = "Idempotency-Replayed"
	keyPattern     = "^[ -~]+$"
	longestKey     = 255
)

// idempotency looks up the key of a write before its handler runs, and records the response after.
type idempotency struct {
	tasks *jobs.Tasks
	gate  *gate // the person's own token is part of a request
}

// keyParam documents the header.
func keyParam() *huma.Param {
	s := &huma.Schema{Type: huma.TypeString, MinLength: new(1), MaxLength: new(longestKey), Pattern: keyPattern}
	s.PrecomputeMessages()
	return &huma.Param{
		Name: keyHeader, In: "header", Schema: s,
		Description: "Makes the request repeatable for 24 hours: the same key and body again, by the same caller, get the response of the first request, with Idempotency-Replayed: true, and have no further effect. " +
			"A different body or path is a 409 with details.reason IDEMPOTENCY_KEY_REUSED. Until the first request has ended, the response is a 409 with IDEMPOTENCY_KEY_IN_PROGRESS and Retry-After. A refused request changes nothing, and its key can be used again.",
	}
}

// replayedParam documents the header of a repeated response.
func replayedParam() *huma.Param {
	return &huma.Param{Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{"true"}}, Description: "true: the response is the recorded one of an earlier request with this key."}
}

// keyed returns the recorded response of a repeated request, and lets a new request continue. For
// onBehalf operations the person is part of the comparison of two requests.
func (k *idempotency) keyed(operation string, onBehalf bool) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, _ := humachi.Unwrap(ctx)
		c := callOf(r.Context())
		key := r.Header.Get(keyHeader)
		if key == "" {
			next(ctx)
			return
		}

		call, before, err := k.begin(r, c, operation, key, onBehalf)
		switch {
		case err != nil:
			writeProblem(c, problemOf(r.Context(), err))
			return
		case before != nil:
			replay(c, before)
			return
		}

		// Runs within the transaction of the write: response and effect are committed together.
		call.Answer = func(made any) (jobs.CallAnswer, error) {
			out, status, err := outputOf(operation, made)
			if err != nil {
				return jobs.CallAnswer{}, err
			}
			return rendered(out, status)
		}

		c.keyed = call
		defer func() {
			// The schema refused the request, or the handler panicked.
			if !c.concluded {
				k.tasks.Calls.Abandon(r.Context(), call)
			}
		}()
		next(ctx)
	}
}

func (k *idempotency) begin(r *http.Request, c *call, operation, key string, onBehalf bool) (*jobs.Call, *jobs.CallAnswer, error) {
	if p := goodKey(key); p != nil {
		return nil, nil, p
	}

	// The same key for another person is a different request.
	person := ""
	if onBehalf {
		who, proven, err := k.gate.forUser(r.Context(), OnBehalf{r.Header.Get("X-User-Token")}, jobs.Person{})
		if err != nil {
			return nil, nil, err
		}
		if proven {
			person = who.ID
		}
	}

	// The operation is part of the key, the path of the comparison: one key for two tasks is an error.
	h := sha256.New()
	for _, text := range []string{"tes call 1", c.path, person} {
		part(h, text)
	}

	// Canonical, so that a client may format the same body differently.
	if len(c.body) > 0 {
		sum, err := canonical.Hash(c.body)
		if err != nil {
			return nil, nil, fmt.Errorf("hash the body: %w", err)
		}
		_, _ = h.Write(sum[:])
	}

	id := jobs.CallID{Tenant: c.caller.Tenant, Caller: c.caller.Name, Operation: operation, Key: key}
	call, before, err := k.tasks.Calls.Begin(r.Context(), id, h.Sum(nil))
	if err != nil {
		return nil, nil, fmt.Errorf("look up the idempotency key: %w", err)
	}

	return call, before, nil
}

// goodKey validates a key as huma would, which runs only later.
func goodKey(key string) *Problem {
	if len(key) > longestKey {
		return violation("header."+keyHeader, "expected length <= 255")
	}

	for i := range len(key) {
		if key[i] < ' ' || key[i] > '~' {
			return violation("header."+keyHeader, "expected printable ASCII characters")
		}
	}

	return nil
}

// conclude ends a call: with the response that was committed together with the effect, or else with
// the given one. A refused call has had no effect.
func (k *idempotency) conclude(ctx context.Context, out any, status int, err error) error {
	c := callOf(ctx)
	if c.keyed == nil {
		return err
	}

	c.concluded = true
	switch {
	case err != nil || c.unsure:
		k.tasks.Calls.Abandon(ctx, c.keyed)
		return err
	case c.keyed.StoredAnswer() != nil:
		// The response was recorded in the transaction of the write.
		return nil
	}
	// Nothing was committed, as by a dry run, or by a cancel of a cancelled task.
	answer, err := rendered(out, status)
	if err != nil {
		return err
	}

	if err := k.tasks.Calls.StoreAnswer(ctx, c.keyed, answer); err != nil {
		return fmt.Errorf("record the response: %w", err)
	}
	return nil
}

// outputOf converts the result of a committed transaction to the operation's response.
func outputOf(operation string, made any) (out any, status int, err error) {
	switch made := made.(type) {
	case *db.Task:
		if operation == claimNextTaskDoc.id {
			return claimedNext(made), http.StatusOK, nil
		}
		return answer(made), http.StatusOK, nil
	case jobs.Put:
		return putAnswer(made), http.StatusOK, nil
	case jobs.Matched:
		return redriveAnswer(made, false), redriveDoc.status, nil
	case jobs.Discarded:
		return discardAnswer(made), http.StatusOK, nil
	case jobs.Pause:
		return pauseAnswer(made), http.StatusOK, nil
	}
	return nil, 0, fmt.Errorf("%s: no response for a result of type %T", operation, made)
}

// rendered encodes an output as huma writes it: status, headers and body.
func rendered(out any, status int) (answer jobs.CallAnswer, err error) {
	answer = jobs.CallAnswer{Status: status, Header: map[string]string{}}
	v := reflect.Indirect(reflect.ValueOf(out))
	if v.Kind() != reflect.Struct {
		return answer, errors.New("an output must be a struct")
	}

	// The tags are huma's: fields with the tag header are headers; Status and Body have fixed names.
	for i := range v.NumField() {
		field, value := v.Type().Field(i), v.Field(i)
		name := field.Tag.Get("header")
		switch {
		case name != "" && value.String() != "":
			answer.Header[name] = value.String()
		case field.Name == "Status" && value.Int() != 0:
			answer.Status = int(value.Int())
		case field.Name == "Body":
			var body bytes.Buffer
			if err := huma.DefaultJSONFormat.Marshal(&body, value.Interface()); err != nil {
				return answer, fmt.Errorf("encode the response: %w", err)
			}
			answer.Body = body.Bytes()
		}
	}

	return answer, nil
}

// replay writes a recorded response.
func replay(c *call, before *jobs.CallAnswer) {
	header := c.Header()
	for name, value := range before.Header {
		header.Set(name, value)
	}
	header.Set(replayedHeader, "true")
	header.Set("Content-Type", "application/json")
	c.WriteHeader(before.Status)
	_, _ = c.Write(before.Body)
}
