package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox"
)

// skewed is a process whose clock goes wrong by so much.
func skewed(by time.Duration) func(*Config) {
	return func(cfg *Config) { cfg.Clock = func() time.Time { return time.Now().Add(by) } }
}

// A process whose clock is minutes ahead of the database's, or behind, does everything in
// its time: the longest of the waits below is far shorter than what it is wrong by.
func TestTheDatabasesClockDecides(t *testing.T) {
	t.Parallel()
	for _, by := range []time.Duration{3 * time.Minute, -3 * time.Minute} {
		t.Run(fmt.Sprint(by), func(t *testing.T) {
			t.Parallel()
			b := setup(t, skewed(by))
			near := func(at time.Time) {
				t.Helper()
				require.WithinDuration(t, ask[time.Time](b, "SELECT now()"), at, time.Minute)
			}
			tries := make(chan int, 9)
			b.work(map[string]Registration{
				"manual": assigning("ann")["manual"],
				"noop": {Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
					near(job.CreatedAt)
					tries <- job.Attempt
					if job.Attempt == 1 {
						return Result{}, errors.New("no")
					}
					return Result{}, nil
				})},
			})

			// A task runs at once, and again after its delay, which is an hour: not at once,
			// and not after an hour and what the clock is wrong by.
			task := b.create(policy(RetryPolicy{MaxRetries: 1, RetryInterval: 3_600_000, MaxRetryInterval: 7_200_000}))
			near(task.CreatedAt)
			require.Equal(t, 1, receive(t, tries))
			task = b.until(task.TaskID, "to be tried again", func(task db.Task) bool { return task.NextRetryAt != nil })
			failedAt := ask[time.Time](b, "SELECT at FROM task_event WHERE task_id = $1 AND type = 'retry'", task.TaskID)
			near(failedAt)
			var note outbox.RetryNote
			require.NoError(t, json.Unmarshal([]byte(ask[string](b, "SELECT payload FROM task_event WHERE task_id = $1 AND type = 'retry'", task.TaskID)), &note))
			due := failedAt.Add(time.Duration(note.RetryDelay) * time.Millisecond)
			require.InDelta(t, time.Hour, due.Sub(failedAt), float64(7*time.Minute), "the jitter is a tenth")
			require.Equal(t, due.UTC(), task.NextRetryAt.UTC())
			require.Equal(t, due.UTC(), note.NextRetryTime.UTC(), "what is told is what was written")
			require.Equal(t, due.UTC(), ask[time.Time](b, "SELECT scheduled_at FROM river_job WHERE id = $1", task.JobID).UTC())
			b.exec("UPDATE river_job SET scheduled_at = now(), state = 'available' WHERE id = $1", task.JobID)
			require.Equal(t, 2, receive(t, tries))
			task = b.becomes(task.TaskID, Completed)
			near(*task.EndedAt)
			near(*task.StartedAt)
			var problem outbox.Problem
			require.NoError(t, json.Unmarshal(ask[json.RawMessage](b, "SELECT error FROM task_attempt WHERE task_id = $1 AND attempt = 1", task.TaskID), &problem))
			near(problem.Timestamp)

			// Leases: what is told of their end, and of the time, is of one clock.
			worked := b.create(remote, visibility(30*time.Second))
			lease := b.dequeueOne("w")
			require.Equal(t, worked.TaskID, lease.TaskID)
			require.InDelta(t, 30*time.Second, lease.ExpiresAt.Sub(b.Now(b.ctx)), float64(20*time.Second))
			beaten := b.beat(lease.Token)
			require.NoError(t, beaten.Err)
			require.InDelta(t, 30*time.Second, beaten.ExpiresAt.Sub(b.Now(b.ctx)), float64(20*time.Second))
			_, err := b.Cancel(b.ctx, worked.TaskID, Actor{Name: "o"})
			require.NoError(t, err)
			require.Equal(t, StopWork, b.beat(lease.Token).Directive, "for as long as the lease would have lasted")

			// A deadline in hours is reckoned from the database's time.
			person := b.create(manual)
			person = b.becomes(person.TaskID, Assigned)
			require.WithinDuration(t, ask[time.Time](b, "SELECT now()").Add(24*time.Hour), *person.DueAt, time.Minute)
			near(*person.AssignedAt)

			require.InDelta(t, -by, b.ClockOffset(), float64(time.Minute))
			require.True(t, b.log.says("clock and the database's differ"))
		})
	}
}
