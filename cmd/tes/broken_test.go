package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/cmd/tes/testdata/sabotage"
	"github.com/seed-3f7a0631/tes/jobs/check"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// A checker that never says no proves nothing. Four builds of tes are broken on
// purpose, go through what the whole one survives, and are found out. Where nobody
// may cut a disk's power, the fourth is left out, and it is said so.
func TestBrokenBuilds(t *testing.T) {
	t.Parallel()
	exe := sabotaged(t)
	said := object{"seed": *seed, "builds": 4}
	by := map[string][]string{}
	var mu sync.Mutex
	is := func(t *testing.T, how, rule string, offending []string) {
		t.Helper()
		require.Contains(t, offending, rule, "%s was not caught", how)
		mu.Lock()
		defer mu.Unlock()
		by[how] = offending
	}
	t.Run("all", func(t *testing.T) {
		t.Run(noFence, func(t *testing.T) {
			t.Parallel()
			g := stopProcess(t, exe, []string{broken(noFence)}, func(*graveyard) {})
			g.ears.hearTail(t, g.world.bus)
			is(t, noFence, "i10_attempts_counted", offending(t, g.world.dsn, g.ears))
		})
		for how, tc := range map[string]struct{ dies, rule string }{
			markFirst:  {beforePublish, "ledger_whole"},
			newEventID: {afterAck, "ledger_real"},
		} {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				d := startDoomed(t, []string{tc.dies}, broken(how), sabotage.Told+"="+t.TempDir())
				d.run()
				d.ears.hearTail(t, d.world.bus)
				is(t, how, tc.rule, offending(t, d.world.dsn, d.ears))
			})
		}
		t.Run(busUnsynced, func(t *testing.T) {
			t.Parallel()
			unsynced, why := powerCut(t, exe, busUnsynced)
			if why != "" {
				said["notHere"] = object{busUnsynced: why}
				return
			}
			whole, _ := powerCut(t, exe, "")
			require.Zero(t, whole.lost, "with every write synced")
			require.Empty(t, whole.offending)
			said["powerCut"] = object{"events": unsynced.events, "lostUnsynced": unsynced.lost, "lostSynced": whole.lost, "lostAfterRetelling": 0}
			is(t, busUnsynced, "ledger_whole", unsynced.offending)
		})
	})
	said["caught"], said["by"] = len(by), by
	say(t, said)
}

// offending are the rules that tes check finds broken. All is at rest: nothing is given
// any grace.
func offending(t *testing.T, dsn string, ears *recorder) []string {
	t.Helper()
	_, stdout, stderr := tes(t, environ("TES_DATABASE_URL="+dsn), "check", "--json", "--grace", "1ms", "--ledger", ears.write(t))
	var report check.Report
	require.NoError(t, json.Unmarshal([]byte(stdout), &report), "%s", stderr)
	rules := []string{}
	for _, rule := range report.Offending() {
		rules = append(rules, rule.ID)
	}
	slices.Sort(rules)
	return rules
}

// outage is what a power cut did to a bus.
type outage struct {
	events, lost int
	offending    []string // against what is left on the bus
}

// powerCut has a process tell of some tasks on a bus of its own, and cuts the power of
// its disk when all is acknowledged. Whatever is gone then, the next process tells it
// again. why says that it cannot be done here.
func powerCut(t *testing.T, exe, how string) (o outage, why string) {
	t.Helper()
	d, why := newDisk(t)
	if d == nil {
		return outage{}, why
	}
	world := setupServe(t, false)
	env := slices.DeleteFunc(world.env, func(s string) bool {
		return strings.HasPrefix(s, "TES_NATS_SYNC=") || strings.HasPrefix(s, "TES_DATA_DIR=")
	})
	env = append(env, "TES_DATA_DIR="+d.dir)
	p := startBuild(t, exe, append(slices.Clone(env), broken(how)), "serve", "--http", "127.0.0.1:0")
	api, token := serving(t, p), world.peers.Token("workflow-orchestrator")
	for i := range 30 {
		must(t, http.StatusCreated, "POST", api+tasksPath, token, noop(fmt.Sprint("cut-", i)))
	}
	settled(t, world.dsn)
	d.cut(t)
	require.NoError(t, p.cmd.Process.Kill())
	<-p.done
	d.restart(t)

	ears := readStore(t, filepath.Join(d.dir, "nats"))
	o = outage{events: len(readLog(t, world.dsn)), offending: offending(t, world.dsn, ears)}
	o.lost = o.events - ears.count()
	p = startProcess(t, env, "serve", "--http", "127.0.0.1:0")
	serving(t, p)
	if o.lost > 0 {
		eventually(t, patience, func() error {
			if !strings.Contains(p.stderr.String(), "the stream lost acknowledged events; publishing them again") {
				return fmt.Errorf("the loss of %d events is not noticed", o.lost)
			}
			return nil
		})
	}
	settled(t, world.dsn)
	p.cmd.Process.Kill()
	<-p.done
	ears = readStore(t, filepath.Join(d.dir, "nats"))
	require.Empty(t, offending(t, world.dsn, ears), "told again")
	require.Equal(t, o.events, ears.count())
	return o, ""
}

// readStore is what an embedded bus has kept, once nobody uses it.
func readStore(t *testing.T, dir string) *recorder {
	t.Helper()
	bus, err := natsbus.Open(t.Context(), natsbus.Config{StoreDir: dir, NoSync: true, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ears := newRecorder()
	require.NoError(t, bus.Subscribe(t.Context(), "task.>", natsbus.All, ears.hear))
	ears.hearTail(t, bus)
	require.NoError(t, bus.Close(context.Background()))
	return ears
}
