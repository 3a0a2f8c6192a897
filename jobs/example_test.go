package jobs_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/automated"
)

// A program that embeds the packages registers its Go functions as handlers of the executor
// "go", and runs the queues until ctx ends. It takes only tasks of definitions whose
// executionConfig names one of its handlers.
func ExampleNewRunner() {
	run := func(ctx context.Context, pool *pgxpool.Pool) error {
		handlers := &automated.Handlers{}
		handlers.Register("resize-image", jobs.ExecutorFunc(func(_ context.Context, job jobs.Job) (jobs.Result, error) {
			return jobs.Result{Output: json.RawMessage(`{"bytes": 51200}`)}, nil
		}))

		tasks := jobs.New(pool, jobs.Config{ProcessID: jobs.NewProcessID(), Sessions: pool})
		runner := jobs.NewRunner(tasks, jobs.RunnerConfig{Executors: map[string]jobs.Registration{
			"go":   {Executor: handlers, Handlers: handlers.Names},
			"noop": {Executor: automated.Noop{}, Pure: true},
		}})
		return runner.Run(ctx, 20*time.Second)
	}

	_ = run // needs a database: tes with-postgres lends one
}

// An executor that returns a *Failure chooses the error's code, and whether the retry policy may
// try again.
func ExampleFailure() {
	charge := jobs.ExecutorFunc(func(context.Context, jobs.Job) (jobs.Result, error) {
		no := false
		return jobs.Result{}, &jobs.Failure{Code: "CARD_DECLINED", Message: "the bank declined the card", Retryable: &no}
	})

	_, err := charge.Execute(context.Background(), jobs.Job{})
	var failure *jobs.Failure
	fmt.Println(errors.As(err, &failure), failure.Code, *failure.Retryable)
	// Output: true CARD_DECLINED false
}
