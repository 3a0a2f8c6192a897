package jobs

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
)

// queueInternal is River's own queue in every process: a client without a queue cannot lead, and
// without a leader no scheduled job becomes available.
const queueInternal = "tes-internal"

// stubWorker stands for the kinds of jobs that claimers run. The rescuer of River's leader discards
// jobs of unknown kinds, and leaves alone jobs of kinds without a timeout.
type stubWorker struct{ river.WorkerDefaults[stubArgs] }

type stubArgs struct{ kind string }

func (a stubArgs) Kind() string { return a.kind }

func (stubWorker) Timeout(*river.Job[stubArgs]) time.Duration { return -1 }

// Work is never called: no queue of this client holds these kinds.
func (stubWorker) Work(_ context.Context, job *river.Job[stubArgs]) error {
	return fmt.Errorf("job %d of kind %s is worked by claims, not by this client", job.ID, job.Kind)
}

// stopPatience bounds the sending of a notice while the process stops. After stopPatience, another
// process sends the notice.
const stopPatience = 5 * time.Second

// NewRiver returns the River client of a process. The client may lead (schedule, clean, rescue),
// serves River UI and sends the notices, but claims no task. With nil notices, the client leaves the
// notices to processes with a sender. Give the client a pool of its own: a client that has to wait
// for connections loses elections.
func NewRiver(pool *pgxpool.Pool, processID string, logger *slog.Logger, notices *Notices) (*river.Client[pgx.Tx], error) {
	workers := river.NewWorkers()
	stubs := Kinds
	if notices == nil {
		// As the leader, the client must not discard notices that another process is sending.
		stubs = slices.Concat(Kinds, NoticeKinds)
	}

	for _, kind := range stubs {
		river.AddWorkerArgs(workers, stubArgs{kind}, stubWorker{})
	}

	cfg := &river.Config{
		ID:          riverID(processID),
		Logger:      logger,
		Queues:      map[string]river.QueueConfig{queueInternal: {MaxWorkers: 1, FetchPollInterval: time.Minute}},
		Workers:     workers,
		MaxAttempts: 1,
		JobTimeout:  -1,
		// River trusts its notifications: a forged notification pauses a queue, cancels a job or makes
		// the leader resign. So the client polls, and learns of a pause within some seconds.
		PollOnly:                    true,
		RescueStuckJobsAfter:        rescueAfter,
		SoftStopTimeout:             stopPatience,
		CompletedJobRetentionPeriod: 2 * time.Hour,
		CancelledJobRetentionPeriod: 24 * time.Hour,
		DiscardedJobRetentionPeriod: 7 * 24 * time.Hour,
		// The service's role owns no index; docs/operations.md has the DBA's line.
		ReindexerSchedule: river.NeverSchedule(),
	}
	if notices != nil {
		notices.register(workers, cfg)
	}

	client, err := river.NewClient(riverpgxv5.New(pool), cfg)
	if err != nil {
		return nil, fmt.Errorf("river client: %w", err)
	}

	return client, nil
}

// riverID cuts a process id to River's limit of a hundred characters. The random end stays.
func riverID(processID string) string { return processID[max(0, len(processID)-100):] }
