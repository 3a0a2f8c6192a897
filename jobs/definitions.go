package jobs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs/schema"
)

// definition is a compiled Definition.
type definition struct {
	Definition
	input  *Schema
	output *Schema
	weight int // bytes of its source
}

// definitionKey identifies a revision. tenant is the owner; empty for the platform.
type definitionKey struct {
	tenant   string
	id       string
	revision int32
}

// taskDefinition identifies the revision under which a task was created. own reports a definition
// of the task's tenant; otherwise the platform owns the definition.
func taskDefinition(tenant string, own bool, id string, revision int32) definitionKey {
	if !own {
		tenant = ""
	}
	return definitionKey{tenant, id, revision}
}

func (k definitionKey) String() string {
	if k.tenant == "" {
		return fmt.Sprintf("definition %s revision %d", k.id, k.revision)
	}
	return fmt.Sprintf("definition %s revision %d of tenant %q", k.id, k.revision, k.tenant)
}

// definitions caches compiled revisions, which never change, and for newestFor the number of each
// tenant's newest revision. A notification only drops cached numbers.
type definitions struct {
	q *db.Queries

	mu        sync.RWMutex
	revisions map[definitionKey]*definition        // guarded by mu
	weight    int                                  // of revisions, in bytes; guarded by mu
	newest    map[string]map[string]newestRevision // by id and by the tenant that asks; guarded by mu
	known     int                                  // entries of newest; guarded by mu
	changes   uint64                               // counts forget; guarded by mu
}

// newestRevision is the revision that a tenant gets for an id.
type newestRevision struct {
	key   definitionKey // revision 0: there is none
	until time.Time
}

// newestFor bounds the delay of another process's change whose notification was lost.
const newestFor = 2 * time.Second

// Bounds of the cache: cachedDefinitions for the revisions and for the numbers of newest revisions
// each, cachedBytes for the sources of the revisions.
const (
	cachedDefinitions = 4096
	cachedBytes       = 64 << 20
)

// get returns the newest revision that a tenant uses, its own before the platform's; nil without a
// definition.
func (d *definitions) get(ctx context.Context, tenant, id string) (*definition, error) {
	// changes is read before the row: if forget comes in between, remember stores nothing.
	d.mu.RLock()
	hit, ok := d.newest[id][tenant]
	changes := d.changes
	d.mu.RUnlock()
	if ok && time.Now().Before(hit.until) {
		return d.at(ctx, hit.key)
	}

	row, err := d.q.DefinitionNewest(ctx, db.DefinitionNewestParams{TenantID: tenant, DefinitionID: id})
	if errors.Is(err, pgx.ErrNoRows) {
		// Revision 0 caches the absence of a definition.
		d.remember(tenant, id, definitionKey{}, changes)
		return nil, nil
	}

	if err != nil {
		return nil, readError("definition "+id, err)
	}

	def, err := d.compiled(row)
	if err != nil {
		return nil, err
	}

	d.remember(tenant, id, definitionKey{row.TenantID, row.DefinitionID, row.Revision}, changes)
	return def, nil
}

// at returns one revision. Revision 0 is a task without a definition.
func (d *definitions) at(ctx context.Context, key definitionKey) (*definition, error) {
	if key.revision == 0 {
		return nil, nil
	}

	if def := d.cached(key); def != nil {
		return def, nil
	}

	row, err := d.q.DefinitionGet(ctx, db.DefinitionGetParams{TenantID: key.tenant, DefinitionID: key.id, Revision: key.revision})
	if err != nil {
		return nil, readError(key.String(), err)
	}

	return d.compiled(row)
}

func (d *definitions) cached(key definitionKey) *definition {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.revisions[key]
}

func (d *definitions) compiled(row db.TaskDefinition) (*definition, error) {
	key := definitionKey{row.TenantID, row.DefinitionID, row.Revision}
	if def := d.cached(key); def != nil {
		return def, nil
	}

	public, err := definitionOf(row)
	if err != nil {
		return nil, err
	}

	def, err := compile(public)
	if err != nil {
		return nil, err
	}

	// The length of the sources stands for the unknown size of the compiled form.
	def.weight = len(row.InputSchema) + len(row.OutputSchema) + len(row.ExecutionConfig) + len(row.Description)
	d.keep(key, def)
	return def, nil
}

// keep adds a revision. A full cache drops random entries, so that a caller with many definitions
// does not empty the cache for every caller.
func (d *definitions) keep(key definitionKey, def *definition) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.revisions == nil {
		d.revisions = map[definitionKey]*definition{}
	}
	if d.revisions[key] != nil {
		return // another goroutine was quicker
	}

	// The iteration over a map begins at a random entry.
	for other, old := range d.revisions {
		if len(d.revisions) < cachedDefinitions && d.weight+def.weight <= cachedBytes {
			break
		}
		delete(d.revisions, other)
		d.weight -= old.weight
	}

	d.revisions[key] = def
	d.weight += def.weight
}

// remember caches the number of a newest revision, unless a definition has changed since the read.
func (d *definitions) remember(tenant, id string, key definitionKey, changes uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changes != changes {
		return
	}
	if d.newest == nil {
		d.newest = map[string]map[string]newestRevision{}
	}

	// A full cache drops the entry of some tenant for some definition.
	for other, tenants := range d.newest {
		if d.known < cachedDefinitions {
			break
		}

		for asker := range tenants {
			d.known--
			delete(tenants, asker)
			break
		}

		if len(tenants) == 0 {
			delete(d.newest, other)
		}
	}

	if d.newest[id] == nil {
		d.newest[id] = map[string]newestRevision{}
	}

	if _, there := d.newest[id][tenant]; !there {
		d.known++
	}

	d.newest[id][tenant] = newestRevision{key, time.Now().Add(newestFor)}
}

// forget drops the cached numbers for an id: the next get reads the database.
func (d *definitions) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changes++
	d.known -= len(d.newest[id])
	delete(d.newest, id)
}

func compile(public Definition) (*definition, error) {
	def := &definition{Definition: public}
	var err error
	if def.input, err = schema.Compile(public.InputSchema); err != nil {
		return nil, badSchema("/inputSchema", "the input schema", err)
	}

	if def.output, err = schema.Compile(public.OutputSchema); err != nil {
		return nil, badSchema("/outputSchema", "the output schema", err)
	}

	return def, nil
}

// badSchema describes the violations of a schema: in one sentence, and path by path.
func badSchema(path, what string, err error) *Invalid {
	bad := invalid(path, "%s: %v", what, err)
	var broken *schema.BrokenError
	if errors.As(err, &broken) && broken.Reasons[0].Path != "" {
		bad.Violations[0].Message = "is no JSON Schema"
		bad.Violations = append(bad.Violations, prefixPaths(path, broken.Reasons)...)
	}
	return bad
}
