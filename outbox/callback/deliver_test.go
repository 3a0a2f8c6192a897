package callback_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/callback"
	"github.com/seed-3f7a0631/tes/outbox/outboxtest"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// Status, output and error are those of the move, whatever has happened since.
func TestCallbackTellsTheMoment(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := newOrchestrator(t)
	task := b.called(o.URL)
	b.Exec(`INSERT INTO task_attempt (task_id, attempt, outcome, job_id, started_at, ended_at, executor_id, error)
		VALUES ($1, 1, 'FAILED', 1, now(), now(), 'p', '{"code": "E1", "message": "<first>"}')`, task)
	b.moves(task, 0, "created", "started", "failed")
	b.Force(`UPDATE task SET status = 'COMPLETED', ended_at = now(), attempt = 2, error = NULL, output = '{"total": 50.73}' WHERE task_id = $1`, task)
	b.moves(task, 0, "redriven", "started", "completed")
	b.dispatch(b.caller(o.secret, loopback...))
	b.allTold()
	var bodies []string
	for _, p := range o.seen() {
		bodies = append(bodies, string(p.body))
	}
	head := `{"taskId":"` + task.String() + `","workflowId":"wf","stepId":"s-1","status":`
	require.Equal(t, []string{
		head + `"RUNNING","correlationId":"c"}`,
		head + `"FAILED","error":{"code":"E1","message":"\u003cfirst\u003e"},"correlationId":"c"}`,
		head + `"RUNNING","correlationId":"c"}`,
		head + `"COMPLETED","output":{"total":50.73},"correlationId":"c"}`,
	}, bodies)
}

// An address that may not be called is given up at once, with the reason; so is one
// that is gone for good. The task's later updates go on.
func TestGivenUpAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	o := newOrchestrator(t)
	inside := b.called(o.URL + "/?key=s3cret")
	b.moves(inside, 0, "created", "started")
	_, stop := b.dispatch(b.caller(o.secret)) // no private network is allowed
	b.allTold()
	stop()
	require.Empty(t, o.seen())
	require.Equal(t, "GIVEN_UP 2 1 the address is not one that may be called",
		ask[string](b, "SELECT format('%s %s %s %s', state, seq, tries, problem) FROM report.callback WHERE task_id = $1", inside))
	require.Contains(t, b.Log.String(), "callback abandoned")
	require.NotContains(t, b.Log.String(), "s3cret")

	var gone string
	o.answers(func(_ *http.Request, _, id string) int {
		if id == gone {
			return 410
		}
		return 200
	})
	task := b.called(o.URL)
	gone = outbox.EventID(task, 3).String()
	b.moves(task, 0, "created", "started", "retry", "started", "completed")
	b.dispatch(b.caller(o.secret, loopback...))
	b.allTold()
	require.Equal(t, []string{outbox.EventID(task, 2).String(), outbox.EventID(task, 4).String(), outbox.EventID(task, 5).String()}, o.taken(task))
	require.Equal(t, "GIVEN_UP 3 1 the answer is 410 Gone",
		ask[string](b, "SELECT format('%s %s %s %s', state, seq, tries, problem) FROM report.callback WHERE task_id = $1", task))
}

// An answer that says no is asked again, ever more slowly, and opens no breaker.
func TestRefusedIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.called("https://example.org/")
	b.moves(task, 0, "started")
	tries := 0
	b.dispatch(scripted(func(context.Context, string, string) error {
		if tries++; tries <= 30 {
			return &outbox.Refused{Reason: "the answer is 404 Not Found"}
		}
		return nil
	}))
	b.allTold()
	require.Equal(t, 31, tries)
	require.NotContains(t, b.Log.String(), "breaker")
}

// A host that asks to be left alone for a while is, for no longer than the policy's longest
// pause.
func TestRetryAfterIsKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for address, asked := range map[string]time.Duration{
		"https://a.example.org/": 30 * time.Second, "https://b.example.org/": time.Hour,
	} {
		task := b.called(address)
		b.moves(task, 0, "started")
		_, stop := b.dispatch(scripted(func(_ context.Context, to, _ string) error {
			require.Equal(t, address, to)
			return retry.Postpone(errors.New("the answer is 429 Too Many Requests"), asked)
		}), func(cfg *callback.Config) { cfg.BackoffMax = time.Minute })
		var wait float64
		require.Eventually(t, func() bool {
			err := b.Pool.QueryRow(t.Context(), "SELECT extract(epoch FROM due_at - now()) FROM callback WHERE task_id = $1 AND tries = 1", task).Scan(&wait)
			return err == nil
		}, outboxtest.Patience, 10*time.Millisecond)
		stop()
		require.InDelta(t, min(asked, time.Minute).Seconds(), wait, 20)
		b.Force("DELETE FROM callback")
	}
}

// What nobody takes for days is given up when a call was in vain once more: that
// update when its host is there, all that are as old when it is away.
func TestGivenUpForItsAge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := b.called("https://example.org/")
	b.moves(old, 73*time.Hour, "created", "started")
	b.moves(old, time.Hour, "completed")
	refuse := true
	_, stop := b.dispatch(scripted(func(context.Context, string, string) error {
		if refuse {
			refuse = false
			return &outbox.Refused{Reason: "the answer is 403 Forbidden"}
		}
		return nil
	}))
	b.allTold()
	stop()
	require.Equal(t, "2 the answer is 403 Forbidden", ask[string](b, "SELECT string_agg(seq || ' ' || problem, ',') FROM callback_given_up"))

	var young uuid.UUID
	for range 40 {
		b.moves(b.called("https://away.example.org/"), 80*time.Hour, "created", "started", "completed")
	}
	young = b.called("https://away.example.org/")
	b.moves(young, 80*time.Hour, "created", "started")
	b.moves(young, time.Hour, "retry")
	_, stop = b.dispatch(scripted(func(context.Context, string, string) error { return errors.New("no answer: connection refused") }))
	outboxtest.WaitFor(t, "all the old ones to be given up", func() bool {
		return ask[int](b, "SELECT count(*) FROM callback_given_up") == 1+2*40+1 && ask[int](b, "SELECT count(*) FROM callback") == 1
	})
	stop()
	require.Equal(t, 2, ask[int](b, "SELECT told FROM callback WHERE task_id = $1", young))
	require.Contains(t, b.Log.String(), "callback")
	var taken []string
	b.dispatch(scripted(func(_ context.Context, _, id string) error { taken = append(taken, id); return nil }))
	b.allTold()
	require.Equal(t, []string{outbox.EventID(young, 3).String()}, taken)
}
