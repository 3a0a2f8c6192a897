package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// canary is a credential that a failure speaks of.
const canary = "hunter2canary"

// indiscreet is a failure that says it wherever a failure can.
func indiscreet() *Failure {
	return &Failure{
		Code: "password=" + canary, Message: "cannot reach postgres://u:" + canary + "@h/db: password=" + canary,
		StackTrace: "at connect(Authorization: Bearer " + canary + ")",
		Details:    json.RawMessage(`{"db_password": "` + canary + `", "env": ["API_KEY=` + canary + `"]}`),
		Retryable:  ptr(false),
	}
}

// Whoever it comes from, a failure passes the same rule on its way into the row, the
// attempt, the event, the queue, the reports and the log.
func TestNoFailureKeepsACredential(t *testing.T) {
	t.Parallel()
	bare := fmt.Errorf("dial: %w", errors.New(indiscreet().Message))
	fails := func(executor ExecutorFunc) func(b *testBundle) uuid.UUID {
		return func(b *testBundle) uuid.UUID {
			b.work(noop(executor))
			return b.create().TaskID
		}
	}
	for name, path := range map[string]func(b *testBundle) uuid.UUID{
		"an executor's failure": fails(does("", indiscreet())), // expression, http, integration
		"a Go handler's error":  fails(does("", bare)),
		"a Go handler's panic":  fails(func(context.Context, Job) (Result, error) { panic(indiscreet().Message) }),
		"resources refused": func(b *testBundle) uuid.UUID {
			b.work(noop(does("{}", nil)), func(cfg *RunnerConfig) {
				cfg.Allocate = func(context.Context, Job) (Allocation, error) { return Allocation{}, indiscreet() }
			})
			return b.create(func(req *Request) { req.Config.ResourceRequirements = &ResourceRequirements{CPU: "1"} }).TaskID
		},
		"nobody to assign to": func(b *testBundle) uuid.UUID {
			b.work(map[string]Registration{"manual": {Assigns: true, Executor: does("", indiscreet())}})
			return b.create(manual).TaskID
		},
		"a worker's failure": func(b *testBundle) uuid.UUID {
			task := b.create(remote)
			lease := b.dequeueOne("w-1")
			for range 2 { // said again, it is the same word
				_, err := b.Leases.Fail(b.ctx, "", lease.Token, indiscreet(), 0)
				require.NoError(b.t, err)
			}
			return task.TaskID
		},
		"a worker's release, then a failure": func(b *testBundle) uuid.UUID {
			task := b.create(remote)
			lease := b.dequeueOne("w-1")
			for range 2 {
				_, err := b.Leases.Release(b.ctx, "", lease.Token, 0, indiscreet().Message)
				require.NoError(b.t, err)
			}
			_, err := b.Leases.Fail(b.ctx, "", b.dequeueOne("w-1").Token, indiscreet(), 0)
			require.NoError(b.t, err)
			return task.TaskID
		},
		"a dead letter that its handler failed at": func(b *testBundle) uuid.UUID {
			task := b.deadLetters(1)[0]
			lease := b.dequeue("handler", letters)[0]
			for range 2 {
				_, err := b.Leases.Fail(b.ctx, "", lease.Token, indiscreet(), 0)
				require.NoError(b.t, err)
			}
			return task.TaskID
		},
		"a person's failure": func(b *testBundle) uuid.UUID {
			task := b.create(remote)
			_, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "jane"}, Update{Status: Failed, Error: indiscreet()})
			require.NoError(b.t, err)
			return task.TaskID
		},
		"a person's timeout, by its reason": func(b *testBundle) uuid.UUID {
			task := b.create(remote)
			_, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "jane", Reason: indiscreet().Message}, Update{Status: TimedOut})
			require.NoError(b.t, err)
			return task.TaskID
		},
		"an integration's answer by event": func(b *testBundle) uuid.UUID {
			task := b.awaits()
			said, err := b.Respond(b.ctx, answer(task, func(in *outbox.IntegrationResponse) {
				f := indiscreet()
				in.Status, in.Retryable = "FAILED", f.Retryable
				require.NoError(b.t, json.Unmarshal([]byte(`{"error": {"code": "X", "message": "`+f.Message+`", "details": `+string(f.Details)+`}}`), in))
			}))
			require.NoError(b.t, err)
			require.Equal(b.t, "failed", said)
			return task.TaskID
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			id := path(b)
			b.until(id, "a dead letter", func(task db.Task) bool { return Status(task.Status).Terminal() })
			require.EqualValues(t, 1, ask[int](b, "SELECT count(*) FROM report.dead_letter WHERE task_id = $1", id))
			b.holdsNo(canary)
			require.NotContains(t, b.log.String(), canary, "the log")
		})
	}
}

// holdsNo demands that a text stands in no table, and in no report.
func (b *testBundle) holdsNo(text string) {
	b.t.Helper()
	rows, err := b.pool.Query(b.ctx, "SELECT table_schema || '.' || table_name FROM information_schema.tables WHERE table_schema IN ('public', 'report')")
	require.NoError(b.t, err)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(b.t, err)
	require.Greater(b.t, len(tables), 20)
	for _, table := range tables {
		require.Zero(b.t, ask[int](b, "SELECT count(*) FROM "+table+" x WHERE position($1 IN x::text) > 0", text), table)
	}
}
