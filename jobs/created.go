package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
)

// Created is what became of one request of many.
type Created struct {
	Task  db.Task
	Fresh bool // made by this request, not by one before it
	Err   error
}

// CreateMany is Create for many at once, which share their commits. Each stands for
// itself: what is wrong with one is its own error. Two with one key are as two
// requests, one after the other.
func (t *Tasks) CreateMany(ctx context.Context, reqs []Request) []Created {
	out := make([]Created, len(reqs))
	all := make([]*creation, len(reqs))
	fit := make([]*creation, 0, len(reqs))
	var unfit []rejectedRequest
	var unfitAt []int
	for i, req := range reqs {
		c, err := t.prepare(ctx, req)
		if err != nil {
			unfit, unfitAt = append(unfit, rejectedRequest{req, err}), append(unfitAt, i)
			continue
		}
		all[i] = c
		fit = append(fit, c)
	}

	if len(fit) > 0 {
		t.creates.Add(fit...)
	}

	for i, was := range t.replayRejected(ctx, unfit) {
		out[unfitAt[i]] = was
	}

	var old []*creation
	var places []int
	for i, c := range all {
		if c == nil {
			continue
		}

		if out[i].Err = c.wait(ctx); out[i].Err != nil {
			continue
		}

		if out[i].Fresh = c.created; c.created {
			out[i].Task = c.made()
		} else {
			old, places = append(old, c), append(places, i)
		}
	}

	for i, was := range t.tasksOfKeys(ctx, old) {
		out[places[i]] = was
	}

	return out
}

// rejectedRequest is a request of which no task can be made, and why.
type rejectedRequest struct {
	req Request
	err error
}

// replayRejected answers requests of which no task can be made, or can be made any more: the
// definition or the settings may have changed since the first request with the key. That
// one's task is the answer, where there is one; a task that can be made costs no look.
func (t *Tasks) replayRejected(ctx context.Context, all []rejectedRequest) []Created {
	out := make([]Created, len(all))
	var asked []*creation
	var places []int
	for i, r := range all {
		out[i].Err = r.err
		if r.req.Key == "" || errors.Is(r.err, ErrUnavailable) {
			continue
		}

		hash, err := r.req.hash()
		if err != nil {
			continue // its body is what is wrong with it
		}

		asked, places = append(asked, &creation{req: r.req, hash: hash}), append(places, i)
	}

	if len(asked) == 0 {
		return out
	}

	for i, was := range t.tasksOfKeys(ctx, asked) {
		if !errors.Is(was.Err, errKeyUnknown) {
			out[places[i]] = was
		}
	}

	return out
}

// errKeyUnknown is a key that no task was made by.
var errKeyUnknown = fmt.Errorf("idempotency key: %w", ErrUnavailable)

// tasksOfKeys finds the tasks that earlier requests with the same keys made.
func (t *Tasks) tasksOfKeys(ctx context.Context, all []*creation) []Created {
	out := make([]Created, len(all))
	keys := map[string][]string{}
	for _, c := range all {
		keys[c.req.Tenant] = append(keys[c.req.Tenant], c.req.Key)
	}

	made := map[tenantKey]db.TaskRequestGetRow{}
	var ids []uuid.UUID
	var failed error
	for tenant, list := range keys {
		rows, err := t.q.TaskRequestGet(ctx, db.TaskRequestGetParams{TenantID: tenant, RequestKeys: list})
		if err != nil {
			failed = readError("idempotency key", err)
		}

		for _, row := range rows {
			made[tenantKey{tenant, row.RequestKey}] = row
			ids = append(ids, row.TaskID)
		}
	}

	tasks := map[uuid.UUID]db.Task{}
	if len(ids) > 0 && failed == nil {
		rows, err := t.q.TaskGetMany(ctx, ids)
		if err != nil {
			failed = readError("tasks of idempotency keys", err)
		}
		for _, row := range rows {
			tasks[row.TaskID] = row
		}
	}

	for i, c := range all {
		row, known := made[tenantKey{c.req.Tenant, c.req.Key}]
		task, there := tasks[row.TaskID]
		switch {
		case failed != nil:
			out[i].Err = failed
		case !known:
			out[i].Err = errKeyUnknown
		case !bytes.Equal(row.BodyHash, c.hash):
			out[i].Err = fmt.Errorf("task %s: %w", row.TaskID, ErrKeyReused)
		case !there:
			out[i].Err = fmt.Errorf("task %s: %w", row.TaskID, ErrNotFound)
		default:
			out[i].Task = task
		}
	}

	return out
}
