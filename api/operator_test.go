package api_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
)

// What an operator does to a job in River UI is done to its task, in the operator's
// name; River UI sees only what is left for it.
func TestOperatorsActOnTasks(t *testing.T) {
	t.Parallel()
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "river: %s %s", r.URL.Path, body)
	})
	b := setup(t, func(c *api.Config) {
		c.Mounts = []api.Mount{{
			Prefix: "/riverui", Handler: page, RiverUI: true, Login: &api.Login{Viewer: "tasks:metrics", Operator: "tasks:cancel"},
		}}
	})
	b.obeying(t)
	act := func(verb, token string, ids ...int64) *reply {
		list := make([]any, len(ids))
		for i, id := range ids {
			list[i] = fmt.Sprint(id) // as the page writes it
		}
		return b.askWith(t, token, "POST", "/riverui/api/jobs/"+verb, object{"ids": list})
	}
	operator := b.auth.Token(orchestrator)
	job := func(task string) (id int64) {
		require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT job_id FROM task WHERE task_id = $1", task).Scan(&id))
		return id
	}
	told := func(task, event string) (who string) {
		require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT actor FROM task_event WHERE task_id = $1 AND type = $2", task, event).Scan(&who))
		return who
	}

	for verb, done := range map[string]string{"cancel": "cancelled", "delete": "deleted"} {
		task := b.forWorkers(t)
		id := job(task)
		require.Equal(t, 403, act(verb, b.auth.Token(monitoring), id).status, "a viewer")
		require.Equal(t, fmt.Sprintf(`river: /riverui/api/jobs/%s {"ids":[%d]}`, verb, id), string(act(verb, operator, id).body))
		require.Equal(t, "CANCELLED", b.ask(t, orchestrator, "GET", tasksPath+"/"+task, nil).is(t, 200)["status"])
		require.Equal(t, "river-ui:"+orchestrator, told(task, "canceled"))
		last := b.ask(t, orchestrator, "GET", tasksPath+"/"+task+"/events", nil).is(t, 200)["items"].([]any)
		require.Contains(t, fmt.Sprint(last), "the job was "+done+" in River UI")
	}

	letter := b.dead(t, "X", "no paper")
	require.Contains(t, string(act("cancel", operator, job(letter)).body), "river:")
	discarded := ""
	require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT actor FROM dead_letter_discard WHERE task_id = $1", letter).Scan(&discarded))
	require.Equal(t, "river-ui:"+orchestrator, discarded)

	// A retry is a redrive, be it of the dead letter or of the attempt that failed.
	second := b.dead(t, "X", "no ink")
	var attempt int64
	require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT job_id FROM task_attempt WHERE task_id = $1", second).Scan(&attempt))
	require.JSONEq(t, `{"status": "ok"}`, string(act("retry", operator, attempt).body))
	eventually(t, func() bool {
		var n int
		require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT count(*) FROM task_event WHERE task_id = $1 AND type = 'redriven'", second).Scan(&n))
		return n == 1
	})
	require.Equal(t, "river-ui:"+orchestrator, told(second, "redriven"))

	// What waits for its time, and what is no task's, is River's to hurry.
	waiting := b.forWorkers(t)
	require.Contains(t, string(act("retry", operator, job(waiting), 1<<60).body), fmt.Sprintf(`{"ids":[%d,%d]}`, job(waiting), int64(1)<<60))

	// Queues are paused and resumed in the operator's name; River UI has nothing left to do.
	const queue = "/riverui/api/queues/task-execution-automated/"
	require.Equal(t, 403, b.askWith(t, b.auth.Token(monitoring), "PUT", queue+"pause", nil).status, "a viewer")
	require.JSONEq(t, `{"status": "ok"}`, string(b.askWith(t, operator, "PUT", queue+"pause", nil).body))
	path, _ := b.create(t, noop())
	b.why(t, path, "PAUSED", "^task-execution-automated has been paused since 20.*Z by river-ui:"+orchestrator+"$")
	require.JSONEq(t, `{"status": "ok"}`, string(b.askWith(t, operator, "PUT", queue+"resume", nil).body))
	b.stands(t, path, "COMPLETED")
	last := b.ask(t, orchestrator, "GET", "/api/internal/pauses?all=true", nil).is(t, 200)["items"].([]any)[0].(object)
	require.Equal(t, []any{"river-ui:" + orchestrator, "", "river-ui:" + orchestrator}, []any{last["pausedBy"], last["reason"], last["resumedBy"]})
	for _, verb := range []string{"pause", "resume"} {
		b.askWith(t, operator, "PUT", "/riverui/api/queues/nowhere/"+verb, nil).fails(t, 404, "NOT_FOUND")
	}
	require.JSONEq(t, `{"status": "ok"}`, string(b.askWith(t, operator, "PUT", "/riverui/api/queues/task-execution-retry/resume", nil).body), "never paused, as River has it")
	require.Contains(t, string(b.askWith(t, operator, "PATCH", "/riverui/api/queues/task-execution-automated", object{}).body), "river:")

	for _, bad := range []string{`{"ids": []}`, `{"ids": ["x"]}`, `{}`, `[`, `{"ids": [` + strings.Repeat("1,", 1000) + `1]}`} {
		b.askWith(t, operator, "POST", "/riverui/api/jobs/cancel", bad).fails(t, 422, "VALIDATION_ERROR")
	}
}
