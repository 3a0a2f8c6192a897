package api_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

func integrationTask() object {
	return noop(object{"taskType": "INTEGRATION", "executionConfig": object{"executor": "integration", "integration": object{"method": "m", "instance": "books"}}})
}

func TestBreakersAreAMetricAndAReason(t *testing.T) {
	t.Parallel()
	since := time.Date(2026, 11, 2, 9, 30, 0, 5_000_000, time.UTC)
	var state atomic.Value
	state.Store(retry.Open)
	b := setup(t, func(c *api.Config) {
		c.Breakers = func() []retry.Status {
			return []retry.Status{{Name: "bus", State: retry.Closed, Since: since}, {Name: "integration", State: state.Load().(retry.State), Since: since}}
		}
	})
	b.attend(t)
	m := b.ask(t, monitoring, "GET", tasksPath+"/metrics", nil).is(t, 200)
	require.Equal(t, []any{
		object{"name": "bus", "state": "closed", "since": "2026-11-02T09:30:00.005Z"},
		object{"name": "integration", "state": "open", "since": "2026-11-02T09:30:00.005Z"},
	}, m["breakers"])

	path, _ := b.create(t, integrationTask())
	w := b.why(t, path, "BREAKER_OPEN", "^the integration service does not respond: its circuit breaker has been open since 2026-11-02T09:30:00.005Z$")
	require.Equal(t, "2026-11-02T09:30:00.005Z", w["since"])
	require.EqualValues(t, 0, w["position"])

	// Given back by an outage, its time has not come, and that is not why it waits. A
	// retry's time is its policy's.
	later := "UPDATE river_job SET scheduled_at = now() + $2::interval, queue = $1"
	b.exec(t, later, jobs.LaneIntegration, "1 hour")
	require.Nil(t, b.why(t, path, "BREAKER_OPEN", "^the integration service does not respond")["position"])
	b.exec(t, later, jobs.LaneRetry, "1 hour")
	b.why(t, path, "WAITING_RETRY", "^attempt 1 is due at")
	b.exec(t, later, jobs.LaneIntegration, "0")

	// Other tasks do not need it, nor do those that a remote worker takes.
	other, _ := b.create(t, noop())
	b.why(t, other, nil, "^next in line in task-execution-automated$")
	remote, _ := b.create(t, noop(object{"taskType": "INTEGRATION", "executionConfig": object{"executor": "worker"}}))
	b.why(t, remote, "NO_WORKER", "remote worker")

	state.Store(retry.HalfOpen)
	b.why(t, path, "BREAKER_OPEN", "^the integration service did not respond: its circuit breaker has let one request at a time through since")
	b.exec(t, "UPDATE river_queue SET paused_at = now() WHERE name = $1", jobs.LaneIntegration)
	b.why(t, path, "PAUSED", "")
	b.exec(t, "UPDATE river_queue SET paused_at = NULL WHERE name = $1", jobs.LaneIntegration)
	state.Store(retry.Closed)
	b.why(t, path, nil, "^next in line in task-execution-integration$")
}
