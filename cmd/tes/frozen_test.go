package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// named is the name of a process in leases, and in the lead of the relay.
func (m *member) named(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(m.stderr.String()) {
		var said struct{ Msg, Process string }
		if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "serving" {
			return said.Process
		}
	}
	require.FailNow(t, "it does not serve")
	return ""
}

// relayLeader is who publishes, as the database has it.
func relayLeader(t *testing.T, dsn string) (holder string) {
	t.Helper()
	eventually(t, patience, func() error {
		rows, err := collect(t.Context(), dsn, pgx.RowTo[string], "SELECT holder FROM relay_leader WHERE holder <> ''")
		if err == nil && len(rows) == 0 {
			err = fmt.Errorf("nobody leads")
		}
		if err == nil {
			holder = rows[0]
		}
		return err
	})
	return holder
}

// frozenLimit is how soon after a freeze events must come again: ten times of what is usual.
const frozenLimit = time.Minute

// The process that publishes is stopped (SIGSTOP) under load. Its session lives on, and
// another takes its place within seconds: every event comes once, and in order for each
// task. When it is woken it changes nothing, and stands by.
func TestFrozenRelay(t *testing.T) {
	t.Parallel()
	world := setupServe(t, true)
	f := startFleet(t, world, func(f *fleet) { f.size = 2 })
	frozen, other := f.alive[0], f.alive[1]
	if relayLeader(t, world.dsn) != frozen.named(t) {
		frozen, other = other, frozen
	}
	require.Equal(t, frozen.named(t), relayLeader(t, world.dsn))
	f.mu.Lock()
	f.alive = []*member{other}
	f.mu.Unlock()

	f.paced(t, 0, 2*time.Second)
	at := time.Now()
	require.NoError(t, frozen.cmd.Process.Signal(syscall.SIGSTOP))
	f.paced(t, 1_000_000, time.Second)
	settled(t, world.dsn)
	log := readLog(t, world.dsn)
	f.ears.hearAll(t, len(log))
	took := time.Since(at)
	require.Equal(t, other.named(t), relayLeader(t, world.dsn))

	require.NoError(t, frozen.cmd.Process.Signal(syscall.SIGCONT))
	eventually(t, patience, func() error {
		if !strings.Contains(frozen.stderr.String(), "relay: ") {
			return fmt.Errorf("it has not noticed")
		}
		return nil
	})
	f.mu.Lock()
	f.alive = []*member{frozen, other}
	f.mu.Unlock()
	f.paced(t, 2_000_000, time.Second)
	settled(t, world.dsn)
	tasks := number(t, world.dsn, "SELECT count(*) FROM task")
	result := f.check(tasks, "COMPLETED")
	result["toldAgainAfterMs"] = took.Milliseconds()
	say(t, result)
	require.Zero(t, result["duplicates"])
	require.Less(t, took, frozenLimit)
}
