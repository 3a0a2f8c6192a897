package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs/canonical"
)

// Definition is a registered revision of a task definition.
type Definition struct {
	// TenantID is the owner; empty for a definition of the platform, which every tenant may use.
	TenantID        string          `json:"tenantId,omitempty" doc:"The tenant that the definition belongs to. Absent: the platform, whose definitions every tenant may use."`
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
	CreatedBy       string          `json:"createdBy" doc:"The caller who registered this revision: service, tenant and the token's subject, as in workflow-orchestrator (tenant acme, subject svc-1)."`
}

// Default timeouts of an attempt, for definitions that name none.
var defaultTimeout = map[Type]time.Duration{
	Automated:   5 * time.Minute,
	Integration: time.Minute,
	Manual:      30 * 24 * time.Hour,
}

// DefaultVisibility is how long a lease lasts without a heartbeat.
const DefaultVisibility = 30 * time.Second

// Definitions is the registry of task definitions.
type Definitions struct{ t *Tasks }

// Put registers a definition of tenant in.TenantID, or of the platform if TenantID is empty. Equal
// content writes no revision; different content becomes the next revision, and existing tasks keep
// their revision. created reports the tenant's first revision. ifMatch, if not zero, must be the
// newest revision.
//
// A header with the value Mask keeps its value of the tenant's newest revision; without such a value
// the error is an *Invalid.
func (d *Definitions) Put(ctx context.Context, by string, ifMatch int32, in Definition) (out Definition, created bool, err error) {
	put, err := d.PutFor(ctx, Actor{Name: by, IfMatch: ifMatch}, in)
	return put.Definition, put.Created, err
}

// Put is the result of registering a definition.
type Put struct {
	Definition
	Created bool // the revision is the tenant's first
}

// PutFor is Put for a caller with a reason, a version or an idempotency key.
func (d *Definitions) PutFor(ctx context.Context, actor Actor, in Definition) (out Put, err error) {
	if err := d.check(&in); err != nil {
		return Put{}, err
	}

	for range mostWriters {
		// A lost race begins again with the read: the winner may have written the same content, or
		// the revision in IfMatch may be outdated.
		out, err = d.put(ctx, actor, in)
		if !revisionTaken(err) {
			break
		}
	}

	switch {
	case revisionTaken(err):
		return Put{}, fmt.Errorf("definition %s: other callers keep changing it: %w", in.ID, ErrUnavailable)
	case err != nil:
		return Put{}, err
	}

	// This process reads the new revision at once. Without the notification, the other processes
	// read it within newestFor.
	d.t.defs.forget(in.ID)
	d.t.notifier.notify(ctx, channelDefinition, in.ID)
	return out, nil
}

// mostWriters bounds the tries of a writer after lost races. Some writer wins each race, so up to
// mostWriters writers may register the same definition at once.
const mostWriters = 64

// revisionTaken reports that another writer has written the same revision first.
func revisionTaken(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.ConstraintName == "task_definition_pkey"
}

// put writes the revision after the newest, if the content differs. The primary key, and not a lock,
// keeps two writers apart: see revisionTaken.
func (d *Definitions) put(ctx context.Context, actor Actor, in Definition) (Put, error) {
	old, found, err := d.own(ctx, in.TenantID, in.ID)
	if err != nil {
		return Put{}, err
	}
	if actor.IfMatch != 0 && actor.IfMatch != old.Revision {
		return Put{}, fmt.Errorf("definition %s is at revision %d: %w", in.ID, old.Revision, ErrStale)
	}

	// Before the comparison: a definition that was read, masked, and sent back unchanged is equal.
	if in.ExecutionConfig.HTTP, err = in.ExecutionConfig.HTTP.keepMasked(old.ExecutionConfig.HTTP); err != nil {
		return Put{}, err
	}

	if found && old.equal(in) {
		return Put{old, false}, nil
	}

	config, err := storedConfig(in.ExecutionConfig, in.ExecutionConfig.HTTP)
	if err != nil {
		return Put{}, fmt.Errorf("write definition %s: %w", in.ID, err)
	}

	var policy []byte
	if in.RetryPolicy != nil {
		if policy, err = json.Marshal(in.RetryPolicy); err != nil {
			return Put{}, fmt.Errorf("write definition %s: %w", in.ID, err)
		}
	}

	p := db.DefinitionPutParams{
		TenantID: in.TenantID, DefinitionID: in.ID, Revision: old.Revision + 1,
		Type: db.TaskType(in.Type), TimeoutMs: in.Timeout, Version: in.Version, Name: in.Name,
		Description: in.Description, CreatedBy: actor.Name, InputSchema: in.InputSchema, OutputSchema: in.OutputSchema,
		RetryPolicy: policy, ExecutionConfig: config,
	}

	var out Put
	// The revision and the answer under the idempotency key are committed together.
	err = pgx.BeginFunc(ctx, d.t.pool, func(tx pgx.Tx) error {
		return actor.Call.within(ctx, tx, func(q *db.Queries) (any, error) {
			row, err := q.DefinitionPut(ctx, p)
			if err != nil {
				return nil, err
			}
			out.Created = !found
			out.Definition, err = definitionOf(row)
			return out, err
		})
	})
	if err != nil {
		return Put{}, readError("definition "+in.ID, err)
	}

	return out, nil
}

// own returns the newest revision that the tenant registered itself; for the empty tenant, the
// platform's newest revision.
func (d *Definitions) own(ctx context.Context, tenant, id string) (def Definition, found bool, err error) {
	row, err := d.t.q.DefinitionOwn(ctx, db.DefinitionOwnParams{TenantID: tenant, DefinitionID: id})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return Definition{}, false, nil
	case err != nil:
		return Definition{}, false, readError("definition "+id, err)
	}

	def, err = definitionOf(row)
	return def, err == nil, err
}

// Revision returns the newest revision that a tenant has registered itself; 0 without a revision.
func (d *Definitions) Revision(ctx context.Context, tenant, id string) (int32, error) {
	def, _, err := d.own(ctx, tenant, id)
	return def.Revision, err
}

// Has reports whether a tenant has registered a definition itself.
func (d *Definitions) Has(ctx context.Context, tenant, id string) (bool, error) {
	_, found, err := d.own(ctx, tenant, id)
	return found, err
}

// Get returns the newest revision that a tenant uses: the tenant's own, else the platform's. Without
// either, the error is ErrNotFound.
func (d *Definitions) Get(ctx context.Context, tenant, id string) (Definition, error) {
	row, err := d.t.q.DefinitionNewest(ctx, db.DefinitionNewestParams{TenantID: tenant, DefinitionID: id})
	if err != nil {
		return Definition{}, readError("definition "+id, err)
	}
	return definitionOf(row)
}

// List returns a page of the newest revisions that a tenant uses, ordered by id, after the given id:
// the tenant's own and the platform's. An own definition hides the platform's definition of the same
// id.
func (d *Definitions) List(ctx context.Context, tenant, after string, limit int32) ([]Definition, error) {
	rows, err := d.t.q.DefinitionList(ctx, db.DefinitionListParams{TenantID: tenant, After: after, Page: limit})
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

func (d *Definitions) check(in *Definition) error {
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

	// Stored by name: a later change of the type's default does not change the definition.
	in.ExecutionConfig.Executor = executor
	if err := checkConfig(in.ExecutionConfig); err != nil {
		return err
	}

	if d.t.cfg.CheckDefinition != nil {
		if err := d.t.cfg.CheckDefinition(in.ExecutionConfig); err != nil {
			return invalid("/executionConfig", "%v", err)
		}
	}

	// Only for the error: the cache compiles the definition at its first use.
	_, err = compile(*in)
	return err
}

// executors lists the executors of each type, the default first. The empty name at the first place
// means that automated tasks have no default.
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

// longestTimeout bounds the timeout of an attempt.
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

	if err := checkHeaders(c.HTTP); err != nil {
		return err
	}

	return checkManual(c)
}

// equal compares the members that a client sends, including the texts of headers.
func (d Definition) equal(o Definition) bool {
	strip := func(d Definition) []byte {
		d.TenantID, d.Revision, d.CreatedAt, d.CreatedBy = "", 0, time.Time{}, ""
		// JSON masks the texts of headers; storedConfig does not.
		config, err := storedConfig(d.ExecutionConfig, d.ExecutionConfig.HTTP)
		if err != nil {
			return nil
		}

		text, err := json.Marshal(struct {
			Definition
			ExecutionConfig json.RawMessage `json:"executionConfig"` // instead of the masked one
		}{d, config})
		if err != nil {
			return nil
		}

		// Independent of the order of members within the schemas.
		sum, err := canonical.Hash(text)
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
		TenantID: row.TenantID, ID: row.DefinitionID, Name: row.Name, Description: row.Description, Type: Type(row.Type), Version: row.Version,
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
	case isUnavailable(err):
		return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
