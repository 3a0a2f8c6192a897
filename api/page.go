package api

import (
	"context"
	"encoding/json"
	"math"
	"slices"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
)

// The bounds of a page, in bytes: of each payload, unless include=payloads is given, and of the
// whole page. An item that is longer than a page is returned alone.
const (
	mostListed = 4 << 10
	mostPage   = 4 << 20
)

// payloads is the value of include that returns long payloads.
const payloads = "payloads"

// room is the remaining capacity of a page.
type room struct{ items, bytes int }

// takes reserves capacity for an item and returns whether it fits. The first item always fits.
func (r *room) takes(size int) bool {
	if r.items > 0 && r.bytes+size > mostPage {
		return false
	}
	r.items++
	r.bytes += size
	return true
}

// fill reads a page of at most limit items, in portions, so that it never holds more than a page
// and a portion. read returns up to n items after last; nil: from the beginning. more is true if
// another page follows.
func fill[R any](limit, portion int, read func(last *R, n int32) ([]R, error), size func(*R) int) (rows []R, more bool, err error) {
	var page room
	var last *R
	for {
		// One item more than the page has, to know whether another page follows.
		n := min(portion, limit+1-len(rows))
		part, err := read(last, int32(n))
		if err != nil {
			return nil, false, err
		}
		for i := range part {
			if len(rows) == limit || !page.takes(size(&part[i])) {
				return rows, true, nil
			}
			rows = append(rows, part[i])
		}

		// The list has ended.
		if len(part) < n {
			return rows, false, nil
		}
		last = &rows[len(rows)-1]
		// As many as will fit if they are like the previous ones.
		portion = min(max((mostPage-page.bytes)*len(rows)/max(page.bytes, 1), 1), 64)
	}
}

// portionOfTasks is the number of tasks read at once, without their long payloads.
const portionOfTasks = 50

// show reads the tasks with these ids in the form of a list, as many as fit on a page. all is false if
// the page is full before the last id.
func show(ctx context.Context, q *db.Queries, ids []uuid.UUID, p PageOf) (items []*Task, all bool, err error) {
	var page room
	items = make([]*Task, 0, len(ids))
	// Short members first: the lengths of the long payloads decide whether they are read.
	for portion := range slices.Chunk(ids, portionOfTasks) {
		rows, err := q.TaskListed(ctx, db.TaskListedParams{TaskIds: portion, Most: mostListed, Statuses: names(p.Status), Types: names(p.Type)})
		if err != nil {
			return nil, false, err
		}
		full := map[uuid.UUID]*db.Task{}
		if p.Include == payloads {
			if full, err = whole(ctx, q, fitting(rows, page)); err != nil {
				return nil, false, err
			}
		}

		for i := range rows {
			row := &rows[i]
			task := listedTask(row)
			if p.Include == payloads && len(task.Truncated) > 0 {
				if size := lengthOf(row); size != math.MaxInt && page.items > 0 && page.bytes+size > mostPage {
					return items, false, nil
				}
				// Payloads of unknown length are read alone.
				if full[row.TaskID] == nil {
					one, err := whole(ctx, q, []uuid.UUID{row.TaskID})
					if err != nil {
						return nil, false, err
					}
					full[row.TaskID] = one[row.TaskID]
				}
				if got := full[row.TaskID]; got != nil {
					task = taskOf(got)
				}
				// The payloads are in the page, or will never be: free the memory.
				delete(full, row.TaskID)
			}
			if !page.takes(task.length()) {
				return items, false, nil
			}
			items = append(items, task)
		}
	}

	return items, true, nil
}

// fitting returns the tasks with left-out payloads of known length that fit on the page together.
func fitting(rows []db.TaskListedRow, page room) (ids []uuid.UUID) {
	for i := range rows {
		size := lengthOf(&rows[i])
		// Short payloads are in the row already, and unmeasured ones are read one by one.
		if size <= 3*mostListed || size == math.MaxInt {
			continue
		}
		if page.bytes += size; page.bytes > mostPage {
			break
		}
		ids = append(ids, rows[i].TaskID)
	}

	return ids
}

// lengthOf is the length of a task's payloads; math.MaxInt if it was not measured.
func lengthOf(row *db.TaskListedRow) int {
	total := 0
	for _, n := range []int32{row.InputBytes, row.OutputBytes, row.ContextBytes} {
		// The query does not measure a payload that is stored in more than 32 KiB.
		if n == math.MaxInt32 {
			return math.MaxInt
		}
		total += int(n)
	}
	return total
}

// whole reads tasks with all payloads.
func whole(ctx context.Context, q *db.Queries, ids []uuid.UUID) (map[uuid.UUID]*db.Task, error) {
	found := make(map[uuid.UUID]*db.Task, len(ids))
	if len(ids) == 0 {
		return found, nil
	}

	rows, err := q.TaskGetMany(ctx, ids)
	if err != nil {
		return nil, err
	}

	for i := range rows {
		found[rows[i].TaskID] = &rows[i]
	}

	return found, nil
}

// listedTask converts a row of a list, in which long payloads are missing.
func listedTask(r *db.TaskListedRow) *Task {
	t := taskOf(&db.Task{
		TaskID: r.TaskID, CreatedAt: r.CreatedAt, StartedAt: r.StartedAt, EndedAt: r.EndedAt, NextRetryAt: r.NextRetryAt,
		AssignedAt: r.AssignedAt, DueAt: r.DueAt, Version: r.Version, Attempt: r.Attempt, Failures: r.Failures, Crashes: r.Crashes,
		Status: r.Status, Type: r.Type, Lane: r.Lane, Revision: r.Revision, Priority: r.Priority, WorkflowID: r.WorkflowID,
		DefinitionID: r.DefinitionID, Executor: r.Executor, CorrelationID: r.CorrelationID, StepID: r.StepID, AssigneeID: r.AssigneeID,
		AssigneeName: r.AssigneeName, GroupID: r.GroupID, Candidates: r.Candidates, RequestID: r.RequestID, Reference: r.Reference,
		CallbackUrl: r.CallbackUrl, Error: r.Error, Input: r.Input, Output: r.Output, Context: r.Context,
	})
	if r.InputBytes > mostListed {
		t.Truncated = append(t.Truncated, "input")
	}

	if r.OutputBytes > mostListed {
		t.Truncated = append(t.Truncated, "output")
	}
	if r.ContextBytes > mostListed {
		t.Truncated, t.WorkflowContext = append(t.Truncated, "workflowContext"), json.RawMessage("null")
	}

	return t
}

// length estimates the bytes of a task in a response, rather too high than too low.
func (t *Task) length() int {
	// The names of the members, with times, numbers and enums.
	const names = 1500
	total := names + len(t.Input) + len(t.Output) + len(t.Error) + len(t.Candidates) + len(t.WorkflowContext)
	for _, s := range []*string{&t.WorkflowID, &t.TaskDefinitionID, &t.CorrelationID, t.StepID, t.Assignee, t.AssigneeName, t.GroupID, t.Reference, t.CallbackURL, t.RequestID} {
		if s != nil {
			// Quotes and backslashes are escaped.
			total += 2 * len(*s)
		}
	}
	return total
}
