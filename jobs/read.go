package jobs

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
)

// get reads a task. A task of another tenant is ErrNotFound.
func get(ctx context.Context, q *db.Queries, tenant string, id uuid.UUID) (db.Task, error) {
	task, err := q.TaskGet(ctx, id)
	return own(tenant, id, task, err)
}

// getWithHolder reads a task and the executor of its running attempt; empty if no attempt runs.
func (t *Tasks) getWithHolder(ctx context.Context, tenant string, id uuid.UUID) (db.Task, string, error) {
	row, err := t.q.TaskHeld(ctx, id)
	task, err := own(tenant, id, row.Task, err)
	return task, row.HeldBy, err
}

func own(tenant string, id uuid.UUID, task db.Task, err error) (db.Task, error) {
	switch {
	case err != nil:
		return db.Task{}, readError("task "+id.String(), err)
	// Not ErrForbidden, which would tell a tenant the ids of the others.
	case task.TenantID != tenant:
		return db.Task{}, fmt.Errorf("task %s: %w", id, ErrNotFound)
	}
	return task, nil
}
