package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/automated"
)

// called is what an address was sent.
type called struct{ by, secret string }

// address is a server that hands on what it is sent, and answers with the header that it
// got, as careless servers do.
func address(t *testing.T, name string, calls chan called) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		calls <- called{name + " " + string(body), r.Header.Get("X-Api-Key")}
		_ = json.NewEncoder(w).Encode(object{"youSent": r.Header.Get("X-Api-Key"), "and": "Bearer " + r.Header.Get("X-Api-Key")})
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// calling makes the tasks of executor http, until the test ends.
func (b *testBundle) calling(t *testing.T, secrets automated.Secrets) {
	t.Helper()
	web := automated.NewHTTP(automated.HTTPConfig{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Secrets: secrets})
	t.Cleanup(web.Close)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	runner := jobs.NewRunner(b.tasks, jobs.RunnerConfig{Executors: map[string]jobs.Registration{"http": {Executor: web}}})
	go func() { ended <- runner.Run(ctx, 0) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// calls is a definition that calls a URL, with the headers.
func calls(url string, headers object) object {
	return object{
		"type": "AUTOMATED", "version": "1.0.0", "retryPolicy": object{"maxRetries": 0},
		"executionConfig": object{"executor": "http", "http": object{"url": url, "headers": headers}},
	}
}

func charge(change ...object) object {
	return merge(object{"taskDefinitionId": "charge", "workflowId": "w", "input": object{"card": 4111}}, change...)
}

// mallory replaces what acme uses, or means to: acme's next tasks go where they went, over
// HTTP, in a batch and from the bus.
func TestTenantsCannotReplaceEachOthersDefinitions(t *testing.T) {
	t.Parallel()
	e := withBus(t, setup(t))
	e.calling(t, automated.Secrets{})
	calledAt := make(chan called, 16)
	path := definitionsPath + "/charge"
	acme, mallory := e.tenant(t, orchestrator, "acme"), e.tenant(t, orchestrator, "mallory")
	put := func(token, at string, status int) {
		e.askWith(t, token, "PUT", path, calls(at, nil)).is(t, status)
	}
	goesTo := func(name string) {
		t.Helper()
		e.askWith(t, acme, "POST", tasksPath, charge()).is(t, 201)
		require.Equal(t, name+` {"card":4111}`, strings.ReplaceAll((<-calledAt).by, " 4111", "4111"))
		out := e.askWith(t, acme, "POST", tasksPath+"/batch", object{"tasks": []any{charge()}}).is(t, 200)
		require.NotEmpty(t, out["results"].([]any)[0].(object)["taskId"])
		require.Equal(t, name+` {"card":4111}`, strings.ReplaceAll((<-calledAt).by, " 4111", "4111"))
		e.send(t, requestedSubject, envelope(requestedSubject, charge(object{
			"executionConfig": object{"securityContext": object{"tenantId": "acme"}},
		})))
		require.Equal(t, name+` {"card":4111}`, strings.ReplaceAll((<-calledAt).by, " 4111", "4111"))
	}
	put(e.auth.Token(orchestrator), address(t, "platform", calledAt), 201)
	put(mallory, address(t, "mallory", calledAt), 201)
	goesTo("platform")
	put(acme, address(t, "acme", calledAt), 201)
	put(mallory, address(t, "mallory again", calledAt), 200)
	goesTo("acme")
	put(e.auth.Token(orchestrator), address(t, "platform again", calledAt), 200)
	goesTo("acme")

	// mallory's own tasks go to mallory's, and those of no tenant to the platform's.
	e.askWith(t, mallory, "POST", tasksPath, charge()).is(t, 201)
	require.Contains(t, (<-calledAt).by, "mallory again")
	e.ask(t, orchestrator, "POST", tasksPath, charge()).is(t, 201)
	require.Contains(t, (<-calledAt).by, "platform again")
	require.Empty(t, calledAt)
}

func TestDefinitionsOfOtherTenantsAreNotThere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	as := map[string]string{
		"acme": b.tenant(t, orchestrator, "acme"), "mallory": b.tenant(t, orchestrator, "mallory"), "": b.auth.Token(orchestrator),
	}
	for _, one := range []struct{ tenant, id string }{{"", "b"}, {"", "c"}, {"acme", "a"}, {"acme", "b"}, {"acme", "d"}, {"mallory", "b"}, {"mallory", "e"}} {
		def := b.askWith(t, as[one.tenant], "PUT", definitionsPath+"/"+one.id, definition()).is(t, 201)
		require.EqualValues(t, 1, def["revision"])
	}
	for tenant, want := range map[string]map[string]any{
		"acme": {"a": "acme", "b": "acme", "c": nil, "d": "acme"}, "mallory": {"b": "mallory", "c": nil, "e": "mallory"}, "": {"b": nil, "c": nil},
	} {
		listed := map[string]any{}
		for path := definitionsPath + "?limit=1"; ; {
			page := b.askWith(t, as[tenant], "GET", path, nil).is(t, 200)
			for _, item := range page["items"].([]any) {
				listed[item.(object)["id"].(string)] = item.(object)["tenantId"]
			}
			if page["nextCursor"] == nil {
				break
			}
			path = definitionsPath + "?limit=1&cursor=" + page["nextCursor"].(string)
		}
		require.Equal(t, want, listed, tenant)
		for _, id := range []string{"a", "b", "c", "d", "e"} {
			got := b.askWith(t, as[tenant], "GET", definitionsPath+"/"+id, nil)
			owner, there := want[id]
			if !there {
				got.fails(t, 404, "NOT_FOUND")
				// Nor can a task be made of it.
				b.askWith(t, as[tenant], "POST", tasksPath, object{"taskDefinitionId": id, "workflowId": "w", "input": object{}}).fails(t, 422, "VALIDATION_ERROR")
				continue
			}
			require.Equal(t, owner, got.is(t, 200)["tenantId"])
		}
	}

	// * is about the tenant's own: c is there, and the platform's.
	b.askWith(t, as["acme"], "PUT", definitionsPath+"/c", definition(), "If-Match", "*").fails(t, 412, "PRECONDITION_FAILED")
	b.askWith(t, as["acme"], "PUT", definitionsPath+"/b", definition(), "If-Match", "*").is(t, 200)
}

// The audit says service, tenant and subject, and no name can pass for another.
func TestDefinitionsSayWhoRegisteredThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i, tt := range []struct {
		claims peertest.TokenOptions
		want   string
	}{
		{peertest.TokenOptions{Service: orchestrator, Tenant: "acme", Subject: "svc-123"}, "workflow-orchestrator (tenant acme, subject svc-123)"},
		{peertest.TokenOptions{Service: orchestrator, Subject: "svc-123"}, "workflow-orchestrator (subject svc-123)"},
		{peertest.TokenOptions{Service: orchestrator, Claims: object{"sub": nil}}, "workflow-orchestrator"},
		{peertest.TokenOptions{Service: orchestrator, Tenant: "acme, subject root", Subject: "a\n\"b"}, `workflow-orchestrator (tenant "acme, subject root", subject "a?'b")`},
	} {
		token, err := b.auth.Mint(tt.claims)
		require.NoError(t, err)
		def := b.askWith(t, token, "PUT", fmt.Sprintf("%s/d-%d", definitionsPath, i), definition()).is(t, 201)
		require.Equal(t, tt.want, def["createdBy"])
	}
	require.Contains(t, b.log.String(), `"tenant":"acme","subject":"svc-123"`)
}

// What a header says is never shown again, whoever asks; who may not see it cannot have it
// sent elsewhere; and a mask that stands for nothing is refused by its place.
func TestHeadersOfDefinitionsAreMasked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const path, secret = definitionsPath + "/charge", "sk-live-0123456789"
	masked := object{"X-Api-Key": "***", "X-Ref": object{"secretRef": "pay.key"}}
	body := calls("https://pay.example.org/v1", object{"X-Api-Key": secret, "X-Ref": object{"secretRef": "pay.key"}})
	acme := b.tenant(t, orchestrator, "acme")
	headersOf := func(def object) any {
		return def["executionConfig"].(object)["http"].(object)["headers"]
	}
	for _, token := range []string{acme, b.auth.Token(orchestrator)} {
		require.Equal(t, masked, headersOf(b.askWith(t, token, "PUT", path, body).is(t, 201)))
		require.Equal(t, masked, headersOf(b.askWith(t, token, "PUT", path, body).is(t, 200)))
		got := b.askWith(t, token, "GET", path, nil).is(t, 200)
		require.Equal(t, masked, headersOf(got))
		list := b.askWith(t, token, "GET", definitionsPath, nil).is(t, 200)
		require.Equal(t, masked, headersOf(list["items"].([]any)[0].(object)))

		// Read, change and write again.
		back := merge(got, object{"tenantId": nil, "revision": nil, "createdAt": nil, "createdBy": nil, "description": "changed"})
		require.EqualValues(t, 2, b.askWith(t, token, "PUT", path, back, "If-Match", `"1"`).is(t, 200)["revision"])
	}
	require.NotContains(t, b.log.String(), secret)
	var values []string
	rows, err := b.pool.Query(t.Context(), "SELECT execution_config #>> '{http,headers,X-Api-Key}' FROM task_definition")
	require.NoError(t, err)
	values, err = pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Equal(t, []string{secret, secret, secret, secret}, values, "kept in both revisions of both")

	mallory := b.tenant(t, orchestrator, "mallory")
	b.unchanged(t, func() {
		for _, tt := range []struct {
			token, url string
			headers    object
			at         string
		}{
			{mallory, "https://pay.example.org/v1", object{"X-Api-Key": "***"}, "body.executionConfig.http.headers.X-Api-Key"},
			{acme, "https://mallory.example.org/v1", object{"X-Api-Key": "***"}, "body.executionConfig.http.headers.X-Api-Key"},
			{acme, "https://pay.example.org/v1", object{"Authorization": "***"}, "body.executionConfig.http.headers.Authorization"},
			{acme, "https://pay.example.org/v1", object{"A": object{"secretRef": "../../etc/passwd"}}, "body.executionConfig.http.headers.A"},
			{acme, "https://pay.example.org/v1", object{"A": object{"secretRef": "a", "more": secret}}, "body.executionConfig.http.headers.A"},
			{acme, "https://pay.example.org/v1", object{"A": 1}, "body.executionConfig.http.headers.A"},
		} {
			r := b.askWith(t, tt.token, "PUT", path, calls(tt.url, tt.headers))
			require.Contains(t, violations(r.fails(t, 422, "VALIDATION_ERROR")), tt.at)
			require.NotContains(t, string(r.body), secret)
		}
		for _, value := range []any{"***", object{"secretRef": "key"}} {
			p := b.askWith(t, acme, "POST", tasksPath, noop(object{"executionConfig": object{
				"executor": "http", "http": object{"url": "https://x.example.org", "headers": object{"A": value}},
			}})).fails(t, 422, "VALIDATION_ERROR")
			require.Equal(t, []string{"body.executionConfig.http.headers.A"}, violations(p))
		}
	})
}

// A secret by reference reaches the address and nothing else: not the database, the log, an
// answer or an event; rotated it is the next attempt's; and none is another tenant's.
func TestSecretsReachTheAddressAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dir := t.TempDir()
	write := func(name, value string) {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(value), 0o600))
	}
	write("key", "secret-of-the-platform\n")
	write("tenants/acme/key", "secret-of-acme-1\n")
	b.calling(t, automated.Secrets{Dir: dir})
	calledAt := make(chan called, 16)
	body := calls(address(t, "here", calledAt), object{"X-Api-Key": object{"secretRef": "key"}})
	platform, acme, mallory := b.auth.Token(orchestrator), b.tenant(t, orchestrator, "acme"), b.tenant(t, orchestrator, "mallory")
	for _, token := range []string{platform, acme, mallory} {
		b.askWith(t, token, "PUT", definitionsPath+"/charge", body).is(t, 201)
	}
	b.askWith(t, platform, "PUT", definitionsPath+"/shared", body).is(t, 201)
	var shown strings.Builder
	ends := func(token, definition, status string) object {
		t.Helper()
		task := b.askWith(t, token, "POST", tasksPath, charge(object{"taskDefinitionId": definition})).is(t, 201)
		path := tasksPath + "/" + task["taskId"].(string)
		waitFor(t, func() error {
			task = b.askWith(t, token, "GET", path, nil).is(t, 200)
			if task["status"] != status {
				return fmt.Errorf("%v", task)
			}
			return nil
		})
		for _, more := range []string{"", "/why", "/events", "/attempts"} {
			shown.Write(b.askWith(t, token, "GET", path+more, nil).body)
		}
		return task
	}
	sent := func() string { return (<-calledAt).secret }

	task := ends(acme, "charge", "COMPLETED")
	require.Equal(t, "secret-of-acme-1", sent())
	require.Equal(t, object{"youSent": "[redacted]", "and": "Bearer [redacted]"}, task["output"])
	write("tenants/acme/key", "secret-of-acme-2\n")
	ends(acme, "charge", "COMPLETED")
	require.Equal(t, "secret-of-acme-2", sent())
	ends(platform, "charge", "COMPLETED")
	require.Equal(t, "secret-of-the-platform", sent())
	ends(mallory, "shared", "COMPLETED")
	require.Equal(t, "secret-of-the-platform", sent(), "the platform's definition is sent with the platform's secret")

	task = ends(mallory, "charge", "FAILED")
	failure := task["error"].(object)
	require.Equal(t, "SECRET_UNAVAILABLE", failure["code"])
	require.Equal(t, true, failure["retryable"])
	require.Empty(t, calledAt)

	shown.WriteString(b.log.String())
	rows, err := b.pool.Query(t.Context(), "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
	require.NoError(t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	for _, table := range tables {
		var text string
		require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT coalesce(string_agg(x::text, ' '), '') FROM "+pgx.Identifier{table}.Sanitize()+" x").Scan(&text))
		shown.WriteString(text)
	}
	require.Contains(t, shown.String(), "[redacted]")
	require.NotContains(t, shown.String(), "secret-of-")
	require.NotContains(t, shown.String(), dir)
}
