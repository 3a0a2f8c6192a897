package jobs

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

// errGone is how a database that is away looks.
var errGone = &net.OpError{Op: "dial", Err: errors.New("refused")}

// "Task Queue Operations: fixed (5s), 3 retries, no circuit breaking", on a clock that
// moves only when everybody waits.
func TestTaskQueueOperationsAreRepeatedByTheTable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tasks := New(nil, Config{Logger: slog.New(slog.DiscardHandler)})
		var levels []slog.Level
		say := func(level slog.Level, err error, pause time.Duration) {
			require.ErrorIs(t, err, errGone)
			require.Equal(t, 5*time.Second, pause)
			levels = append(levels, level)
		}
		began := time.Now()
		var at []time.Duration
		err := tasks.retryWhileUnavailable(t.Context(), say, func(context.Context) error {
			at = append(at, time.Since(began))
			if len(at) < 8 {
				return errGone
			}
			return nil
		})
		require.NoError(t, err)
		var want []time.Duration
		for n := range 8 {
			want = append(want, time.Duration(n)*5*time.Second)
		}
		require.Equal(t, want, at, "it is never given up")
		warn, loud := slog.LevelWarn, slog.LevelError
		require.Equal(t, []slog.Level{warn, warn, warn, loud, warn, warn, warn, loud, warn}, levels)
	})
}

func TestRetryWhileUnavailableEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tasks := New(nil, Config{Logger: slog.New(slog.DiscardHandler)})
		quiet := func(slog.Level, error, time.Duration) {}
		broken := errors.New("syntax error")
		for name, tc := range map[string]struct {
			answers []error
			want    error
		}{
			"another error is not repeated": {[]error{broken}, broken},
			"success is not repeated":       {[]error{nil}, nil},
			"an absence, then an error":     {[]error{errGone, broken}, broken},
			"an absence, then success":      {[]error{errGone, nil}, nil},
		} {
			calls := 0
			err := tasks.retryWhileUnavailable(t.Context(), quiet, func(context.Context) error {
				calls++
				return tc.answers[calls-1]
			})
			require.Equal(t, tc.want, err, name)
			require.Equal(t, len(tc.answers), calls, name)
		}

		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		defer cancel()
		began := time.Now()
		err := tasks.retryWhileUnavailable(ctx, quiet, func(context.Context) error { return errGone })
		require.ErrorIs(t, err, errGone)
		require.Equal(t, 12*time.Second, time.Since(began))
	})
}

// The other system has taken the work: its word is not lost because the database was
// away when it came.
func TestLostNoteOfAnAcceptance(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{"committed, not told": loseAnswer, "never arrived": loseQuestion} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, far, p := behindProxy(t)
			p.next("LeaseAwait", f, f)
			far.work(map[string]Registration{"integration": {Executor: ExecutorFunc(awaiting)}})
			task := b.create(elsewhere)
			b.untilAwaiting(task)
			waitFor(t, "the faults to strike", p.spent)
			waitFor(t, "it to be known", func() bool { return far.running(task) == nil })
			said, err := b.Respond(b.ctx, answer(b.get(task.TaskID), func(*outbox.IntegrationResponse) {}))
			require.NoError(t, err)
			require.Equal(t, "completed", said)
			require.EqualValues(t, 1, b.get(task.TaskID).Attempt)
		})
	}
}
