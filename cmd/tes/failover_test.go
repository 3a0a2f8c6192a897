package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
)

// acknowledged are the tasks that callers were told of, by their idempotency key.
type acknowledged struct {
	mu   sync.Mutex
	task map[string]string // guarded by mu
	odd  []string          // guarded by mu
}

func (a *acknowledged) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.task)
}

// note takes the answer to a create, and says whether it was one.
func (a *acknowledged) note(key string, status int, answer object) bool {
	if status != http.StatusCreated && status != http.StatusOK {
		return false
	}
	id := fmt.Sprint(answer["taskId"])
	a.mu.Lock()
	defer a.mu.Unlock()
	if before, known := a.task[key]; known && before != id {
		a.odd = append(a.odd, fmt.Sprintf("%s made %s and %s", key, before, id))
	}
	a.task[key] = id
	return true
}

// The primary is killed under load, and its synchronous standby promoted: every task that
// was acknowledged is there, whoever repeats a create with its key gets the one task of it,
// and the work goes on, at the host of the URL that takes writes now.
func TestPrimaryKilledUnderLoadLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	const before, after = 150, 300
	pair := dbtest.NewPair(t, true)
	both, err := url.Parse(pair.Primary.URL())
	require.NoError(t, err)
	standby, err := url.Parse(pair.Standby.URL())
	require.NoError(t, err)
	both.Host += "," + standby.Host
	b := setupServeOn(t, both.String(), false)
	p := start(t, b.env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	orchestrator := b.peers.Token("workflow-orchestrator")

	told := &acknowledged{task: map[string]string{}}
	load, enough := context.WithCancel(t.Context())
	defer enough()
	var clients sync.WaitGroup
	for client := range 8 {
		clients.Go(func() {
			for n := 0; load.Err() == nil; n++ {
				key := fmt.Sprintf("%d-%d", client, n)
				for { // as a caller does that was not answered
					status, answer, _, err := ask(t.Context(), "POST", api+tasksPath, orchestrator, noop("w"), "Idempotency-Key", key)
					if err == nil && told.note(key, status, answer) || t.Context().Err() != nil {
						break
					}
				}
			}
		})
	}
	reached := func(n int) {
		t.Helper()
		eventually(t, patience, func() error {
			if got := told.count(); got < n {
				return fmt.Errorf("%d creates were answered", got)
			}
			return nil
		})
	}
	reached(before)
	pair.Kill()
	readyz(t, api, http.StatusServiceUnavailable, "the database")
	killed := told.count()
	pair.Promote()
	reached(killed + after)
	enough()
	clients.Wait()
	readyz(t, api, http.StatusOK, `"database":"ok"`)

	told.mu.Lock()
	defer told.mu.Unlock()
	require.Empty(t, told.odd)
	dsn := pair.Standby.URL()
	ids := make([]string, 0, len(told.task))
	for _, id := range told.task {
		ids = append(ids, id)
	}
	require.Equal(t, len(ids), number(t, dsn, "SELECT count(*) FROM task WHERE task_id::text = ANY ($1)", ids), "an acknowledged task is lost")
	require.Equal(t, len(ids), number(t, dsn, "SELECT count(*) FROM task"), "one task for each key")
	eventually(t, patience, func() error {
		if n := number(t, dsn, "SELECT count(*) FROM task WHERE status <> 'COMPLETED'"); n > 0 {
			return fmt.Errorf("%d tasks are not completed", n)
		}
		return nil
	})
	say(t, object{"acknowledgedBeforeTheKill": killed, "acknowledged": len(ids), "lost": 0})
}
