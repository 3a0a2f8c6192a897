package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// defineFor registers a definition of a tenant.
func (b *testBundle) defineFor(tenant string, change ...func(*Definition)) Definition {
	b.t.Helper()
	def, _, err := b.Definitions.Put(b.ctx, "o", 0, calculate(append(change, func(d *Definition) { d.TenantID = tenant })...))
	require.NoError(b.t, err)
	return def
}

func tenant(name string) func(*Request) { return func(req *Request) { req.Tenant = name } }

// The rule, held against a model over random histories: a tenant uses its own newest, else
// the platform's newest, and nobody else's, in whatever order they are registered, asked
// for by whichever process.
func TestTenantsUseTheirOwnDefinitionsThenThePlatforms(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	dice := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a test
	tenants := []string{"", "acme", "mallory", "acm\u00e9"}
	ids := []string{"a", "b", "c"}
	revisions := map[string]map[string]int32{} // tenant, id
	for _, name := range tenants {
		revisions[name] = map[string]int32{}
	}
	want := func(name, id string) (owner string, revision int32) {
		if n := revisions[name][id]; n > 0 {
			return name, n
		}
		return "", revisions[""][id]
	}
	for step := range 40 {
		who, id := tenants[dice.IntN(len(tenants))], ids[dice.IntN(len(ids))]
		revisions[who][id]++
		def := b.defineFor(who, func(d *Definition) {
			d.ID, d.Description = id, fmt.Sprint(step)
		})
		require.Equal(t, revisions[who][id], def.Revision, "revisions are counted for each tenant and id")
		require.Equal(t, who, def.TenantID)

		for _, asker := range tenants {
			var used []string
			for _, id := range ids {
				owner, revision := want(asker, id)
				got, err := other.Definitions.Get(b.ctx, asker, id)
				cached, err2 := b.defs.get(b.ctx, asker, id)
				require.NoError(t, err2)
				if revision == 0 {
					require.ErrorIs(t, err, ErrNotFound)
					require.Nil(t, cached)
					continue
				}
				require.NoError(t, err)
				require.Equal(t, []any{owner, revision}, []any{got.TenantID, got.Revision})
				require.Equal(t, got, cached.Definition, "%q sees what was registered here at once", asker)
				used = append(used, fmt.Sprint(owner, id, revision))
			}
			var listed []string
			for after := ""; ; {
				page, err := other.Definitions.List(b.ctx, asker, after, 2)
				require.NoError(t, err)
				for _, def := range page {
					listed = append(listed, fmt.Sprint(def.TenantID, def.ID, def.Revision))
					after = def.ID
				}
				if len(page) < 2 {
					break
				}
			}
			require.Equal(t, used, listed)
		}
	}
}

// schemaOf takes objects that have the member.
func schemaOf(member string) json.RawMessage {
	return json.RawMessage(`{"type": "object", "required": ["` + member + `"]}`)
}

// Wherever a task's definition is looked up it is the one that the task was made under,
// although its tenant has registered another of the same id and revision since.
func TestTasksKeepWhoseDefinitionTheyWereMadeUnder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	named := func(name, executor string, timeout int64) func(*Definition) {
		return func(d *Definition) {
			d.ID, d.Name, d.ExecutionConfig.Executor, d.Timeout = executor, name, executor, timeout
			d.InputSchema, d.OutputSchema, d.RetryPolicy = nil, schemaOf(name), &RetryPolicy{}
			if executor == "manual" {
				d.Type = Manual
			}
		}
	}
	executors := []string{"noop", ExecutorWorker, "manual"}
	made := map[string]map[string]db.Task{"platform": {}, "own": {}}
	makeAll := func(under string) {
		for _, executor := range executors {
			made[under][executor] = b.create(of(executor), tenant("acme"))
			require.EqualValues(t, 1, made[under][executor].Revision)
			require.Equal(t, under == "own", made[under][executor].OwnDefinition)
		}
	}
	for _, executor := range executors {
		b.defineFor("", named("platform", executor, 40_000))
		b.defineFor("mallory", named("mallory", executor, 60_000))
	}
	makeAll("platform")
	for _, executor := range executors {
		b.defineFor("acme", named("own", executor, 80_000))
	}
	makeAll("own")

	ran := map[uuid.UUID]Job{}
	var mu sync.Mutex
	registrations := assigning("ann")
	for name, r := range noop(func(_ context.Context, job Job) (Result, error) {
		mu.Lock()
		defer mu.Unlock()
		ran[job.TaskID] = job
		return Result{Output: json.RawMessage(`{"` + job.Name + `": 1}`)}, nil
	}) {
		registrations[name] = r
	}
	b.work(registrations)
	stands := func(id uuid.UUID, want Status) {
		waitFor(t, "the task to be "+string(want), func() bool {
			task, err := b.Get(b.ctx, "acme", id)
			require.NoError(t, err)
			return task.Status == db.TaskStatus(want)
		})
	}
	leases := map[uuid.UUID]Lease{}
	for _, l := range b.dequeue("w", func(req *LeaseRequest) { req.Tenant = "acme" }) {
		leases[l.TaskID] = l
	}
	for under, owner := range map[string]string{"platform": "", "own": "acme"} {
		wrong := map[string]string{"platform": "own", "own": "platform"}[under]
		right, not := json.RawMessage(`{"`+under+`": 1}`), json.RawMessage(`{"`+wrong+`": 1}`)

		// In process.
		id := made[under]["noop"].TaskID
		stands(id, Completed)
		mu.Lock()
		job := ran[id]
		mu.Unlock()
		require.Equal(t, under, job.Name)
		require.Equal(t, owner, *job.Owner)

		// By a remote worker.
		lease := leases[made[under][ExecutorWorker].TaskID]
		require.Equal(t, map[string]time.Duration{"platform": 40 * time.Second, "own": 80 * time.Second}[under], lease.Timeout)
		var bad *Invalid
		_, err := b.Leases.Complete(b.ctx, "acme", lease.Token, not)
		require.ErrorAs(t, err, &bad)
		_, err = b.Leases.Complete(b.ctx, "acme", lease.Token, right)
		require.NoError(t, err)

		// By a person.
		id = made[under]["manual"].TaskID
		stands(id, Assigned)
		_, err = b.Worklist.Complete(b.ctx, id, Actor{Tenant: "acme", Name: "ui"}, "ann", not, "")
		require.ErrorAs(t, err, &bad)
		_, err = b.Worklist.Complete(b.ctx, id, Actor{Tenant: "acme", Name: "ui"}, "ann", right, "")
		require.NoError(t, err)
	}
}

// The same for dead letters: a patched input is held against the definition's schema, and
// the task goes on under the definition's timeout.
func TestRedrivesKeepWhoseDefinitionATaskWasMadeUnder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	def := func(name string) func(*Definition) {
		return func(d *Definition) {
			d.InputSchema, d.OutputSchema, d.RetryPolicy = schemaOf(name), nil, &RetryPolicy{}
		}
	}
	b.defineFor("", def("platform"))
	input := func(name string) func(*Request) {
		return func(req *Request) { req.Input = json.RawMessage(`{"` + name + `": 1}`) }
	}
	before := b.create(of("calculate"), tenant("acme"), input("platform"))
	b.defineFor("acme", def("own"))
	after := b.create(of("calculate"), tenant("acme"), input("own"))
	b.work(noop(does("", &Failure{Code: "X"})))
	for _, id := range []uuid.UUID{before.TaskID, after.TaskID} {
		waitFor(t, "the task to fail", func() bool {
			task, err := b.Get(b.ctx, "acme", id)
			require.NoError(t, err)
			return task.Status == db.TaskStatusFAILED
		})
	}
	for _, tt := range []struct {
		take     string
		rejected []Rejected
	}{
		{"platform", []Rejected{{before.TaskID, RejectedInput}}},
		{"own", []Rejected{{after.TaskID, RejectedInput}}},
	} {
		patch := json.RawMessage(`[{"op": "add", "path": "/platform", "value": 1}, {"op": "add", "path": "/own", "value": 1}, {"op": "remove", "path": "/` + tt.take + `"}]`)
		out, err := b.DeadLetters.Redrive(b.ctx, Actor{Tenant: "acme", Name: "e"}, Redrive{TaskIDs: []uuid.UUID{before.TaskID, after.TaskID}, InputPatch: patch, DryRun: true})
		require.NoError(t, err)
		require.Equal(t, tt.rejected, out.Rejected)
		require.Equal(t, 1, out.Tasks)
	}
}

// Whoever may connect can hold any advisory lock. A definition is written all the same,
// and of many writers each gets a revision of its own.
func TestWritersOfDefinitionsNeedNoAdvisoryLock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	conn, err := b.pool.Acquire(b.ctx)
	require.NoError(t, err)
	defer conn.Release()
	_, err = conn.Exec(b.ctx, "SELECT pg_advisory_lock(hashtextextended('task_definition calculate', 0))")
	require.NoError(t, err)
	defer func() {
		_, err := conn.Exec(b.ctx, "SELECT pg_advisory_unlock_all()")
		require.NoError(t, err)
	}()

	other := join(t, b.pool, "p2")
	var all sync.WaitGroup
	var mu sync.Mutex
	var got []int32
	for i := range 12 {
		all.Go(func() {
			p := []*testBundle{b, other}[i%2]
			def, _, err := p.Definitions.Put(p.ctx, "o", 0, calculate(func(d *Definition) {
				d.TenantID, d.Description = "acme", fmt.Sprint(i)
			}))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			got = append(got, def.Revision)
		})
	}
	all.Wait()
	slices.Sort(got)
	require.Equal(t, []int32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, got)
}

func TestIfMatchIsTheTenantsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 3 {
		b.defineFor("", func(d *Definition) { d.Timeout = int64(1000 + i) })
	}
	acme := func(ifMatch int32, timeout int64) error {
		_, _, err := b.Definitions.Put(b.ctx, "o", ifMatch, calculate(func(d *Definition) { d.TenantID, d.Timeout = "acme", timeout }))
		return err
	}
	require.ErrorIs(t, acme(3, 1002), ErrStale, "3 is the platform's revision")
	require.NoError(t, acme(0, 1002), "the platform's content is no content of acme's")
	require.NoError(t, acme(1, 5000))
	require.Equal(t, 2, ask[int](b, "SELECT count(*) FROM task_definition WHERE tenant_id = 'acme'"))
	require.Equal(t, 3, ask[int](b, "SELECT count(*) FROM task_definition WHERE tenant_id = ''"))
}

// Nobody who asks for many definitions, or registers many, has more than a bounded part of
// the memory, or takes all of it from the others.
func TestRememberedDefinitionsAreBounded(t *testing.T) {
	t.Parallel()
	d := &definitions{}
	for i := range 3 * cachedDefinitions {
		d.remember(fmt.Sprint("tenant", i%7), fmt.Sprint("id", i), definitionKey{}, 0)
		d.keep(definitionKey{"t", "id", int32(i)}, &definition{weight: 1}) //nolint:gosec // small
	}
	count := 0
	for _, tenants := range d.newest {
		count += len(tenants)
	}
	require.Equal(t, cachedDefinitions, count)
	require.Equal(t, count, d.known)
	require.Len(t, d.revisions, cachedDefinitions)
	require.Equal(t, cachedDefinitions, d.weight)
	for i := range 100 {
		d.keep(definitionKey{"heavy", "id", int32(i)}, &definition{weight: cachedBytes / 8}) //nolint:gosec // small
	}
	require.LessOrEqual(t, d.weight, cachedBytes)
	require.Len(t, d.revisions, 8)

	d.forget("nothing")
	d.remember("t", "late", definitionKey{}, 0)
	require.NotContains(t, d.newest, "late", "what was read before a change is not remembered after it")

	k := &knownSettings{}
	k.put(settingsKey{}, []byte(strings.Repeat("x", longestKnown+1)), &settings{})
	require.Empty(t, k.all)
}

// httpDefinition calls an address with one header.
func httpDefinition(url string, headers map[string]HeaderValue) func(*Definition) {
	return func(d *Definition) {
		d.ExecutionConfig = ExecutionConfig{Executor: "http", HTTP: &HTTPCall{URL: url, Headers: headers}}
	}
}

func TestMaskedHeadersKeepTheirValues(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const address = "https://pay.example.org/v1"
	secret := map[string]HeaderValue{"Authorization": {Text: "Bearer s3cret"}, "X-Ref": {SecretRef: "key"}}
	masked := map[string]HeaderValue{"authorization": {Text: Mask}, "X-Ref": {SecretRef: "key"}}
	kept := func(tenant string, revision int32) string {
		return ask[string](b, `SELECT coalesce(execution_config #>> '{http,headers,Authorization}', execution_config #>> '{http,headers,authorization}')
			FROM task_definition WHERE tenant_id = $1 AND revision = $2`, tenant, revision)
	}
	first := b.defineFor("acme", httpDefinition(address, secret))
	require.EqualValues(t, 1, first.Revision)
	require.Equal(t, "Bearer s3cret", kept("acme", 1))
	require.Equal(t, "key", ask[string](b, "SELECT execution_config #>> '{http,headers,X-Ref,secretRef}' FROM task_definition"))

	// Read, change, write: what is masked stays, wherever it stands in the URL's host.
	second := b.defineFor("acme", httpDefinition("HTTPS://PAY.example.org/v2", masked))
	require.EqualValues(t, 2, second.Revision)
	require.Equal(t, "Bearer s3cret", kept("acme", 2))
	require.EqualValues(t, 2, b.defineFor("acme", httpDefinition("HTTPS://PAY.example.org/v2", masked)).Revision, "the same again changes nothing")
	third := b.defineFor("acme", httpDefinition("HTTPS://PAY.example.org/v2", map[string]HeaderValue{"authorization": {Text: "Bearer other"}, "X-Ref": {SecretRef: "key"}}))
	require.EqualValues(t, 3, third.Revision, "another value is a change")
	require.Equal(t, "Bearer other", kept("acme", 3))

	for name, tt := range map[string]struct {
		tenant, url string
		headers     map[string]HeaderValue
		path        string
	}{
		"of another tenant":  {"mallory", address, masked, "/executionConfig/http/headers/authorization"},
		"of the platform":    {"", address, masked, "/executionConfig/http/headers/authorization"},
		"another header":     {"acme", address, map[string]HeaderValue{"X/a~b": {Text: Mask}}, "/executionConfig/http/headers/X~1a~0b"},
		"another host":       {"acme", "https://evil.example.org/", masked, "/executionConfig/http/headers/authorization"},
		"another port":       {"acme", "https://pay.example.org:8443/", masked, "/executionConfig/http/headers/authorization"},
		"another scheme":     {"acme", "http://pay.example.org/", masked, "/executionConfig/http/headers/authorization"},
		"a path as a secret": {"acme", address, map[string]HeaderValue{"A": {SecretRef: "../x"}}, "/executionConfig/http/headers/A"},
	} {
		_, _, err := b.Definitions.Put(b.ctx, "o", 0, calculate(httpDefinition(tt.url, tt.headers), func(d *Definition) { d.TenantID = tt.tenant }))
		var bad *Invalid
		require.ErrorAs(t, err, &bad, name)
		require.Equal(t, tt.path, bad.Violations[0].Path, name)
		require.NotContains(t, err.Error(), "s3cret")
	}
	require.Equal(t, 3, ask[int](b, "SELECT count(*) FROM task_definition"))
}

// However a definition is written down, no text of a header is in it.
func TestHeadersAreShownMasked(t *testing.T) {
	t.Parallel()
	def := calculate(httpDefinition("https://pay.example.org", map[string]HeaderValue{"Authorization": {Text: "s3cret"}, "X-Ref": {SecretRef: "key"}}))
	text, err := json.Marshal(def)
	require.NoError(t, err)
	require.Contains(t, string(text), `"headers":{"Authorization":"***","X-Ref":{"secretRef":"key"}}`)
	var log logBook
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "def", def, "header", def.ExecutionConfig.HTTP.Headers["Authorization"])
	for _, shown := range []string{
		string(text), log.String(), fmt.Sprint(def), fmt.Sprintf("%+v %#v %v %s", def, *def.ExecutionConfig.HTTP, def.ExecutionConfig.HTTP, def.ExecutionConfig.HTTP.Headers),
	} {
		require.NotContains(t, shown, "s3cret")
	}

	for _, wrong := range []string{`1`, `null`, `{}`, `{"secretRef": ""}`, `{"secretRef": 1}`, `["s3cret"]`} {
		var v HeaderValue
		err := json.Unmarshal([]byte(wrong), &v)
		require.Error(t, err, wrong)
		require.NotContains(t, err.Error(), "s3cret")
	}
}

// A request that has no definition may have headers, but reaches no secret.
func TestRequestsRefuseSecretsAndMasks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	with := func(v HeaderValue) func(*Request) {
		return func(req *Request) {
			req.Config = &RequestConfig{ExecutionConfig: ExecutionConfig{Executor: "http", HTTP: &HTTPCall{URL: "https://x.example.org", Headers: map[string]HeaderValue{"A": v}}}}
		}
	}
	for _, v := range []HeaderValue{{SecretRef: "key"}, {Text: Mask}} {
		_, _, err := b.Create(b.ctx, request(with(v)))
		var bad *Invalid
		require.ErrorAs(t, err, &bad)
		require.Equal(t, "/executionConfig/http/headers/A", bad.Violations[0].Path)
	}
	task := b.create(with(HeaderValue{Text: "own"}))
	require.Equal(t, "own", ask[string](b, "SELECT config #>> '{http,headers,A}' FROM task WHERE task_id = $1", task.TaskID), "the executor needs it")
	_, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "me"})
	require.NoError(t, err)
}
