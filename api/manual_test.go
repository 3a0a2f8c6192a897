package api_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/jobs"
	manually "github.com/seed-3f7a0631/tes/jobs/manual"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// nobody is a directory without people: rules that name somebody still do.
type nobody struct{}

func (nobody) ByRole(context.Context, string, []string) ([]manually.Person, error) { return nil, nil }

func (nobody) Name(context.Context, string) (string, error) { return "", nil }

// assigning lets the manual handler run while a test makes tasks.
func (b *testBundle) assigning(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	runner := jobs.NewRunner(b.tasks, jobs.RunnerConfig{Executors: map[string]jobs.Registration{
		"manual": {Assigns: true, Executor: manually.New(nobody{}, b.tasks.Worklist)},
	}})
	go func() { ended <- runner.Run(ctx, 0) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// open is a manual task that the rules have given to somebody.
func (b *testBundle) open(t *testing.T, rules object, change ...object) (string, object) {
	t.Helper()
	path, _ := b.create(t, merge(manual(object{"executionConfig": object{"executor": "manual", "assignmentRules": rules}}), change...))
	var task object
	eventually(t, func() bool {
		task = b.ask(t, ui, "GET", path, nil).is(t, 200)
		return task["status"] == "ASSIGNED"
	})
	return path, task
}

func TestClaimTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.assigning(t)
	path, task := b.open(t, object{"candidateUsers": []any{"jane"}, "candidateRoles": []any{"approver"}, "defaultGroup": "crew"})
	claim := func(body object, headers ...string) *reply {
		return b.ask(t, ui, "POST", path+"/claim", body, headers...)
	}
	claim(object{"userId": "eve", "groups": []any{"others"}}).fails(t, 403, "FORBIDDEN")
	claim(object{"userId": "jane"}, "If-Match", `"7"`).fails(t, 412, "PRECONDITION_FAILED")
	require.Equal(t, task, b.ask(t, ui, "GET", path, nil).is(t, 200), "nothing has changed")

	r := claim(object{"userId": "bob", "roles": []any{"approver"}}, "If-Match", fmt.Sprintf(`"%v"`, task["version"]))
	claimed := r.is(t, 200)
	require.Equal(t, "RUNNING", claimed["status"])
	require.Equal(t, "bob", claimed["assignee"])
	require.Equal(t, fmt.Sprintf(`"%v"`, claimed["version"]), r.header.Get("ETag"))
	require.Equal(t, claimed, b.ask(t, ui, "GET", path, nil).is(t, 200), "a GET shows it")
	require.Equal(t, claimed, claim(object{"userId": "bob"}).is(t, 200), "again changes nothing")
	p := claim(object{"userId": "jane"}).fails(t, 409, "CONFLICT")
	require.Regexp(t, `^the task was claimed by bob at 20..-..-..T..:..:..Z$`, p["detail"])

	b.ask(t, ui, "POST", path+"/unclaim", object{"userId": "jane"}).fails(t, 403, "FORBIDDEN")
	b.ask(t, ui, "POST", path+"/unclaim", object{"userId": "bob"}, "If-Match", `"1"`).fails(t, 412, "PRECONDITION_FAILED")
	back := b.ask(t, ui, "POST", path+"/unclaim", object{"userId": "bob", "reason": "no time"}).is(t, 200)
	require.Equal(t, "ASSIGNED", back["status"])
	require.Nil(t, back["assignee"])
	require.Equal(t, "crew", back["groupId"])
	require.Equal(t, task["candidates"], back["candidates"])
	b.ask(t, ui, "POST", path+"/unclaim", object{"userId": "bob"}).fails(t, 409, "CONFLICT")

	claim(object{"userId": "jane"}).is(t, 200)
	b.ask(t, ui, "POST", path+"/complete", object{"userId": "bob"}).fails(t, 403, "FORBIDDEN")
	b.ask(t, ui, "POST", path+"/complete", object{"userId": "jane"}, "If-Match", `"1"`).fails(t, 412, "PRECONDITION_FAILED")
	r = b.ask(t, ui, "POST", path+"/complete", object{"userId": "jane", "output": object{"approved": true}, "comment": "fine"})
	done := r.is(t, 200)
	require.Equal(t, "COMPLETED", done["status"])
	require.Equal(t, object{"approved": true}, done["output"])
	require.Equal(t, fmt.Sprintf(`"%v"`, done["version"]), r.header.Get("ETag"))
	for _, verb := range []string{"claim", "unclaim", "complete"} {
		p := b.ask(t, ui, "POST", path+"/"+verb, object{"userId": "jane"}).fails(t, 409, "CONFLICT")
		require.Equal(t, "COMPLETED", p["currentStatus"], verb)
		require.Equal(t, []any{}, p["legal"], verb)
	}

	other, _ := b.create(t, noop())
	unknown := tasksPath + "/0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01"
	for _, verb := range []string{"claim", "unclaim", "complete"} {
		b.ask(t, ui, "POST", other+"/"+verb, object{"userId": "jane"}).fails(t, 409, "CONFLICT")
		b.ask(t, ui, "POST", unknown+"/"+verb, object{"userId": "jane"}).fails(t, 404, "NOT_FOUND")
		b.askWith(t, b.tenant(t, ui, "a"), "POST", path+"/"+verb, object{"userId": "jane"}).fails(t, 404, "NOT_FOUND")
		for at, body := range map[string]object{
			"body":        {},
			"body.userId": {"userId": "a\nb"},
			"body.more":   {"userId": "jane", "more": 1},
		} {
			require.Contains(t, violations(b.ask(t, ui, "POST", path+"/"+verb, body).fails(t, 422, "VALIDATION_ERROR")), at)
		}
		require.Equal(t, "header.If-Match", violations(b.ask(t, ui, "POST", path+"/"+verb, object{"userId": "jane"}, "If-Match", "x").fails(t, 422, "VALIDATION_ERROR"))[0])
	}
}

func TestCompleteTaskAgainstTheSchema(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.assigning(t)
	d := definition()
	d["type"], d["retryPolicy"] = "MANUAL", nil
	d["executionConfig"] = object{"executor": "manual", "assignmentRules": object{"assignee": "jane"}}
	b.ask(t, orchestrator, "PUT", definitionsPath+"/approve", d).is(t, 201)
	path, _ := b.create(t, object{"taskDefinitionId": "approve", "workflowId": "w", "input": object{"orderId": "o", "taxRate": 1}})
	var task object
	eventually(t, func() bool {
		task = b.ask(t, ui, "GET", path, nil).is(t, 200)
		return task["status"] == "ASSIGNED"
	})
	p := b.ask(t, ui, "POST", path+"/complete", object{"userId": "jane", "output": object{"total": "much"}}).fails(t, 422, "VALIDATION_ERROR")
	require.Equal(t, []string{"body.output.total"}, violations(p))
	require.Equal(t, task, b.ask(t, ui, "GET", path, nil).is(t, 200), "nothing has changed")
	b.ask(t, ui, "POST", path+"/complete", object{"userId": "jane", "output": object{"total": 1}}).is(t, 200)
}

func TestClaimable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.assigning(t)
	var all []any
	for _, rules := range []object{{"assignee": "jane"}, {"candidateUsers": []any{"jane"}}, {"defaultGroup": "g2"}, {"candidateGroups": []any{"g1"}}, {"candidateRoles": []any{"r"}}} {
		_, task := b.open(t, rules)
		all = append(all, task)
	}
	b.open(t, object{"defaultGroup": "others"})
	claimed, _ := b.open(t, object{"defaultGroup": "g2"})
	b.ask(t, ui, "POST", claimed+"/claim", object{"userId": "bob", "groups": []any{"g2"}}).is(t, 200)
	list := func(query string) []any {
		return b.ask(t, ui, "GET", tasksPath+"/user/jane"+query, nil).is(t, 200)["items"].([]any)
	}
	require.Equal(t, all[:1], list(""))
	require.Equal(t, all[:1], list("?claimable=false"))
	require.Equal(t, all[:2], list("?claimable=true"))
	require.Equal(t, all, list("?claimable=true&groups=g1,g2&roles=r"))
	require.Equal(t, all[2:3], list("?claimable=true&groups=g2")[2:])
	require.Empty(t, list("?claimable=true&groups=g2&status=RUNNING"))
	require.Empty(t, list("?claimable=true&type=AUTOMATED"))

	mine, _ := b.open(t, object{"assignee": "jane"})
	done := b.ask(t, ui, "POST", mine+"/complete", object{"userId": "jane"}).is(t, 200)
	all = append(all, done)
	var got []any
	query := "?claimable=true&groups=g1,g2&roles=r&limit=2"
	for next := ""; ; {
		page := b.ask(t, ui, "GET", tasksPath+"/user/jane"+query+next, nil).is(t, 200)
		got = append(got, page["items"].([]any)...)
		if page["nextCursor"] == nil {
			break
		}
		next = "&cursor=" + page["nextCursor"].(string)
		b.ask(t, ui, "GET", tasksPath+"/user/jane?claimable=true&groups=g1&roles=r"+next, nil).fails(t, 422, "VALIDATION_ERROR")
	}
	require.Equal(t, all, got, "what was theirs is in it, page by page")
	require.Equal(t, []string{"query.claimable"}, violations(b.ask(t, ui, "GET", tasksPath+"/user/jane?groups=g1", nil).fails(t, 422, "VALIDATION_ERROR")))
	require.Empty(t, b.askWith(t, b.tenant(t, ui, "a"), "GET", tasksPath+"/user/jane?claimable=true&groups=g1", nil).is(t, 200)["items"])
}

func TestClaimNextTask(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.assigning(t)
	next := func(user string) *reply {
		return b.ask(t, ui, "POST", tasksPath+"/claim-next", object{"userId": user, "groups": []any{"crew"}})
	}
	r := next("jane")
	require.JSONEq(t, `{"task": null}`, string(r.body))
	require.Equal(t, 200, r.status)
	require.Empty(t, r.header.Values("ETag"))

	const tasks = 12
	for range tasks {
		b.open(t, object{"defaultGroup": "crew"})
	}
	urgent, _ := b.open(t, object{"defaultGroup": "crew"}, object{"priority": "CRITICAL"})
	r = next("jane")
	first := r.is(t, 200)["task"].(object)
	require.Equal(t, urgent, tasksPath+"/"+first["taskId"].(string))
	require.Equal(t, fmt.Sprintf(`"%v"`, first["version"]), r.header.Get("ETag"))

	var mu sync.Mutex
	by := map[any]string{}
	var all sync.WaitGroup
	for i := range 8 {
		user := fmt.Sprintf("user-%d", i)
		all.Go(func() {
			for {
				task, _ := next(user).is(t, 200)["task"].(object)
				if task == nil {
					return
				}
				mu.Lock()
				if other, twice := by[task["taskId"]]; twice {
					t.Errorf("%s got what %s has", user, other)
				}
				by[task["taskId"]] = user
				mu.Unlock()
				if got := b.ask(t, ui, "GET", tasksPath+"/"+task["taskId"].(string), nil).object(t); got["assignee"] != user || got["status"] != "RUNNING" {
					t.Errorf("the claim is not seen: %v", got)
				}
			}
		})
	}
	all.Wait()
	require.Len(t, by, tasks)
}

// verdicts asks the fake's Auth Service, as cmd joins the two.
type verdicts struct{ auth *peer.Auth }

func (v verdicts) Authenticate(ctx context.Context, token string) (api.Person, error) {
	claims, err := v.auth.ValidateToken(ctx, token)
	return api.Person{Subject: claims.Subject, Tenant: claims.TenantID, Roles: claims.Roles, Groups: claims.Groups}, err
}

func TestUserTokens(t *testing.T) {
	t.Parallel()
	people := startAuth(t)
	peers, err := peer.New(peer.Config{BaseURL: people.URL(), Policy: retry.Policy{Retries: -1}})
	require.NoError(t, err)
	t.Cleanup(peers.Close)
	b := setup(t, func(c *api.Config) { c.UserTokens = verdicts{peers.Auth} })
	mint := func(subject string) string {
		token, err := people.Mint(peertest.TokenOptions{Subject: subject})
		require.NoError(t, err)
		return token
	}
	path, _ := b.create(t, manual())
	b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane"}).is(t, 200)
	jane := object{"userId": "jane"}
	posts := map[string]object{path + "/claim": jane, path + "/unclaim": jane, path + "/complete": jane, tasksPath + "/claim-next": jane}
	for at, body := range posts {
		b.ask(t, ui, "POST", at, body, "X-User-Token", mint("eve")).fails(t, 403, "FORBIDDEN")
	}
	posts[path+"/reassign"] = object{"assigneeId": "jane"}
	for at, body := range posts {
		b.ask(t, ui, "POST", at, body, "X-User-Token", "nonsense").fails(t, 401, "UNAUTHORIZED")
	}
	b.ask(t, ui, "POST", path+"/claim", jane, "X-User-Token", mint("jane")).is(t, 200)
	b.ask(t, ui, "POST", path+"/unclaim", jane, "X-User-Token", mint("jane")).is(t, 200)
	b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane"}, "X-User-Token", mint("boss")).fails(t, 403, "FORBIDDEN")
	b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane"}, "X-User-Token", mint("jane")).is(t, 200)
	var by string
	require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT actor FROM task_event ORDER BY seq DESC LIMIT 1").Scan(&by))
	require.Equal(t, "jane", by, "not the service that carried it")

	// A namesake of another tenant is another person, also where the answer is remembered.
	of := func(tenant string) string {
		token, err := people.Mint(peertest.TokenOptions{Subject: "jane", Tenant: tenant})
		require.NoError(t, err)
		return token
	}
	other := of("other")
	for range 2 {
		for at, body := range posts {
			b.ask(t, ui, "POST", at, body, "X-User-Token", other).fails(t, 403, "FORBIDDEN")
		}
	}
	acme := b.tenant(t, ui, "acme")
	for _, theirs := range []string{mint("jane"), other} {
		b.askWith(t, acme, "POST", tasksPath+"/claim-next", jane, "X-User-Token", theirs).fails(t, 403, "FORBIDDEN")
	}
	b.askWith(t, acme, "POST", tasksPath+"/claim-next", jane, "X-User-Token", of("acme")).is(t, 200)

	// While the Auth Service is away nothing is known of a token, and none is believed.
	people.Steer(peertest.Auth, peertest.Steering{Mode: peertest.ModeError})
	r := b.ask(t, ui, "POST", path+"/claim", jane, "X-User-Token", mint("jane"))
	r.fails(t, 503, "UNAVAILABLE")
	require.Equal(t, "1", r.header.Get("Retry-After"))
	b.ask(t, ui, "POST", path+"/claim", jane).is(t, 200)

	strict := setup(t, func(c *api.Config) { c.RequireUserToken = true })
	unclaimed, _ := strict.create(t, manual())
	for _, at := range []string{unclaimed + "/claim", unclaimed + "/unclaim", unclaimed + "/complete", tasksPath + "/claim-next"} {
		strict.ask(t, ui, "POST", at, jane).fails(t, 401, "UNAUTHORIZED")
		strict.ask(t, ui, "POST", at, jane, "X-User-Token", mint("jane")).fails(t, 401, "UNAUTHORIZED") // nobody is there to know it
	}
	strict.ask(t, ui, "POST", unclaimed+"/reassign", object{"assigneeId": "jane"}).fails(t, 401, "UNAUTHORIZED")
	strict.ask(t, ui, "GET", unclaimed, nil).is(t, 200)
}
