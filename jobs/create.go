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
	"github.com/seed-3f7a0631/tes/jobs/canonical"
)

// Request asks for a task: the body of POST /api/internal/tasks, and data of
// workflow.task_requested.
type Request struct {
	TaskDefinitionID string
	WorkflowID       string
	StepID           string
	TaskType         Type
	Priority         Priority
	Input            json.RawMessage
	Config           *RequestConfig
	Context          json.RawMessage
	CorrelationID    string
	DueDate          *time.Time
	CallbackURL      string
	Reference        string

	// Key makes the request idempotent; empty for none. Body is what two requests
	// with one key are compared by.
	Key  string
	Body []byte
	// Tenant the task belongs to, By who asks, Traceparent of the asking span.
	Tenant      string
	By          string
	Traceparent string
}

// creation is a request on its way through the batcher.
type creation struct {
	req      Request
	id       uuid.UUID
	def      *definition
	settings *settings
	executor string
	config   string
	hash     []byte
	at       time.Time // when it was made; the database says
	event    int64
	job      int64
	answer   chan error
	left     <-chan struct{} // closed when its caller is gone
	created  bool            // made by this request, not by one before it
}

// Create makes a task and returns once the task is committed. A repeated key with the same body
// returns the first task (created is false), even where the task could not be made any more; with
// a different body the error is ErrKeyReused.
func (t *Tasks) Create(ctx context.Context, req Request) (task db.Task, created bool, err error) {
	c, err := t.prepare(ctx, req)
	if err != nil {
		was := t.replayRejected(ctx, []rejectedRequest{{req, err}})[0]
		return was.Task, false, was.Err
	}

	t.creates.Add(c)
	if err := c.wait(ctx); err != nil {
		return db.Task{}, false, err
	}

	if c.created {
		return c.made(), true, nil
	}

	out := t.tasksOfKeys(ctx, []*creation{c})[0]
	return out.Task, false, out.Err
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
		// The task may still be made: a repeated key will tell.
		return fmt.Errorf("create task: %w: %w", ErrUnavailable, context.Cause(ctx))
	}
}

// prepare validates a request and gives the task an id.
func (t *Tasks) prepare(ctx context.Context, req Request) (*creation, error) {
	def, err := t.defs.get(ctx, req.Tenant, req.TaskDefinitionID)
	if err != nil {
		return nil, err
	}

	if err := defaults(&req, def); err != nil {
		return nil, err
	}

	if err := t.checkCallback(req.CallbackURL); err != nil {
		return nil, err
	}

	c := &creation{req: req, def: def, settings: combine(req.TaskType, def, req.Config), answer: make(chan error, 1), left: ctx.Done()}
	if c.executor, err = executorFor(req.TaskType, c.settings.config.Executor); err != nil {
		return nil, err
	}

	c.settings.config.Executor = c.executor
	if err := checkConfig(c.settings.config); err != nil {
		return nil, err
	}

	if def == nil {
		if err := checkRequestHeaders(c.settings.config.HTTP); err != nil {
			return nil, err
		}
	}

	if def == nil && t.cfg.CheckDefinition != nil {
		if err := t.cfg.CheckDefinition(c.settings.config); err != nil {
			return nil, invalid("/executionConfig", "%v", err)
		}
	}

	if def != nil {
		if err := misfit(ctx, def.input, "input", req.Input); err != nil {
			return nil, err
		}
	}

	if req.Config != nil && req.Config.Timeout != 0 {
		if err := checkTimeout("/executionConfig/timeout", req.Config.Timeout); err != nil {
			return nil, err
		}
	}

	if req.Config != nil {
		text, err := storedConfig(req.Config, req.Config.HTTP)
		if err != nil {
			return nil, fmt.Errorf("write executionConfig: %w", err)
		}
		c.config = string(text)
	}

	if c.hash, err = req.hash(); err != nil {
		return nil, err
	}

	if c.id, err = uuid.NewV7(); err != nil {
		return nil, fmt.Errorf("make a task id: %w", err)
	}

	return c, nil
}

// hash identifies the body of a request with a key; nil without one.
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

// defaults fills in the members that a request leaves to its definition.
func defaults(req *Request, def *definition) error {
	switch {
	case def == nil && (req.TaskType == "" || req.Config == nil || req.Config.Executor == ""):
		return invalid("/taskDefinitionId", "no task definition %q: register it (PUT /api/internal/task-definitions/{id}), or give taskType and executionConfig.executor", req.TaskDefinitionID)
	case def != nil && req.TaskType != "" && req.TaskType != def.Type:
		return invalid("/taskType", "the definition %s is %s, not %s", def.ID, def.Type, req.TaskType)
	case def != nil && req.Config != nil && overridesTooMuch(req.Config.ExecutionConfig):
		return invalid("/executionConfig", "a request may override timeout, retryPolicy, executor, securityContext and visibilityTimeout; the rest belongs to the definition")
	case def != nil:
		req.TaskType = def.Type
	}

	if req.Priority == "" {
		req.Priority = Medium
	}
	if req.CorrelationID == "" {
		req.CorrelationID = uuid.NewString()
	}
	if len(req.Input) == 0 {
		req.Input = json.RawMessage("{}")
	}

	var err error
	req.DueDate, err = timeAt("/dueDate", req.DueDate)
	return err
}

func overridesTooMuch(c ExecutionConfig) bool {
	return c.Expression != nil || c.HTTP != nil || c.Handler != "" || c.Integration != nil || c.AssignmentRules != nil ||
		c.Notifications != nil || c.Escalation != nil || c.SLA != nil || c.ResourceRequirements != nil
}

// prefixPaths moves violations under a member of the body.
func prefixPaths(member string, list []Violation) []Violation {
	out := make([]Violation, len(list))
	for i, v := range list {
		out[i] = Violation{Path: member + v.Path, Message: v.Message}
	}
	return out
}

func (c *creation) revision() int32 {
	if c.def == nil {
		return 0
	}
	return c.def.Revision
}

// own reports whether the task's definition is the tenant's own, not the platform's.
func (c *creation) own() bool { return c.def != nil && c.def.TenantID != "" }

// made returns the task as the flush has written it.
func (c *creation) made() db.Task {
	return db.Task{
		TaskID: c.id, JobID: c.job, CreatedAt: c.at, DueAt: c.req.DueDate, Version: 1, Status: db.TaskStatusPENDING,
		Type: db.TaskType(c.req.TaskType), Lane: db.TaskLane(laneOf(c.req.TaskType)), Revision: c.revision(), OwnDefinition: c.own(),
		Priority: c.req.Priority.Rank(), TenantID: c.req.Tenant, WorkflowID: c.req.WorkflowID,
		DefinitionID: c.req.TaskDefinitionID, Executor: c.executor, CorrelationID: c.req.CorrelationID,
		StepID: orNil(c.req.StepID), RequestID: orNil(c.req.Key), Reference: orNil(c.req.Reference),
		CallbackUrl: orNil(c.req.CallbackURL), Traceparent: orNil(c.req.Traceparent), Input: c.req.Input, Config: json.RawMessage(orNull(c.config)), Context: c.req.Context,
	}
}

func orNil(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func orNull(s string) []byte {
	if s == "" {
		return nil
	}
	return []byte(s)
}

// createItems are creations on their way through a batchWriter. Their callers wait, and are
// told at once that the database is away.
type createItems struct{ *Tasks }

func (createItems) plural() string { return "creates" }

func (createItems) row(c *creation) any { return c.row() }

// failWaiters answers a batch whose commit is unknown. A look by the task ids, which are this
// process's alone, may tell that it has committed. A statement that waited for a lock has
// done nothing, and the look would wait as well.
func (t createItems) failWaiters(batch []*creation, err error) (patient []*creation) {
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
	return lockWait{callerGone: c.left, hasCaller: true}
}

func (createItems) reject(c *creation, err error) { c.answer <- err }

func (t *Tasks) flushCreates(batch []*creation) {
	(&batchWriter[*creation]{t, t.creates, createItems{t}}).flush(batch)
}

// row is the row that a creation may have to wait for: a request with the same key that another
// session is writing.
func (c *creation) row() any {
	if c.req.Key == "" {
		return c.id
	}
	return tenantKey{c.req.Tenant, c.req.Key}
}

type tenantKey struct{ tenant, key string }

// String is for the log, where keys do not belong.
func (k tenantKey) String() string { return "an idempotency key of tenant " + strconv.Quote(k.tenant) }

// bytes is the size of a creation to the batcher.
func (c *creation) bytes() int { return len(c.req.Input) + len(c.req.Context) + len(c.config) }

// answer answers a batch that has committed.
func (t createItems) answer(ctx context.Context, batch []*creation) {
	for _, c := range batch {
		c.answer <- nil
	}
	t.cfg.Told()
	t.wakeFor(ctx, batch)
}

// findCreated looks up a flush whose answer was lost. It returns an error unless every task of the
// batch is there.
func findCreated(ctx context.Context, q *db.Queries, batch []*creation) error {
	ids := make([]uuid.UUID, len(batch))
	for i, c := range batch {
		ids[i] = c.id
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
		c.at, c.created = made[c.id]
		if !c.created && c.req.Key == "" {
			return errors.New("the connection was lost, and nothing was written")
		}
	}

	return nil
}

func (t createItems) assignIDs(ctx context.Context, batch []*creation) error {
	fresh := 0
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
			c.event, c.job, jobIDs = event, jobIDs[0], jobIDs[1:]
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

	for _, c := range batch {
		c.at, c.created = made[c.id]
	}

	return func(ctx context.Context) { t.answer(ctx, batch) }, nil
}

func createParams(batch []*creation) db.TaskCreateParams {
	n := len(batch)
	p := db.TaskCreateParams{
		TaskIds: make([]uuid.UUID, 0, n), JobIds: make([]int64, 0, n), EventIds: make([]int64, 0, n),
	}
	for _, c := range batch {
		kind, lane := c.kind(), laneOf(c.req.TaskType)
		p.TaskIds = append(p.TaskIds, c.id)
		p.JobIds = append(p.JobIds, c.job)
		p.EventIds = append(p.EventIds, c.event)
		p.DueAts = append(p.DueAts, orUnset(c.req.DueDate))
		p.Types = append(p.Types, string(c.req.TaskType))
		p.Lanes = append(p.Lanes, lane)
		p.Revisions = append(p.Revisions, c.revision())
		p.OwnDefinitions = append(p.OwnDefinitions, c.own())
		p.Priorities = append(p.Priorities, c.req.Priority.Rank())
		p.TenantIds = append(p.TenantIds, c.req.Tenant)
		p.WorkflowIds = append(p.WorkflowIds, c.req.WorkflowID)
		p.DefinitionIds = append(p.DefinitionIds, c.req.TaskDefinitionID)
		p.Executors = append(p.Executors, c.executor)
		p.CorrelationIds = append(p.CorrelationIds, c.req.CorrelationID)
		p.StepIds = append(p.StepIds, c.req.StepID)
		p.RequestKeys = append(p.RequestKeys, c.req.Key)
		p.BodyHashes = append(p.BodyHashes, c.hash)
		p.Refs = append(p.Refs, c.req.Reference)
		p.CallbackUrls = append(p.CallbackUrls, c.req.CallbackURL)
		p.Traceparents = append(p.Traceparents, c.req.Traceparent)
		p.Inputs = append(p.Inputs, string(c.req.Input))
		p.Configs = append(p.Configs, c.config)
		p.Contexts = append(p.Contexts, string(c.req.Context))
		p.Actors = append(p.Actors, c.req.By)
		p.Kinds = append(p.Kinds, kind)
		p.Args = append(p.Args, `{"task_id": "`+c.id.String()+`", "attempt": 1, "timeout_ms": `+strconv.FormatInt(c.settings.timeout.Milliseconds(), 10)+`}`)
		p.Metadata = append(p.Metadata, metadata(c.req.CorrelationID, c.req.Traceparent))
		p.Tags = append(p.Tags, "wf-"+tag(c.req.WorkflowID))
	}

	return p
}

// metadata is a River job's: for tracing, and nothing of the task's content.
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

// tag makes a workflow's name fit for River's tags, by which River UI filters.
func tag(name string) string {
	name = notTag.ReplaceAllString(name, "_")
	return name[:min(len(name), 200)]
}

// wakeFor wakes the queues of the tasks that a batch has created.
func (t createItems) wakeFor(ctx context.Context, batch []*creation) {
	var kinds [len(wakeKinds)]bool
	for _, c := range batch {
		if c.created {
			kinds[wakeIndex(laneOf(c.req.TaskType), c.kind())] = true
		}
	}
	t.notifier.wakeQueues(ctx, kinds)
}

// eventsCommitted returns which of these event ids were committed. An id is used once, so that an
// event found is the trace of this process's flush.
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
