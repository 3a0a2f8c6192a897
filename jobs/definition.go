package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
)

// Definition is what a kind of task is made of, as it is registered.
type Definition struct {
	ID              string          `json:"id"`
	Name            string          `json:"name"`
	Description     string          `json:"description"`
	Type            Type            `json:"type"`
	Version         string          `json:"version"`
	InputSchema     json.RawMessage `json:"inputSchema,omitempty"`
	OutputSchema    json.RawMessage `json:"outputSchema,omitempty"`
	Timeout         int64           `json:"timeout"` // ms
	RetryPolicy     *RetryPolicy    `json:"retryPolicy,omitempty"`
	ExecutionConfig ExecutionConfig `json:"executionConfig"`
	Revision        int32           `json:"revision"`
	CreatedAt       time.Time       `json:"createdAt"`
	CreatedBy       string          `json:"createdBy"`
}

// Default timeouts of an attempt, for definitions that name none.
var defaultTimeout = map[Type]time.Duration{
	Automated:   5 * time.Minute,
	Integration: time.Minute,
	Manual:      30 * 24 * time.Hour,
}

// DefaultVisibility is how long a lease lasts without a heartbeat.
const DefaultVisibility = 30 * time.Second

// definition is a Definition, compiled.
type definition struct {
	Definition
	input  *Schema
	output *Schema
}

// definitions keeps compiled revisions for ever (they never change), and for a
// short while which revision is the newest.
type definitions struct {
	q *db.Queries

	mu        sync.RWMutex
	revisions map[revisionKey]*definition // guarded by mu
	newest    map[string]newestRevision   // guarded by mu
}

type revisionKey struct {
	id       string
	revision int32
}

type newestRevision struct {
	def   *definition // nil: there is none
	until time.Time
}

// A change made by another process is heard by NOTIFY; this bounds how long it
// goes unheard when that is lost.
const newestFor = 2 * time.Second

// cachedDefinitions bounds the memory of each of the two maps.
const cachedDefinitions = 4096

// get returns the newest revision, or nil if there is none.
func (d *definitions) get(ctx context.Context, id string) (*definition, error) {
	d.mu.RLock()
	hit, ok := d.newest[id]
	d.mu.RUnlock()
	if ok && time.Now().Before(hit.until) {
		return hit.def, nil
	}
	row, err := d.q.DefinitionNewest(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		d.remember(id, nil)
		return nil, nil
	}
	if err != nil {
		return nil, readError("definition "+id, err)
	}
	def, err := d.compiled(row)
	if err != nil {
		return nil, err
	}
	d.remember(id, def)
	return def, nil
}

// at returns one revision. Revision 0 is a task without a definition.
func (d *definitions) at(ctx context.Context, id string, revision int32) (*definition, error) {
	if revision == 0 {
		return nil, nil
	}
	d.mu.RLock()
	def := d.revisions[revisionKey{id, revision}]
	d.mu.RUnlock()
	if def != nil {
		return def, nil
	}
	row, err := d.q.DefinitionGet(ctx, db.DefinitionGetParams{DefinitionID: id, Revision: revision})
	if err != nil {
		return nil, readError(fmt.Sprintf("definition %s revision %d", id, revision), err)
	}
	return d.compiled(row)
}

func (d *definitions) compiled(row db.TaskDefinition) (*definition, error) {
	key := revisionKey{row.DefinitionID, row.Revision}
	d.mu.RLock()
	def := d.revisions[key]
	d.mu.RUnlock()
	if def != nil {
		return def, nil
	}
	public, err := definitionOf(row)
	if err != nil {
		return nil, err
	}
	def, err = compile(public)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.revisions == nil || len(d.revisions) >= cachedDefinitions {
		d.revisions = map[revisionKey]*definition{}
	}
	d.revisions[key] = def
	return def, nil
}

func (d *definitions) remember(id string, def *definition) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.newest == nil || len(d.newest) >= cachedDefinitions {
		d.newest = map[string]newestRevision{}
	}
	d.newest[id] = newestRevision{def, time.Now().Add(newestFor)}
}

func (d *definitions) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.newest, id)
}

func compile(public Definition) (*definition, error) {
	def := &definition{Definition: public}
	var err error
	if def.input, err = CompileSchema(public.InputSchema); err != nil {
		return nil, invalid("/inputSchema", "the input schema: %v", err)
	}
	if def.output, err = CompileSchema(public.OutputSchema); err != nil {
		return nil, invalid("/outputSchema", "the output schema: %v", err)
	}
	return def, nil
}

// PutDefinition registers a definition. The same content again changes nothing;
// other content becomes the next revision, and tasks that exist keep theirs.
// created says whether this is the first revision. ifMatch, if not zero, must be
// the newest revision.
func (t *Tasks) PutDefinition(ctx context.Context, by string, ifMatch int32, in Definition) (out Definition, created bool, err error) {
	if err := t.checkDefinition(&in); err != nil {
		return Definition{}, false, err
	}
	tx, err := t.pool.Begin(ctx)
	if err != nil {
		return Definition{}, false, readError("definition "+in.ID, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	out, created, err = t.putDefinition(ctx, t.q.WithTx(tx), by, ifMatch, in)
	if err != nil {
		return Definition{}, false, err
	}
	if err := tx.Commit(ctx); err != nil {
		return Definition{}, false, readError("definition "+in.ID, err)
	}
	t.defs.forget(in.ID)
	t.notify(ctx, channelDefinition, in.ID)
	return out, created, nil
}

func (t *Tasks) putDefinition(ctx context.Context, q *db.Queries, by string, ifMatch int32, in Definition) (Definition, bool, error) {
	if err := q.DefinitionLock(ctx, in.ID); err != nil {
		return Definition{}, false, readError("definition "+in.ID, err)
	}
	old, err := q.DefinitionNewest(ctx, in.ID)
	first := errors.Is(err, pgx.ErrNoRows)
	if err != nil && !first {
		return Definition{}, false, readError("definition "+in.ID, err)
	}
	if ifMatch != 0 && ifMatch != old.Revision {
		return Definition{}, false, fmt.Errorf("definition %s is at revision %d: %w", in.ID, old.Revision, ErrStale)
	}
	if !first {
		same, err := definitionOf(old)
		if err != nil {
			return Definition{}, false, err
		}
		if same.equal(in) {
			return same, false, nil
		}
	}
	config, err := json.Marshal(in.ExecutionConfig)
	if err != nil {
		return Definition{}, false, fmt.Errorf("write definition %s: %w", in.ID, err)
	}
	var policy []byte
	if in.RetryPolicy != nil {
		if policy, err = json.Marshal(in.RetryPolicy); err != nil {
			return Definition{}, false, fmt.Errorf("write definition %s: %w", in.ID, err)
		}
	}
	row, err := q.DefinitionPut(ctx, db.DefinitionPutParams{
		DefinitionID: in.ID, Type: db.TaskType(in.Type), TimeoutMs: in.Timeout, Version: in.Version, Name: in.Name,
		Description: in.Description, CreatedBy: by, InputSchema: in.InputSchema, OutputSchema: in.OutputSchema,
		RetryPolicy: policy, ExecutionConfig: config,
	})
	if err != nil {
		return Definition{}, false, readError("definition "+in.ID, err)
	}
	out, err := definitionOf(row)
	return out, first, err
}

// GetDefinition returns the newest revision.
func (t *Tasks) GetDefinition(ctx context.Context, id string) (Definition, error) {
	row, err := t.q.DefinitionNewest(ctx, id)
	if err != nil {
		return Definition{}, readError("definition "+id, err)
	}
	return definitionOf(row)
}

// ListDefinitions returns a page of newest revisions by id, after the one named.
func (t *Tasks) ListDefinitions(ctx context.Context, after string, limit int32) ([]Definition, error) {
	rows, err := t.q.DefinitionList(ctx, db.DefinitionListParams{After: after, Page: limit})
	if err != nil {
		return nil, readError("definitions", err)
	}
	out := make([]Definition, 0, len(rows))
	for _, row := range rows {
		def, err := definitionOf(row)
		if err != nil {
			return nil, err
		}
		out = append(out, def)
	}
	return out, nil
}

func (t *Tasks) checkDefinition(in *Definition) error {
	if in.Timeout == 0 {
		in.Timeout = defaultTimeout[in.Type].Milliseconds()
	}
	if in.Name == "" {
		in.Name = in.ID
	}
	if err := checkTimeout("/timeout", in.Timeout); err != nil {
		return err
	}
	executor, err := executorFor(in.Type, in.ExecutionConfig.Executor)
	if err != nil {
		return err
	}
	in.ExecutionConfig.Executor = executor
	if err := checkConfig(in.ExecutionConfig); err != nil {
		return err
	}
	if t.cfg.CheckDefinition != nil {
		if err := t.cfg.CheckDefinition(in.ExecutionConfig); err != nil {
			return invalid("/executionConfig", "%v", err)
		}
	}
	_, err = compile(*in)
	return err
}

// executors says which executors each type may have; the first is its default.
var executors = map[Type][]string{
	Automated:   {"", "expression", "http", "noop", "go", ExecutorWorker},
	Integration: {"integration", ExecutorWorker},
	Manual:      {"manual"},
}

func executorFor(t Type, name string) (string, error) {
	allowed := executors[t]
	if name == "" {
		name = allowed[0]
	}
	for _, a := range allowed {
		if a == name && a != "" {
			return name, nil
		}
	}
	if name == "" {
		return "", invalid("/executionConfig/executor", "an %s task needs an executor: one of expression, http, noop, go, worker", t)
	}
	return "", invalid("/executionConfig/executor", "a task of type %s has no executor %q", t, name)
}

// longestTimeout bounds an attempt: so far ahead a deadline may be.
const longestTimeout = 30 * 24 * time.Hour

func checkTimeout(path string, ms int64) error {
	if ms < 1 || ms > longestTimeout.Milliseconds() {
		return invalid(path, "a timeout is 1 to %d ms, which is 30 days", longestTimeout.Milliseconds())
	}
	return nil
}

func checkConfig(c ExecutionConfig) error {
	switch {
	case c.VisibilityTimeout != 0 && (c.VisibilityTimeout < 1000 || c.VisibilityTimeout > 12*3600*1000):
		return invalid("/executionConfig/visibilityTimeout", "a visibility timeout is 1000 to 43200000 ms")
	case c.Executor == "expression" && len(c.Expression) == 0:
		return invalid("/executionConfig/expression", "the expression executor needs at least one {name, value}")
	case c.Executor == "http" && c.HTTP == nil:
		return invalid("/executionConfig/http", "the http executor needs {method, url}")
	case c.Executor == "go" && c.Handler == "":
		return invalid("/executionConfig/handler", "the go executor needs the name of a registered handler")
	case c.Executor == "integration" && c.Integration == nil:
		return invalid("/executionConfig/integration", "the integration executor needs {type, method, instance}")
	}
	return checkManual(c)
}

// equal compares what a client sends; Revision and the like are ours.
func (d Definition) equal(o Definition) bool {
	strip := func(d Definition) []byte {
		d.Revision, d.CreatedAt, d.CreatedBy = 0, time.Time{}, ""
		text, err := json.Marshal(d)
		if err != nil {
			return nil
		}
		sum, err := CanonicalHash(text)
		if err != nil {
			return nil
		}
		return sum[:]
	}
	a := strip(d)
	return a != nil && bytes.Equal(a, strip(o))
}

func definitionOf(row db.TaskDefinition) (Definition, error) {
	def := Definition{
		ID: row.DefinitionID, Name: row.Name, Description: row.Description, Type: Type(row.Type), Version: row.Version,
		InputSchema: row.InputSchema, OutputSchema: row.OutputSchema, Timeout: row.TimeoutMs, Revision: row.Revision,
		CreatedAt: row.CreatedAt.UTC(), CreatedBy: row.CreatedBy,
	}
	if row.RetryPolicy != nil {
		def.RetryPolicy = &RetryPolicy{}
		if err := json.Unmarshal(row.RetryPolicy, def.RetryPolicy); err != nil {
			return Definition{}, fmt.Errorf("read definition %s: %w", row.DefinitionID, err)
		}
	}
	if err := json.Unmarshal(row.ExecutionConfig, &def.ExecutionConfig); err != nil {
		return Definition{}, fmt.Errorf("read definition %s: %w", row.DefinitionID, err)
	}
	return def, nil
}

func readError(what string, err error) error {
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	case away(err):
		return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
