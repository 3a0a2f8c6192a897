package jobs

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

var callID = CallID{Tenant: "", Caller: "ui", Operation: "cancelTask", Key: "k"}

// call begins one that answers with the version that its move came to.
func (b *testBundle) call(hash string) *Call {
	b.t.Helper()
	c, before, err := b.Calls.Begin(b.ctx, callID, []byte(hash))
	require.NoError(b.t, err)
	require.Nil(b.t, before)
	c.Answer = func(made any) (CallAnswer, error) {
		body, err := json.Marshal(made.(*db.Task).Version)
		return CallAnswer{Status: 200, Header: map[string]string{"ETag": string(body)}, Body: body}, err
	}
	return c
}

// late makes every call that is under way one that did not end in its time.
func (b *testBundle) late() {
	b.t.Helper()
	_, err := b.pool.Exec(b.ctx, "UPDATE call_answer SET until = now()")
	require.NoError(b.t, err)
}

// A process is killed between taking the turn of a call and its effect. Whoever repeats the
// call takes the turn over, and acts. Were the process not dead, its effect would come too
// late: one of the two acts, and the answer is that one's.
func TestACallWhoseTurnIsTakenOverDoesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task, _, err := b.Create(b.ctx, request())
	require.NoError(t, err)
	stopped := b.call("body")
	var underWay *CallUnderWay
	_, _, err = b.Calls.Begin(b.ctx, callID, []byte("body"))
	require.ErrorAs(t, err, &underWay)
	require.Positive(t, underWay.Wait)
	require.LessOrEqual(t, underWay.Wait, callTimeout)

	b.late()
	_, _, err = b.Calls.Begin(b.ctx, callID, []byte("another body"))
	require.ErrorIs(t, err, ErrKeyReused)
	other := b.call("body")
	_, err = b.Cancel(b.ctx, task.TaskID, Actor{Name: "ui", Call: stopped})
	require.ErrorAs(t, err, &underWay, "its turn is over")
	b.Calls.Abandon(b.ctx, stopped) // which is not its to release
	got, err := b.Get(b.ctx, "", task.TaskID)
	require.NoError(t, err)
	require.EqualValues(t, 1, got.Version, "nothing was done")

	done, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "ui", Call: other})
	require.NoError(t, err)
	require.NotNil(t, other.StoredAnswer())
	require.EqualValues(t, 2, done.Version)
	b.Calls.Abandon(b.ctx, other) // an answer stays
	_, before, err := b.Calls.Begin(b.ctx, callID, []byte("body"))
	require.NoError(t, err)
	require.Equal(t, &CallAnswer{Status: 200, Header: map[string]string{"ETag": "2"}, Body: []byte("2")}, before)
}

// The answer that cannot be kept keeps the effect from being committed: there is no moment
// with the one and without the other.
func TestAnEffectWithoutItsAnswerIsNotCommitted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task, _, err := b.Create(b.ctx, request())
	require.NoError(t, err)
	c := b.call("body")
	c.Answer = func(any) (CallAnswer, error) { return CallAnswer{Status: 200}, nil } // without a body the table refuses it
	_, err = b.Cancel(b.ctx, task.TaskID, Actor{Name: "ui", Call: c})
	require.Error(t, err)
	got, err := b.Get(b.ctx, "", task.TaskID)
	require.NoError(t, err)
	require.EqualValues(t, 1, got.Version)
	require.Zero(t, ask[int](b, "SELECT count(*) FROM call_answer WHERE status IS NOT NULL"))
}

// Two calls in one batch are settled in one commit, each with its own task.
func TestCallsShareACommit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var round []*transition
	var calls []*Call
	for range 3 {
		task, _, err := b.Create(b.ctx, request())
		require.NoError(t, err)
		callID := callID
		callID.Key = uuid.NewString()
		c, _, err := b.Calls.Begin(b.ctx, callID, []byte("body"))
		require.NoError(t, err)
		c.Answer = func(made any) (CallAnswer, error) {
			return CallAnswer{Status: 200, Body: []byte(made.(*db.Task).TaskID.String())}, nil
		}
		calls = append(calls, c)
		round = append(round, &transition{
			task: task.TaskID, expect: atVersion(0, Pending), to: Cancelled, event: db.TaskEventTypeCanceled, actor: "a",
			executor: "a", endJob: db.RiverJobStateCancelled, outcome: db.AttemptOutcomeCANCELLED, call: c,
		})
	}
	for i, out := range b.applyAll(round) {
		require.True(t, out.applied, out.err)
		require.Equal(t, round[i].task.String(), string(calls[i].StoredAnswer().Body))
	}
}

// Answers are kept for a day, and forgotten by pages.
func TestAnswersAreKeptForADay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.pool.Exec(b.ctx, `
		INSERT INTO call_answer (tenant_id, caller, operation, call_key, turn, until, at, body_hash, status, headers, body)
		SELECT '', 'c', 'o', 'old ' || n, n, now(), now() - interval '1 day 1 second', ''::bytea, 200, '{}'::jsonb, ''::bytea FROM generate_series(1, $1::int) n
		UNION ALL SELECT '', 'c', 'o', 'young', 0, now(), now() - interval '23 hours 59 minutes', '', 200, '{}', ''
		UNION ALL SELECT '', 'c', 'o', 'killed', 0, now(), now() - interval '2 days', '', NULL, NULL, NULL`, 2*callPage+1)
	require.NoError(t, err)
	b.work(nil, func(cfg *RunnerConfig) { cfg.Tick = 20 * time.Millisecond })
	waitFor(t, "old answers to be forgotten", func() bool {
		return ask[int](b, "SELECT count(*) FROM call_answer") == 1
	})
	require.Equal(t, "young", ask[string](b, "SELECT call_key FROM call_answer"))
}

// A create that is sent again is answered by its key, also by a process that would not make
// the task: one without the secret that signs callbacks. Another key is refused.
func TestACreateIsAnsweredAgainByAProcessThatWouldRefuseIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	poor := join(t, b.pool, "poor", func(cfg *Config) {
		cfg.CheckCallback = func(string) error { return errors.New("nobody signs") }
	})
	keyed := func(key string) Request {
		return request(func(req *Request) {
			req.Key, req.Body, req.CallbackURL = key, []byte(`{"a": 1}`), "https://example.com/"
		})
	}
	made, fresh, err := b.Create(b.ctx, keyed("k"))
	require.NoError(t, err)
	require.True(t, fresh)
	again, fresh, err := poor.Create(poor.ctx, keyed("k"))
	require.NoError(t, err)
	require.False(t, fresh)
	require.Equal(t, made.TaskID, again.TaskID)

	other := keyed("k")
	other.Body = []byte(`{"a": 2}`)
	var refused *Invalid
	_, _, err = poor.Create(poor.ctx, other)
	require.ErrorIs(t, err, ErrKeyReused)
	_, _, err = poor.Create(poor.ctx, keyed("k2"))
	require.ErrorAs(t, err, &refused)

	many := poor.CreateMany(poor.ctx, []Request{keyed("k2"), keyed("k"), other, request()})
	require.ErrorAs(t, many[0].Err, &refused)
	require.Equal(t, made.TaskID, many[1].Task.TaskID)
	require.ErrorIs(t, many[2].Err, ErrKeyReused)
	require.True(t, many[3].Fresh)
}
