package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
	"github.com/stretchr/testify/require"
)

// riverZombie is the story of stopProcess with a bare River client: one process is
// stopped with a job in its hands, River rescues the job, another process begins its
// second attempt, and the first wakes.
func riverZombie(t *testing.T) object {
	t.Helper()
	dsn, web := freshDatabase(t), startPatientWeb(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	require.NoError(t, err)
	_, err = migrator.Migrate(t.Context(), rivermigrate.DirectionUp, nil)
	require.NoError(t, err)
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{})
	require.NoError(t, err)
	inserted, err := client.Insert(t.Context(), callArgs{}, nil)
	require.NoError(t, err)
	job := fmt.Sprint(inserted.Job.ID)
	state := func() *rivertype.JobRow {
		row, err := client.JobGet(t.Context(), inserted.Job.ID)
		require.NoError(t, err)
		return row
	}

	exe, err := os.Executable()
	require.NoError(t, err)
	process := func(leader string) *program {
		return startBuild(t, exe, environ(instead+"=river", "DSN="+dsn, "WEB="+web.URL, "LEADER="+leader))
	}
	zombie := process("")
	web.called(t, 1, job)
	body := freeze(t, zombie)
	eventually(t, patience, func() error {
		if row := state(); time.Since(*row.AttemptedAt) < riverRescue {
			return errors.New("not stuck yet")
		}
		return nil
	})
	live := process("leader") // its rescuer looks as soon as it leads, and then every 30 s
	web.called(t, 2, job)
	require.EqualValues(t, 2, state().Attempt)
	web.answer(http.StatusOK, 1, job)
	body.thaw()
	eventually(t, patience, func() error {
		if row := state(); row.State != rivertype.JobStateCompleted {
			return fmt.Errorf("the job is %s", row.State)
		}
		return nil
	})
	byZombie := state()
	web.answer(http.StatusInternalServerError, 2, job)
	eventually(t, patience, func() error {
		if !strings.Contains(live.stdout.String(), "attempt 2 failed") {
			return errors.New("the live attempt goes on")
		}
		return nil
	})
	// The live attempt's word is heard after it has been said, if it is heard.
	live.signal(t, syscall.SIGTERM)
	require.Zero(t, live.wait(t, patience), live.stderr)
	after := state()
	require.Equal(t, rivertype.JobStateCompleted, after.State, "River fences now: say so in the documents")
	return object{
		"state": after.State, "attemptCompletedByZombie": byZombie.Attempt, "liveAttemptSaid": "it failed",
		"liveAttemptHeard": len(after.Errors) > len(byZombie.Errors),
	}
}

// riverRescue is River's RescueStuckJobsAfter, an hour by default.
const riverRescue = 2 * time.Second

// callArgs is a job that calls the web service.
type callArgs struct{}

func (callArgs) Kind() string { return "call" }

type callWorker struct{ river.WorkerDefaults[callArgs] }

func (callWorker) Work(_ context.Context, job *river.Job[callArgs]) error {
	status, _, err := call(os.Getenv("WEB"), fmt.Sprintf("%d:%d", job.ID, job.Attempt))
	if err == nil && status != http.StatusOK {
		fmt.Printf("attempt %d failed\n", job.Attempt)
		err = errors.New("no")
	}
	return err
}

// soon is a retry policy.
type soon struct{}

func (soon) NextRetry(*rivertype.JobRow) time.Time { return time.Now() }

// beRiver is a bare River client, until it is asked to stop.
func beRiver() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pool, err := pgxpool.New(ctx, os.Getenv("DSN"))
	if err != nil {
		return err
	}
	defer pool.Close()
	workers := river.NewWorkers()
	river.AddWorker(workers, &callWorker{})
	client, err := river.NewClient[pgx.Tx](riverpgxv5.New(pool), &river.Config{
		Workers: workers, Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 10}}, RetryPolicy: soon{},
		RescueStuckJobsAfter: riverRescue, JobTimeout: riverRescue / 2, LeaderElectionDisabled: os.Getenv("LEADER") == "",
	})
	if err != nil {
		return err
	}
	if err := client.Start(context.Background()); err != nil {
		return err
	}
	<-ctx.Done()
	return client.Stop(context.Background())
}
