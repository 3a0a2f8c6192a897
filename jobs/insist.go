package jobs

import (
	"context"
	"log/slog"
	"time"

	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// insist repeats a queue operation that failed because the database is away, by the
// interface document's row for queue operations: every 5 s, three times. Then it is
// said loudly, and the next round begins, for finished work is never thrown away and
// what waits is claimed however late: the fence decides then what is still of use. It
// ends with success, with an error that is not the database's absence, and with ctx.
//
// say is told each pause; at the level of an error when the tries are used up.
func (t *Tasks) insist(ctx context.Context, say func(level slog.Level, err error, pause time.Duration), err error, operation func() error) error {
	return t.insistOn(ctx, away, say, err, operation)
}

// insistOn is insist for the errors that worth names.
func (t *Tasks) insistOn(ctx context.Context, worth func(error) bool, say func(level slog.Level, err error, pause time.Duration), err error, operation func() error) error {
	policy := t.cfg.Queue.Or(retry.QueueOperations)
	for worth(err) && ctx.Err() == nil {
		failed := err // with which the round begins
		line := retry.New[struct{}](policy, retry.Options{Worth: worth, Paused: func(_ context.Context, err error, pause time.Duration) {
			say(slog.LevelWarn, err, pause)
		}})
		_, err = line.Do(ctx, func(context.Context) (struct{}, error) {
			if known := failed; known != nil {
				failed = nil
				return struct{}{}, known
			}
			return struct{}{}, operation()
		})
		if worth(err) && ctx.Err() == nil {
			say(slog.LevelError, err, policy.Pause(1))
		}
	}
	return err
}

// write makes a flush in a time of its own. One that did nothing, for a deadlock, is
// made again at once.
func (t *Tasks) write(flush func(context.Context) error) error {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), flushTime)
		err := flush(ctx)
		cancel()
		if !again(err) {
			return err
		}
	}
}

// unlocked makes a statement again that did nothing, for a deadlock.
func unlocked[T any](ctx context.Context, statement func() (T, error)) (T, error) {
	for {
		out, err := statement()
		if !again(err) || ctx.Err() != nil {
			return out, err
		}
	}
}
