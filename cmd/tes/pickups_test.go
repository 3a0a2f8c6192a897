package main

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
)

const (
	pickupLimit = 35 * time.Second // the default visibility timeout, and five seconds
	// The silence after which a process is taken for dead, and half a minute until somebody
	// sweeps: a process sweeps every five seconds, first when it has lived for as long, and
	// in this storm it lives for three on average.
	claimPickupLimit = jobs.Silence + 30*time.Second
)

// pickup is what became of a job that a killed process had in its hands.
type pickup struct {
	Task     string
	Executor string        // the process that had it, or the worker whose lease ran out
	Begun    bool          // its attempt had; else it was only claimed
	Next     time.Time     // when another claimed the task
	After    time.Duration // from the kill to then
}

// pickups are what became of the jobs that killed processes had in their hands, as far as
// another had to take them: begun is what had a lease, which ran out; claimed is what a
// process was killed over before it wrote the start. Each is sorted by its time. A task
// may be in both, if who claimed it anew was killed too.
//
// A lease that ran out of a process that lives, or of a worker, fails the test.
func (f *fleet) pickups() (begun, claimed []pickup) {
	f.t.Helper()
	rows, err := collect(f.t.Context(), f.world.dsn, pgx.RowToStructByPos[pickup], `
		SELECT j.task, coalesce(a.executor_id, j.executor), a.outcome IS NOT NULL, j.next, '0'::interval
		FROM (
			SELECT
				j.id, j.state, j.args ->> 'task_id' AS task, j.attempted_by[1] AS executor,
				lead(j.attempted_at) OVER (PARTITION BY j.args ->> 'task_id' ORDER BY j.id) AS next
			FROM river_job j
			WHERE j.kind LIKE 'task.%' AND j.attempted_at IS NOT NULL
		) j
		LEFT JOIN task_attempt a ON a.task_id = j.task::uuid AND a.job_id = j.id
		WHERE j.next IS NOT NULL AND (a.outcome = 'LEASE_EXPIRED' OR (a.outcome IS NULL AND j.state = 'cancelled'))`)
	require.NoError(f.t, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range rows {
		at, known := f.killed[processOf(p.Executor)]
		switch {
		case known:
			p.After = p.Next.Sub(at)
		case p.Begun:
			f.t.Errorf("%s was not killed, and lost its lease of task %s; another took it at %s", p.Executor, p.Task, p.Next)
		}
		switch {
		case !known || p.After < 0: // a token that was stale when it was claimed
		case p.Begun:
			begun = append(begun, p)
		default:
			claimed = append(claimed, p)
		}
	}
	sooner := func(a, b pickup) int { return cmp.Compare(a.After, b.After) }
	slices.SortFunc(begun, sooner)
	slices.SortFunc(claimed, sooner)
	return begun, claimed
}

// processOf is the number of the process that an executor's name has; empty for a worker.
func processOf(executor string) string {
	_, rest, _ := strings.Cut(executor, "/")
	process, _, _ := strings.Cut(rest, "/")
	return process
}

// afters are the times of pickups, in their order.
func afters(all []pickup) (times []time.Duration) {
	for _, p := range all {
		times = append(times, p.After)
	}
	return times
}

// requirePickups demands that p99 of pickups is within a limit, and shows the latest.
func requirePickups(t *testing.T, what string, all []pickup, limit time.Duration) {
	t.Helper()
	if p99 := quantile(afters(all), 0.99); p99 > limit {
		text, err := json.MarshalIndent(all[max(0, len(all)-5):], "", "  ")
		require.NoError(t, err)
		require.Fail(t, "picked up too late", "%s, of %d: p99 is %v, the limit %v; the latest:\n%s", what, len(all), p99, limit, text)
	}
}

// quantile of what is sorted.
func quantile(sorted []time.Duration, share float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}
