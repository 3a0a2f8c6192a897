package jobs

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/db/dbtest"
)

// stranger is a session of tes_report, which may connect and so may notify.
func stranger(t *testing.T, b *testBundle) func(channel, payload string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dbtest.URL(b.pool))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = conn.Exec(t.Context(), "SET ROLE tes_report")
	require.NoError(t, err)
	return func(channel, payload string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), "SELECT pg_notify($1, $2)", channel, payload)
		require.NoError(t, err)
	}
}

// running is a task whose executor goes on at carryOn, and closes over when its context
// ended. Tasks with another input end at once.
func running(t *testing.T, b *testBundle) (task db.Task, over, carryOn chan struct{}) {
	t.Helper()
	begun, over, carryOn := make(chan struct{}), make(chan struct{}), make(chan struct{})
	b.work(map[string]Registration{"noop": {Executor: ExecutorFunc(func(ctx context.Context, job Job) (Result, error) {
		if !strings.Contains(string(job.Input), "wait") {
			return Result{}, nil
		}
		close(begun)
		select {
		case <-ctx.Done():
			close(over)
			return Result{}, context.Cause(ctx)
		case <-carryOn:
			return Result{}, nil
		}
	})}})
	made := b.create(input(`{"wait": true}`))
	<-begun
	return b.becomes(made.TaskID, Running), over, carryOn
}

// A notification that anybody may send ends nobody's work: the task's row does, once it
// says so.
func TestForgedCancellationEndsNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task, over, carryOn := running(t, b)
	notify := stranger(t, b)
	payload := fmt.Sprintf("%s %d", task.TaskID, task.JobID)
	for range 3 {
		notify("tes_cancel", payload)
	}

	// What comes after them on the same session is looked at after them: a definition
	// that changes by hand is forgotten.
	b.defs.remember("", "heard", definitionKey{}, b.defs.changes)
	notify("tes_definition", "heard")
	waitFor(t, "the notifications to be heard", func() bool {
		b.defs.mu.RLock()
		defer b.defs.mu.RUnlock()
		_, known := b.defs.newest["heard"]
		return !known
	})
	select {
	case <-over:
		t.Fatal("a notification ended the attempt")
	default:
	}

	close(carryOn)
	b.becomes(task.TaskID, Completed)
}

// The same notification ends the attempt when the row says that it is over.
func TestCancellationIsHeardByTheRow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task, over, _ := running(t, b)
	other := join(t, b.pool, "p2")
	_, err := other.Cancel(b.ctx, task.TaskID, Actor{Name: "ui", Reason: "x"})
	require.NoError(t, err)
	select {
	case <-over:
	case <-time.After(patience):
		t.Fatal("the other process was not told")
	}
}

// Ten thousand notifications of eight thousand bytes, in every channel and of every
// shape, leave the work, the log and the answers as they were.
func TestAFloodOfNotificationsChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task, over, carryOn := running(t, b)
	conn, err := pgx.Connect(t.Context(), dbtest.URL(b.pool))
	require.NoError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(t.Context(), "SET ROLE tes_report")
	require.NoError(t, err)
	before := len(b.log.String())
	flooded := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), `
			SELECT pg_notify(
				(ARRAY['tes_lane', 'tes_cancel', 'tes_definition', 'tes_shutdown', 'river_control', 'river_insert', 'river_leadership'])[1 + n % 7],
				CASE n % 3
					WHEN 0 THEN rpad(n::text, 7999, 'x')
					WHEN 1 THEN $1 || ' ' || $2 || CASE n % 2 WHEN 0 THEN '' ELSE n::text END
					ELSE '{"action": "pause", "queue": "*", "n": ' || n || '}'
				END)
			FROM generate_series(1, 10000) n`, task.TaskID.String(), fmt.Sprint(task.JobID))
		flooded <- err
	}()
	for range 20 {
		b.becomes(b.create(input(`{}`)).TaskID, Completed)
	}
	require.NoError(t, <-flooded)
	b.becomes(b.create(input(`{}`)).TaskID, Completed)
	select {
	case <-over:
		t.Fatal("a notification ended the attempt")
	default:
	}
	close(carryOn)
	b.becomes(task.TaskID, Completed)
	require.Less(t, strings.Count(b.log.String()[before:], "\n"), 100, "the log was flooded")
}

func told(channel, payload string) *pgconn.Notification {
	return &pgconn.Notification{Channel: channel, Payload: payload}
}

// What is gathered between two looks is bounded, whatever comes.
func TestHearsayIsBounded(t *testing.T) {
	t.Parallel()
	tasks := &Tasks{}
	h := newNotifications()
	for i := range 10_000 {
		h.add(tasks, told(channelDefinition, fmt.Sprint(i)))
		h.add(tasks, told(channelDefinition, strings.Repeat("x", 8000)))
		h.add(tasks, told(channelLane, fmt.Sprint(i)))
		h.add(tasks, told(channelCancel, fmt.Sprintf("%s %d", uuid.New(), i)))
		h.add(tasks, told(channelCancel, strings.Repeat(" ", i%1000)))
	}
	require.Len(t, h.definitions, maxNotifiedDefinitions)
	require.Empty(t, h.lanes)
	require.Empty(t, h.runs)
	require.False(t, h.orders)
}
