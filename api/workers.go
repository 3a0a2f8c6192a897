package api

import (
	"context"
	"strings"
	"time"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// Worker is one queue that a remote worker asks for.
type Worker struct {
	WorkerID          string    `json:"workerId"`
	Queue             string    `json:"queue"`
	TaskDefinitionIDs []string  `json:"taskDefinitionIds" doc:"The definitions that the worker asks for; empty: all."`
	Present           bool      `json:"present" doc:"true: the worker sent a dequeue or a heartbeat within the last 30 seconds."`
	Since             time.Time `json:"since" doc:"The worker's first request."`
	LastSeen          time.Time `json:"lastSeen" doc:"The worker's last dequeue or heartbeat, accurate to a few seconds."`
}

type listWorkersInput struct {
	Limit  int32  `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"The largest number of items on a page."`
	Cursor string `query:"cursor" maxLength:"512" pattern:"^[A-Za-z0-9_-]+$" doc:"nextCursor of the previous page."`
}

// WorkerPage is a page of workers, by name and queue.
type WorkerPage struct {
	Items      []Worker `json:"items"`
	NextCursor *string  `json:"nextCursor" doc:"The cursor of the next page; null on the last page."`
}

type listWorkersOutput struct{ Body *WorkerPage }

var listWorkersDoc = doc{
	id: "listWorkers", tag: tagLeases, summary: "List remote workers",
	description: "Lists the workers that asked for work within the last hour, with one item for each queue that a worker asks for. A dequeue " +
		"appears here after a few seconds.",
	answer: map[string]any{"items": []any{map[string]any{
		"workerId": "w-7", "queue": jobs.LaneAutomated, "taskDefinitionIds": []any{"render-report"}, "present": true,
		"since": "2026-01-15T08:00:00Z", "lastSeen": "2026-01-15T10:30:00Z",
	}}, "nextCursor": nil},
}

func (h *leaseHandlers) listWorkers(ctx context.Context, in *listWorkersInput) (*listWorkersOutput, error) {
	tenant := callerOf(ctx).Tenant
	last, err := after(in.Cursor, "workers", tenant)
	if err != nil {
		return nil, err
	}

	// The names of workers contain no newline.
	worker, queue, _ := strings.Cut(string(last), "\n")
	out := &WorkerPage{Items: []Worker{}}
	// The query asks for one row more than a page has, to know whether another page follows.
	err = h.read(ctx, func(q *db.Queries) error {
		rows, err := q.WorkerList(ctx, db.WorkerListParams{TenantID: tenant, AfterWorker: worker, AfterQueue: queue, Page: in.Limit + 1})
		if err != nil {
			return err
		}
		if len(rows) > int(in.Limit) {
			rows = rows[:in.Limit]
			end := rows[len(rows)-1]
			next := cursor([]byte(end.WorkerID+"\n"+end.Queue), "workers", tenant)
			out.NextCursor = &next
		}

		for _, row := range rows {
			out.Items = append(out.Items, workerOf(row))
		}
		return nil
	})
	if err != nil {
		return nil, readFailed("list workers", err)
	}

	return &listWorkersOutput{out}, nil
}

func workerOf(row db.WorkerListRow) Worker {
	return Worker{
		WorkerID: row.WorkerID, Queue: row.Queue, TaskDefinitionIDs: row.DefinitionIds,
		Present: row.ReadAt.Sub(row.SeenAt) < jobs.Silence, Since: row.Since.UTC(), LastSeen: row.SeenAt.UTC(),
	}
}
