package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/jobs"
	manually "github.com/seed-3f7a0631/tes/jobs/manual"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// people are the User Service and the Notification Service, as cmd joins them.
type people struct{ *peer.Services }

func (p people) ByRole(ctx context.Context, role string, skills []string) (out []manually.Person, err error) {
	users, err := p.Users.ByRole(ctx, role, skills)
	for _, u := range users {
		out = append(out, manually.Person{ID: u.ID, Name: u.Name})
	}
	return out, err
}

func (p people) Name(ctx context.Context, id string) (string, error) {
	user, err := p.Users.Get(ctx, id)
	return user.Name, err
}

func (p people) Notify(ctx context.Context, n jobs.Notice) error {
	return p.Notifications.Notify(ctx, peer.NotifyRequest{
		Channel: n.Channel, UserID: n.UserID, Template: n.Template, Data: n.Data, IdempotencyKey: n.Key,
	})
}

// peers starts fake peer services. Their clients send each request once.
func (b *testBundle) peers(t *testing.T) (people, *peertest.Server) {
	t.Helper()
	there := startAuth(t)
	n, err := peer.New(peer.Config{BaseURL: there.URL(), Policy: retry.Policy{Retries: -1, MinExecutions: 1000}})
	require.NoError(t, err)
	t.Cleanup(n.Close)
	return people{n}, there
}

func (b *testBundle) work(t *testing.T, executor jobs.Executor) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	runner := jobs.NewRunner(b.tasks, jobs.RunnerConfig{Executors: map[string]jobs.Registration{"manual": {Assigns: true, Executor: executor}}})
	go func() { ended <- runner.Run(ctx, 0) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// "User Service | Use cached user data or default assignment rules"
func TestFallbackOfTheUserService(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p, there := b.peers(t)
	b.work(t, manually.New(p, b.tasks.Worklist))
	rules := object{"role": "reviewer", "skills": []any{"tax"}, "defaultAssignee": "deputy"}
	_, task := b.open(t, rules)
	require.Contains(t, []any{"reviewer-1", "reviewer-2"}, task["assignee"])

	there.Steer(peertest.User, peertest.Steering{Mode: peertest.ModeGone})
	_, task = b.open(t, rules)
	require.Contains(t, []any{"reviewer-1", "reviewer-2"}, task["assignee"], "as it was told before")
	_, task = b.open(t, object{"role": "reviewer", "skills": []any{"tax"}, "strategy": "least-loaded", "defaultAssignee": "deputy"})
	require.Contains(t, []any{"reviewer-1", "reviewer-2"}, task["assignee"])
	_, task = b.open(t, object{"role": "pilot", "defaultAssignee": "deputy", "defaultGroup": "crew"})
	require.Equal(t, "deputy", task["assignee"], "never asked before: the default")
	_, task = b.open(t, object{"role": "pilot", "expression": "people[0].id", "defaultGroup": "crew"})
	require.Equal(t, "crew", task["groupId"])
}

// notices tells people of their tasks.
func (b *testBundle) notices(t *testing.T, n jobs.Notifier) {
	t.Helper()
	pool, err := pgpool.Open(t.Context(), dbtest.URL(b.pool), pgpool.Config{Name: "river", MaxConns: 4})
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	river, err := jobs.NewRiver(pool, b.tasks.ProcessID(), nil, jobs.NewNotices(b.tasks, n))
	require.NoError(t, err)
	require.NoError(t, river.Start(context.WithoutCancel(t.Context())))
	t.Cleanup(func() { require.NoError(t, river.Stop(context.Background())) })
}

// told is a task of jane's, of which she is told by these channels.
func (b *testBundle) told(t *testing.T, channels ...any) (path string, task object) {
	t.Helper()
	path, _ = b.create(t, manual(object{"executionConfig": object{
		"executor": "manual", "assignmentRules": object{"assignee": "jane"}, "notifications": object{"channels": channels},
	}}))
	eventually(t, func() bool {
		task = b.ask(t, ui, "GET", path, nil).is(t, 200)
		return task["status"] == "ASSIGNED"
	})
	return path, task
}

// noticed is what became of the task's one notice: its channel, outcome and tries.
func (b *testBundle) noticed(t *testing.T, path string) (text string) {
	t.Helper()
	eventually(t, func() bool {
		return b.pool.QueryRow(t.Context(), "SELECT concat_ws(' ', channel, outcome, tries) FROM report.notice WHERE task_id = $1 AND outcome <> 'waiting'",
			taskID(t, path)).Scan(&text) == nil
	})
	return text
}

// One channel is down for long, with the production policy's breaker and, but for their
// unit, its pauses: the next channel takes every notice, also once the breaker is open.
func TestOneChannelDownIsNotTheNext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var asked struct{ Channel string }
		if json.NewDecoder(r.Body).Decode(&asked) != nil || asked.Channel == "chat" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(front.Close)
	n, err := peer.New(peer.Config{BaseURL: front.URL, Policy: retry.Policy{Backoff: time.Millisecond, MaxBackoff: 300 * time.Millisecond}})
	require.NoError(t, err)
	t.Cleanup(n.Close)
	b.work(t, manually.New(people{n}, b.tasks.Worklist))
	b.notices(t, people{n})
	for range 6 {
		path, _ := b.told(t, "chat", "email")
		require.Equal(t, "email sent 1", b.noticed(t, path))
	}
	states := map[string]retry.State{}
	for _, each := range n.Notifications.Breakers() {
		states[each.Status().Name] = each.Status().State
	}
	require.Equal(t, map[string]retry.State{
		"notification/in-app": retry.Closed, "notification/email": retry.Closed, "notification/push": retry.Closed, "notification/chat": retry.Open,
	}, states)
}

// "Notification Service | Use alternative notification channels"
func TestFallbackOfTheNotificationService(t *testing.T) {
	t.Parallel()
	b := setup(t)
	p, there := b.peers(t)
	b.work(t, manually.New(p, b.tasks.Worklist))
	b.notices(t, p)

	type sent struct {
		Channel, UserID, Template string
		Data                      map[string]any
	}
	asked := func(n int) []sent {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		requests, err := there.Await(ctx, peertest.Notification, n)
		require.NoError(t, err)
		out := make([]sent, len(requests))
		for i, r := range requests {
			require.NoError(t, json.Unmarshal(r.Body, &out[i]))
			require.Regexp(t, `^notice-\d+:`+out[i].Channel+`$`, r.Headers["Idempotency-Key"])
		}
		return out
	}
	outcome := func(path string) string { return b.noticed(t, path) }
	task := func() (string, object) { return b.told(t, "chat", "push", "email") }

	// Two channels are down: the third takes it, in the same try.
	there.Steer(peertest.Notification, peertest.Steering{Mode: peertest.ModeError, Times: 2})
	path, made := task()
	got := asked(3)
	require.Equal(t, "email sent 1", outcome(path))
	require.Equal(t, []string{"chat", "push", "email"}, []string{got[0].Channel, got[1].Channel, got[2].Channel})
	require.Equal(t, "jane task-assigned", got[2].UserID+" "+got[2].Template)
	require.Equal(t, map[string]any{
		"event": "assigned", "taskId": made["taskId"], "taskName": made["taskDefinitionId"], "workflowId": made["workflowId"],
		"dueDate": made["dueDate"], "priority": made["priority"], "percent": 0.0,
	}, got[2].Data)

	// All are down, and come back: it waits, and is sent once.
	there.Clear(peertest.Notification)
	there.Steer(peertest.Notification, peertest.Steering{Mode: peertest.ModeGone})
	path, _ = task()
	eventually(t, func() bool {
		var tries int
		return b.pool.QueryRow(t.Context(), "SELECT tries FROM report.notice WHERE task_id = $1", taskID(t, path)).Scan(&tries) == nil && tries > 1
	})
	there.Steer(peertest.Notification, peertest.Steering{Mode: peertest.ModeOK})
	var channel, how string
	var tries int
	_, err := fmt.Sscan(outcome(path), &channel, &how, &tries)
	require.NoError(t, err)
	require.Equal(t, "sent", how)
	got = asked(1)
	require.Equal(t, channel, got[len(got)-1].Channel)
	require.Len(t, got, 3*(tries-1)+slices.Index([]string{"chat", "push", "email"}, channel)+1, "each try in vain was all three, and the last ended with the first that took it")
}
