package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/jobs"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

const (
	orchestrator = "workflow-orchestrator"
	ui           = "ui-framework"
	monitoring   = "monitoring-service"
	errorHandler = "error-handler"
)

// testBundle is an API server over HTTP, with a database of its own and a fake Auth Service.
type testBundle struct {
	url   string
	pool  *pgxpool.Pool // the engine's
	tasks *jobs.Tasks
	auth  *peertest.Server
	log   *logged
}

func setup(t *testing.T, change ...func(*api.Config)) *testBundle {
	t.Helper()
	pool := dbtest.Get(t)
	return setupOn(t, pool, dbtest.URL(pool), change...)
}

// setupOn gives the server another address for reads than for writes.
func setupOn(t *testing.T, pool *pgxpool.Pool, readURL string, change ...func(*api.Config)) *testBundle {
	t.Helper()
	b := &testBundle{pool: pool, tasks: jobs.New(pool, jobs.Config{}), log: &logged{}}
	reads, err := pgpool.Open(t.Context(), readURL, pgpool.Config{Name: "test reads", MaxConns: 4})
	require.NoError(t, err)
	t.Cleanup(reads.Close)
	t.Cleanup(func() { b.tasks.Drain(context.Background()) })
	b.auth = startAuth(t)
	cfg := api.Config{Tasks: b.tasks, Reads: reads, Verifier: startVerifier(t, b.auth.URL()), Logger: slog.New(slog.NewJSONHandler(b.log, nil))}
	for _, f := range change {
		f(&cfg)
	}
	apiServer, err := api.New(cfg)
	require.NoError(t, err)
	server := httptest.NewServer(apiServer.Handler())
	t.Cleanup(server.Close)
	b.url = server.URL
	return b
}

func startAuth(t *testing.T) *peertest.Server {
	t.Helper()
	peers, err := peertest.Start(peertest.Config{})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, peers.Close(ctx))
	})
	return peers
}

func startVerifier(t *testing.T, url string) *auth.Verifier {
	t.Helper()
	v, err := auth.NewVerifier(auth.Config{JWKS: url + "/.well-known/jwks.json", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(v.Close)
	return v
}

// logged is what was logged.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r *reply) object(t *testing.T) map[string]any {
	t.Helper()
	var out map[string]any
	require.NoError(t, json.Unmarshal(r.body, &out), "%s", r.body)
	return out
}

// is demands a status, and shows the body where it is another.
func (r *reply) is(t *testing.T, status int) map[string]any {
	t.Helper()
	require.Equal(t, status, r.status, "%s", r.body)
	return r.object(t)
}

// fails demands a whole problem document.
func (r *reply) fails(t *testing.T, status int, code string) map[string]any {
	t.Helper()
	p := r.is(t, status)
	require.Equal(t, "application/problem+json", r.header.Get("Content-Type"))
	require.Equal(t, code, p["code"])
	require.Equal(t, "urn:tes:error:"+code, p["type"])
	require.Equal(t, http.StatusText(status), p["title"])
	require.EqualValues(t, status, p["status"])
	require.NotEmpty(t, p["detail"])
	require.NotEmpty(t, p["traceId"])
	require.Equal(t, r.header.Get("X-Request-Id"), p["traceId"])
	nested := p["error"].(map[string]any)
	require.Equal(t, code, nested["code"])
	require.Equal(t, p["detail"], nested["message"])
	require.LessOrEqual(t, len(r.body), 4096)
	return p
}

// flaws are the places that a problem names.
func violations(p map[string]any) []string {
	var out []string
	list, _ := p["errors"].([]any)
	for _, e := range list {
		out = append(out, e.(map[string]any)["location"].(string))
	}
	return out
}

// ask is one request. It takes a body as text, as bytes or as something to encode,
// and headers as name, value; an empty value takes a header away.
func (b *testBundle) ask(t *testing.T, service, method, path string, body any, headers ...string) *reply {
	t.Helper()
	return b.askWith(t, b.auth.Token(service), method, path, body, headers...)
}

func (b *testBundle) askWith(t *testing.T, token, method, path string, body any, headers ...string) *reply {
	t.Helper()
	var reader io.Reader
	switch body := body.(type) {
	case nil:
	case string:
		reader = bytes.NewReader([]byte(body))
	case []byte:
		reader = bytes.NewReader(body)
	case io.Reader:
		reader = body
	default:
		text, err := json.Marshal(body)
		require.NoError(t, err)
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, b.url+path, reader)
	require.NoError(t, err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if reader != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i+1] == "" {
			req.Header.Del(headers[i])
		} else {
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	read, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return &reply{resp.StatusCode, resp.Header, read}
}

// object is JSON.
type object = map[string]any

// noop is a request for a task that needs no definition.
func noop(change ...object) object {
	o := object{
		"taskDefinitionId": "nothing", "workflowId": "wf-1", "taskType": "AUTOMATED", "input": object{"n": 1},
		"executionConfig": object{"executor": "noop"},
	}
	return merge(o, change...)
}

// manual is a request for a person's task.
func manual(change ...object) object {
	return merge(noop(object{"taskType": "MANUAL", "executionConfig": object{"executor": "manual"}}), change...)
}

// merge puts members over others; nil takes one away.
func merge(o object, change ...object) object {
	for _, c := range change {
		for name, v := range c {
			if v == nil {
				delete(o, name)
			} else {
				o[name] = v
			}
		}
	}
	return o
}

const tasksPath = "/api/internal/tasks"

// create makes a task and answers its path and the task.
func (b *testBundle) create(t *testing.T, body object) (string, object) {
	t.Helper()
	task := b.ask(t, orchestrator, "POST", tasksPath, body).is(t, 201)
	return tasksPath + "/" + task["taskId"].(string), task
}

// unchanged demands that what act asks for is refused without a trace: every table holds
// afterwards what it held before. Nobody else may use the bundle meanwhile.
func (b *testBundle) unchanged(t *testing.T, act func()) {
	t.Helper()
	before := b.digest(t)
	act()
	require.Equal(t, before, b.digest(t), "something was written")
}

// digest is how many rows each table has, and what they come to.
func (b *testBundle) digest(t *testing.T) map[string]string {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Greater(t, len(tables), 15)
	out := map[string]string{}
	for _, table := range tables {
		var digest string
		require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT count(*) || ' rows ' || coalesce(md5(string_agg(x::text, ' ' ORDER BY x::text)), '') FROM "+
			pgx.Identifier{table}.Sanitize()+" x").Scan(&digest))
		out[table] = digest
	}
	return out
}
