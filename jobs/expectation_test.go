package jobs

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db"
)

// A transition whose expectation was forgotten, or names no status, is not applied; what
// each constructor leaves open is, and what it requires is required.
func TestExpectations(t *testing.T) {
	t.Parallel()
	b := setup(t)
	task := b.create()
	for name, tc := range map[string]struct {
		expect  expectation
		applied bool
	}{
		"forgotten":                  {expectation{}, false},
		"no status":                  {atVersion(0), false},
		"only statuses":              {expectation{statuses: []Status{Pending}}, false},
		"no job":                     {atJob(noJob, Pending), false},
		"another job":                {atJob(task.JobID+1, Pending), false},
		"another attempt":            {atAttempt(task.JobID, task.Attempt+1, Pending), false},
		"another version":            {atVersion(task.Version+1, Pending), false},
		"a version below 0":          {atVersion(-1, Pending), false},
		"another status":             {atVersion(task.Version, Running, Failed), false},
		"job, but another version":   {atJobAndVersion(task.JobID, task.Version+1, Pending), false},
		"version, but another job":   {atJobAndVersion(task.JobID+1, task.Version, Pending), false},
		"its attempt":                {atAttempt(task.JobID, task.Attempt, Pending), true},
		"its job":                    {atJob(task.JobID, Running, Pending), true},
		"its version":                {atVersion(task.Version, Pending), true},
		"any version":                {atVersion(0, Failed, Pending), true},
		"its job and its version":    {atJobAndVersion(task.JobID, task.Version, Pending), true},
		"a lease that has run out":   {expectation{job: unspecified, attempt: unspecified, version: unspecified, statuses: []Status{Pending}, expired: true}, false},
		"a part of a status, a list": {expectation{job: unspecified, attempt: unspecified, version: unspecified, statuses: []Status{"PEND", "ING"}}, false},
	} {
		m := &transition{
			task: task.TaskID, expect: tc.expect, to: Cancelled, event: db.TaskEventTypeCanceled, actor: "test",
			endJob: db.RiverJobStateCancelled, outcome: db.AttemptOutcomeCANCELLED,
		}
		tx, err := b.pool.Begin(b.ctx)
		require.NoError(t, err)
		require.NoError(t, transitionItems{b.Tasks}.assignIDs(b.ctx, []*transition{m}))
		p, err := transitionItems{b.Tasks}.params([]*transition{m})
		require.NoError(t, err)
		rows, err := db.New(tx).TaskMove(b.ctx, p)
		require.NoError(t, err, name)
		require.Equal(t, tc.applied, rows[0].Ok, name)
		require.NoError(t, tx.Rollback(b.ctx))
	}
}
