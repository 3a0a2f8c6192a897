package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

type getTaskInput struct{ TaskPath }

var getTaskDoc = doc{
	id: "getTask", tag: tagTasks, summary: "Get a task",
	description: "Returns the current state of a task. A task of another tenant is a 404.",
	errors:      []int{404}, answer: exampleTask,
}

func (h *taskHandlers) getTask(ctx context.Context, in *getTaskInput) (*taskOutput, error) {
	id, err := in.id()
	if err != nil {
		return nil, err
	}

	about(ctx, id)
	// Progress is kept beside the task, and only for attempts of remote workers.
	var row db.Task
	var progress json.RawMessage
	err = h.read(ctx, func(q *db.Queries) (err error) {
		row, err = q.TaskGet(ctx, id)
		if err != nil || row.Status != db.TaskStatusRUNNING || row.Executor != jobs.ExecutorWorker {
			return err
		}
		progress, err = q.TaskProgress(ctx, db.TaskProgressParams{TaskID: id, Attempt: row.Attempt})
		if errors.Is(err, pgx.ErrNoRows) {
			// The attempt has reported no progress yet.
			return nil
		}
		return err
	})
	if err != nil {
		return nil, readFailed("get task "+in.TaskID, err)
	}

	// Row-level security has filtered already; this check holds if a policy is missing.
	if row.TenantID != callerOf(ctx).Tenant {
		return nil, fmt.Errorf("get task %s: %w", in.TaskID, jobs.ErrNotFound)
	}

	out := answer(&row)
	out.Body.Progress = progress
	return out, nil
}
