package jobs

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs/canonical"
)

// hash identifies the body of a request with a key; nil without a key.
func (r Request) hash() ([]byte, error) {
	if r.Key == "" {
		return nil, nil
	}
	sum, err := canonical.Hash(r.Body)
	if err != nil {
		return nil, fmt.Errorf("hash the request: %w", err)
	}
	return sum[:], nil
}

type tenantKey struct{ tenant, key string }

// String is for the log, where keys do not belong.
func (k tenantKey) String() string { return "an idempotency key of tenant " + strconv.Quote(k.tenant) }

// errKeyUnknown is the result of a creation whose key was taken at the insert and is unknown at the
// lookup.
var errKeyUnknown = fmt.Errorf("idempotency key: %w", ErrUnavailable)

// repeat is a request whose task an earlier request with the same key may have created.
type repeat struct {
	key    tenantKey
	hash   []byte // of the body, which must be the same
	result *Created
}

// findTasks sets the results of repeated requests. The result of a request with an unknown key
// stays as it is.
func (t *Tasks) findTasks(ctx context.Context, all []repeat) {
	keys := map[string][]string{}
	for _, r := range all {
		keys[r.key.tenant] = append(keys[r.key.tenant], r.key.key)
	}

	found := map[tenantKey]db.TaskRequestGetRow{}
	var ids []uuid.UUID
	var failed error
	// One statement for each tenant: a key belongs to its tenant.
	for tenant, list := range keys {
		rows, err := t.q.TaskRequestGet(ctx, db.TaskRequestGetParams{TenantID: tenant, RequestKeys: list})
		if err != nil {
			failed = readError("idempotency key", err)
		}

		for _, row := range rows {
			found[tenantKey{tenant, row.RequestKey}] = row
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

	for _, r := range all {
		row, known := found[r.key]
		task, there := tasks[row.TaskID]
		switch {
		case failed != nil:
			r.result.Err = failed
		// The result stays: the request's own rejection, or errKeyUnknown.
		case !known:
		case !bytes.Equal(row.BodyHash, r.hash):
			r.result.Err = fmt.Errorf("task %s: %w", row.TaskID, ErrKeyReused)
		case !there:
			r.result.Err = fmt.Errorf("task %s: %w", row.TaskID, ErrNotFound)
		default:
			r.result.Task, r.result.Err = task, nil
		}
	}
}
