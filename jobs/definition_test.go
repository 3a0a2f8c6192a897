package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// definition of "calculate", for remote workers.
func calculate(change ...func(*Definition)) Definition {
	def := Definition{
		ID: "calculate", Name: "Calculate", Type: Automated, Version: "1.0.0", Timeout: 5000,
		InputSchema:     json.RawMessage(`{"type": "object", "required": ["n"], "properties": {"n": {"type": "number"}}}`),
		OutputSchema:    json.RawMessage(`{"type": "object", "required": ["sum"], "properties": {"sum": {"type": "number"}}}`),
		RetryPolicy:     &RetryPolicy{MaxRetries: 2, RetryInterval: 10},
		ExecutionConfig: ExecutionConfig{Executor: "noop"},
	}
	for _, fn := range change {
		fn(&def)
	}
	return def
}

func define(t *testing.T, b *testBundle, change ...func(*Definition)) Definition {
	t.Helper()
	def, _, err := b.Definitions.Put(b.ctx, "workflow-orchestrator", 0, calculate(change...))
	require.NoError(t, err)
	return def
}

// of makes the request one for a definition, with an input that fits calculate.
func of(definition string) func(*Request) {
	return func(req *Request) {
		req.TaskDefinitionID, req.TaskType, req.Config, req.Input = definition, "", nil, json.RawMessage(`{"n": 1}`)
	}
}

func TestSameContentIsTheSameRevision(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, created, err := b.Definitions.Put(b.ctx, "orchestrator", 0, calculate())
	require.NoError(t, err)
	require.True(t, created)
	require.EqualValues(t, 1, first.Revision)
	require.Equal(t, "orchestrator", first.CreatedBy)

	again, created, err := b.Definitions.Put(b.ctx, "somebody else", 0, calculate(func(d *Definition) {
		// White space and the order of members are no content.
		d.InputSchema = json.RawMessage(`{"properties":{"n":{"type":"number"}},"required":["n"],"type":"object"}`)
	}))
	require.NoError(t, err)
	require.False(t, created)
	require.Equal(t, first, again)
}

func TestOtherContentIsTheNextRevision(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Definition){
		"version": func(d *Definition) { d.Version = "1.0.1" },
		"schema":  func(d *Definition) { d.InputSchema = nil },
		"timeout": func(d *Definition) { d.Timeout = 6000 },
		"policy":  func(d *Definition) { d.RetryPolicy = nil },
		"config":  func(d *Definition) { d.ExecutionConfig.VisibilityTimeout = 2000 },
		"name":    func(d *Definition) { d.Description = "adds up" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			first := define(t, b)
			second, created, err := b.Definitions.Put(b.ctx, "orchestrator", 0, calculate(change))
			require.NoError(t, err)
			require.False(t, created)
			require.EqualValues(t, 2, second.Revision)
			third := define(t, b)
			require.EqualValues(t, 3, third.Revision, "back to the first content is a change too")
			third.Revision, third.CreatedAt = first.Revision, first.CreatedAt
			require.Equal(t, first, third)
			newest, err := b.Definitions.Get(b.ctx, "", "calculate")
			require.NoError(t, err)
			require.EqualValues(t, 3, newest.Revision)
		})
	}
}

func TestTasksKeepTheRevisionTheyWereMadeUnder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	define(t, b)
	old := b.create(of("calculate"))
	define(t, b, func(d *Definition) { d.OutputSchema, d.Timeout = nil, 60_000 })
	young := b.create(of("calculate"))
	require.EqualValues(t, 1, old.Revision)
	require.EqualValues(t, 2, young.Revision)

	b.work(noop(does(`{"sum": "no number"}`, nil)))
	failed := b.becomes(old.TaskID, Failed)
	require.Equal(t, CodeOutput, codeOf(t, failed))
	require.EqualValues(t, 1, failed.Attempt, "it would come out the same")
	b.becomes(young.TaskID, Completed)
}

func TestDefinitionIfMatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, _, err := b.Definitions.Put(b.ctx, "o", 1, calculate())
	require.ErrorIs(t, err, ErrStale, "there is none yet")
	define(t, b)
	_, _, err = b.Definitions.Put(b.ctx, "o", 2, calculate())
	require.ErrorIs(t, err, ErrStale)
	second, _, err := b.Definitions.Put(b.ctx, "o", 1, calculate(func(d *Definition) { d.Version = "2.0.0" }))
	require.NoError(t, err)
	require.EqualValues(t, 2, second.Revision)
}

func TestDefinitionsAreListedByID(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, id := range []string{"c", "a", "b"} {
		define(t, b, func(d *Definition) { d.ID = id })
	}
	define(t, b, func(d *Definition) { d.ID, d.Version = "b", "2.0.0" })
	page, err := b.Definitions.List(b.ctx, "", "", 2)
	require.NoError(t, err)
	require.Len(t, page, 2)
	require.Equal(t, "a", page[0].ID)
	require.Equal(t, "b", page[1].ID)
	require.EqualValues(t, 2, page[1].Revision)
	page, err = b.Definitions.List(b.ctx, "", "b", 2)
	require.NoError(t, err)
	require.Len(t, page, 1)
	_, err = b.Definitions.Get(b.ctx, "", "none")
	require.ErrorIs(t, err, ErrNotFound)
}

func TestBrokenDefinitionsAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t, func(cfg *Config) {
		cfg.CheckDefinition = func(c ExecutionConfig) error {
			if len(c.Expression) > 0 && c.Expression[0].Value == "1 +" {
				return errors.New("expression total: unexpected end")
			}
			return nil
		}
	})
	for name, tc := range map[string]struct {
		change func(*Definition)
		path   string
	}{
		"input schema":  {func(d *Definition) { d.InputSchema = json.RawMessage(`{"type": "nonsense"}`) }, "/inputSchema"},
		"output schema": {func(d *Definition) { d.OutputSchema = json.RawMessage(`{"$ref": "file:///etc/passwd"}`) }, "/outputSchema"},
		"expression": {func(d *Definition) {
			d.ExecutionConfig = ExecutionConfig{Executor: "expression", Expression: []Assign{{"total", "1 +"}}}
		}, "/executionConfig"},
		"no expression":       {func(d *Definition) { d.ExecutionConfig.Executor = "expression" }, "/executionConfig/expression"},
		"no http call":        {func(d *Definition) { d.ExecutionConfig.Executor = "http" }, "/executionConfig/http"},
		"no handler":          {func(d *Definition) { d.ExecutionConfig.Executor = "go" }, "/executionConfig/handler"},
		"no integration":      {func(d *Definition) { d.Type, d.ExecutionConfig.Executor = Integration, "" }, "/executionConfig/integration"},
		"no executor":         {func(d *Definition) { d.ExecutionConfig.Executor = "" }, "/executionConfig/executor"},
		"another's executor":  {func(d *Definition) { d.Type = Manual }, "/executionConfig/executor"},
		"visibility too long": {func(d *Definition) { d.ExecutionConfig.VisibilityTimeout = 43_200_001 }, "/executionConfig/visibilityTimeout"},
		"too short":           {func(d *Definition) { d.ExecutionConfig.VisibilityTimeout = 999 }, "/executionConfig/visibilityTimeout"},
	} {
		_, _, err := b.Definitions.Put(b.ctx, "o", 0, calculate(tc.change))
		var bad *Invalid
		require.ErrorAs(t, err, &bad, name)
		require.Equal(t, tc.path, bad.Violations[0].Path, name)
	}
	require.Zero(t, ask[int](b, "SELECT count(*) FROM task_definition"))
}

func TestRequestOverridesItsDefinition(t *testing.T) {
	t.Parallel()
	b := setup(t)
	define(t, b)
	seen := make(chan Job, 1)
	b.work(noop(func(_ context.Context, job Job) (Result, error) {
		seen <- job
		return Result{}, &Failure{Code: "E"}
	}))
	task := b.create(of("calculate"), func(req *Request) {
		req.Config = &RequestConfig{Timeout: 60_000, RetryPolicy: &RetryPolicy{}, ExecutionConfig: ExecutionConfig{SecurityContext: &SecurityContext{UserID: "u"}}}
	})
	job := receive(t, seen)
	require.Equal(t, &SecurityContext{UserID: "u"}, job.Config.SecurityContext)
	require.Equal(t, "Calculate", job.Name)
	require.Greater(t, job.Deadline.Sub(task.CreatedAt).Seconds(), 50.0)
	task = b.becomes(task.TaskID, Failed)
	require.EqualValues(t, 1, task.Attempt, "the request's policy has no retries")

	for name, config := range map[string]ExecutionConfig{
		"handler":    {Handler: "x"},
		"expression": {Expression: []Assign{{"a", "1"}}},
		"http":       {HTTP: &HTTPCall{URL: "http://localhost"}},
	} {
		_, _, err := b.Create(b.ctx, request(of("calculate"), func(req *Request) { req.Config = &RequestConfig{ExecutionConfig: config} }))
		var bad *Invalid
		require.ErrorAs(t, err, &bad, name)
	}
}

func TestFirstRevisionsRaceToOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := join(t, b.pool, "p2")
	var all sync.WaitGroup
	var mu sync.Mutex
	firsts := 0
	for i := range 16 {
		all.Go(func() {
			p := []*testBundle{b, other}[i%2]
			def, created, err := p.Definitions.Put(p.ctx, "o", 0, calculate())
			mu.Lock()
			defer mu.Unlock()
			if err != nil || def.Revision != 1 {
				t.Errorf("revision %d: %v", def.Revision, err)
			}
			if created {
				firsts++
			}
		})
	}
	all.Wait()
	require.Equal(t, 1, firsts)
	require.Equal(t, 1, ask[int](b, "SELECT count(*) FROM task_definition"))
}

// A definition is a row that never changes: what a task was made under can be read
// for as long as the task is there.
func TestRevisionIsReadFromAnotherProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	define(t, b)
	task := b.create(of("calculate"))
	p2 := join(t, b.pool, "p2")
	s, err := p2.settings(p2.ctx, db.TaskTypeAUTOMATED, taskDefinition("", task.OwnDefinition, task.DefinitionID, task.Revision), task.Config)
	require.NoError(t, err)
	require.Equal(t, 2, s.retry.MaxRetries)
	_, err = p2.settings(p2.ctx, db.TaskTypeAUTOMATED, taskDefinition("", false, task.DefinitionID, 99), nil)
	require.ErrorIs(t, err, ErrNotFound)
}
