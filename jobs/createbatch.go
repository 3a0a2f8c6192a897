package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// creation is a valid request on its way through the batcher.
type creation struct {
	task    db.Task // the row to insert. The flush sets JobID, and CreatedAt to the database's time
	kind    string  // of the task's first job
	timeout time.Duration
	actor   string
	hash    []byte // of the request's body; nil without a key
	event   int64  // the id of the event task.created; 0 until a flush reserves ids
	created bool   // false: an earlier request with the same key has the task

	answer     chan error
	callerGone <-chan struct{}
}

// wait waits until the creation was written or rejected.
func (c *creation) wait(ctx context.Context) error {
	select {
	case err := <-c.answer:
		if err != nil {
			return fmt.Errorf("create task: %w", err)
		}
		return nil
	case <-ctx.Done():
		// The flush may still create the task. A request with the same key will find it.
		return fmt.Errorf("create task: %w: %w", ErrUnavailable, context.Cause(ctx))
	}
}

// createItems are creations on their way through a batchWriter. Their callers wait, and learn at
// once of an absent database.
type createItems struct{ *Tasks }

func (createItems) plural() string { return "creates" }

func (createItems) row(c *creation) any { return c.row() }

// failWaiters answers a batch whose commit is unknown. The task ids belong to this process alone,
// so a lookup of the ids may show that the batch has committed. A statement that waited for a
// lock has written no task, and the lookup would wait for the same lock.
func (t createItems) failWaiters(batch []*creation, err error) (patient []*creation) {
	// The callers' contexts must not end the lookup: it answers the whole batch.
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if !isLockTimeout(err) && findCreated(ctx, t.q, batch) == nil {
		t.answer(ctx, batch)
		return nil
	}

	for _, c := range batch {
		c.answer <- fmt.Errorf("%w: %w", ErrUnavailable, err)
	}

	return nil
}

func (createItems) lockWait(c *creation) lockWait {
	return lockWait{callerGone: c.callerGone, hasCaller: true}
}

func (createItems) reject(c *creation, err error) { c.answer <- err }

func (t *Tasks) flushCreates(batch []*creation) {
	(&batchWriter[*creation]{t, t.creates, createItems{t}}).flush(batch)
}

// row is the row that a creation may have to wait for: a request with the same key, which another
// session is writing.
func (c *creation) row() any {
	if c.task.RequestID == nil {
		return c.task.TaskID
	}
	return tenantKey{c.task.TenantID, *c.task.RequestID}
}

// bytes is the size of a creation to the batcher.
func (c *creation) bytes() int {
	return len(c.task.Input) + len(c.task.Context) + len(c.task.Config)
}

// answer answers a batch that has committed.
func (t createItems) answer(ctx context.Context, batch []*creation) {
	for _, c := range batch {
		c.answer <- nil
	}
	t.cfg.OnEventsCommitted()
	t.wakeFor(ctx, batch)
}

// findCreated looks up a flush with a lost answer. The result is an error unless the batch was
// committed.
func findCreated(ctx context.Context, q *db.Queries, batch []*creation) error {
	ids := make([]uuid.UUID, len(batch))
	for i, c := range batch {
		ids[i] = c.task.TaskID
	}

	rows, err := q.TaskGetMany(ctx, ids)
	if err != nil {
		return fmt.Errorf("look up a flush: %w", err)
	}

	made := make(map[uuid.UUID]time.Time, len(rows))
	for _, row := range rows {
		made[row.TaskID] = row.CreatedAt.UTC()
	}

	for _, c := range batch {
		c.task.CreatedAt, c.created = made[c.task.TaskID]
		// A missing task with a key proves no rollback: an earlier request may have the key.
		if !c.created && c.task.RequestID == nil {
			return errors.New("the connection was lost, and nothing was written")
		}
	}

	return nil
}

func (t createItems) assignIDs(ctx context.Context, batch []*creation) error {
	fresh := 0
	// A creation of a halved batch has its ids already.
	for _, c := range batch {
		if c.event == 0 {
			fresh++
		}
	}

	event, err := t.ids.events(ctx, fresh)
	if err != nil {
		return err
	}

	jobIDs, err := t.ids.job(ctx, fresh)
	if err != nil {
		return err
	}

	for _, c := range batch {
		if c.event == 0 {
			c.event, c.task.JobID, jobIDs = event, jobIDs[0], jobIDs[1:]
			event++
		}
	}

	return nil
}

// write inserts the tasks that no earlier request with the same key has made, and marks these
// as created.
func (t createItems) write(ctx context.Context, on querier, batch []*creation) (answer func(context.Context), err error) {
	fresh, err := db.New(on).TaskCreate(ctx, createParams(batch))
	if err != nil {
		return nil, fmt.Errorf("insert tasks: %w", err)
	}

	made := make(map[uuid.UUID]time.Time, len(fresh))
	for _, row := range fresh {
		made[row.TaskID] = row.CreatedAt.UTC()
	}

	// A task missing from the rows has a key that an earlier request has used.
	for _, c := range batch {
		c.task.CreatedAt, c.created = made[c.task.TaskID]
	}

	return func(ctx context.Context) { t.answer(ctx, batch) }, nil
}

// createParams spreads a batch into the arrays of TaskCreate.
func createParams(batch []*creation) db.TaskCreateParams {
	n := len(batch)
	p := db.TaskCreateParams{
		TaskIds: make([]uuid.UUID, 0, n), JobIds: make([]int64, 0, n), EventIds: make([]int64, 0, n),
	}
	for _, c := range batch {
		task := &c.task
		p.TaskIds = append(p.TaskIds, task.TaskID)
		p.JobIds = append(p.JobIds, task.JobID)
		p.EventIds = append(p.EventIds, c.event)
		p.DueAts = append(p.DueAts, orUnset(task.DueAt))
		p.Types = append(p.Types, string(task.Type))
		p.Lanes = append(p.Lanes, string(task.Lane))
		p.Revisions = append(p.Revisions, task.Revision)
		p.OwnDefinitions = append(p.OwnDefinitions, task.OwnDefinition)
		p.Priorities = append(p.Priorities, task.Priority)
		p.TenantIds = append(p.TenantIds, task.TenantID)
		p.WorkflowIds = append(p.WorkflowIds, task.WorkflowID)
		p.DefinitionIds = append(p.DefinitionIds, task.DefinitionID)
		p.Executors = append(p.Executors, task.Executor)
		p.CorrelationIds = append(p.CorrelationIds, task.CorrelationID)
		p.StepIds = append(p.StepIds, stringOf(task.StepID))
		p.RequestKeys = append(p.RequestKeys, stringOf(task.RequestID))
		p.BodyHashes = append(p.BodyHashes, c.hash)
		p.Refs = append(p.Refs, stringOf(task.Reference))
		p.CallbackUrls = append(p.CallbackUrls, stringOf(task.CallbackUrl))
		p.Traceparents = append(p.Traceparents, stringOf(task.Traceparent))
		p.Inputs = append(p.Inputs, string(task.Input))
		p.Configs = append(p.Configs, string(task.Config))
		p.Contexts = append(p.Contexts, string(task.Context))
		p.Actors = append(p.Actors, c.actor)
		p.Kinds = append(p.Kinds, c.kind)
		// The statements find a job's task by task_id: see job_task. People see the rest in River UI.
		p.Args = append(p.Args, `{"task_id": "`+task.TaskID.String()+`", "attempt": 1, "timeout_ms": `+strconv.FormatInt(c.timeout.Milliseconds(), 10)+`}`)
		p.Metadata = append(p.Metadata, metadata(task.CorrelationID, stringOf(task.Traceparent)))
		p.Tags = append(p.Tags, "wf-"+tag(task.WorkflowID))
	}

	return p
}

// metadata returns a River job's metadata: ids for tracing, without content of the task, since
// River UI shows metadata.
func metadata(correlation, traceparent string) string {
	m := map[string]string{"correlationId": correlation}
	if traceparent != "" {
		m["traceparent"] = traceparent
	}

	text, err := json.Marshal(m)
	if err != nil {
		return "{}"
	}

	return string(text)
}

var notTag = regexp.MustCompile(`[^\w-]`)

// tag makes a workflow's name valid as a River tag. River UI filters jobs by tags.
func tag(name string) string {
	name = notTag.ReplaceAllString(name, "_")
	return name[:min(len(name), 200)]
}

// wakeFor wakes the queues of the tasks that a batch has created.
func (t createItems) wakeFor(ctx context.Context, batch []*creation) {
	var ready wakeSet
	for _, c := range batch {
		if c.created {
			ready.add(string(c.task.Lane), c.kind, Type(c.task.Type), c.task.TenantID, c.task.DefinitionID)
		}
	}
	t.notifier.wakeFor(ctx, ready)
}

// eventsCommitted returns the committed ones of these event ids. An id is used once, so a found event
// proves the commit of this process's flush.
func eventsCommitted(ctx context.Context, q *db.Queries, events []int64) (map[int64]bool, error) {
	found := map[int64]bool{}
	ids, err := q.EventsFound(ctx, events)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("look up a flush: %w", err)
	}

	for _, id := range ids {
		found[id] = true
	}

	return found, nil
}
