package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
	"github.com/seed-3f7a0631/tes/outbox/natsbus/natstest"
)

// readyBus waits until /readyz says so of the bus, with 200: an outage of the bus is no
// reason to send requests elsewhere.
func readyBus(t *testing.T, api, state, reason string) {
	t.Helper()
	eventually(t, 2*patience, func() error {
		is := must(t, http.StatusOK, "GET", api+"/readyz", "", nil)
		if is["bus"] != state || !strings.Contains(fmt.Sprint(is["busReason"]), reason) {
			return fmt.Errorf("the bus is %v: %v", is["bus"], is["busReason"])
		}
		return nil
	})
}

// The bus is away when the process begins: it answers, accepts and works all the same, keeps
// the events, says once why, and when the bus is there it tells them in order and hears.
func TestServeStartsWithoutTheBus(t *testing.T) {
	t.Parallel()
	b := setupServe(t, false)
	address := nobodysPort(t)
	p := start(t, append(b.env, "TES_NATS_URL=nats://"+canary+"@"+address), "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	must(t, http.StatusOK, "GET", api+"/livez", "", nil)
	readyBus(t, api, natsbus.Away, "the NATS server")
	orchestrator := b.peers.Token("workflow-orchestrator")
	var made []any
	for range 20 {
		made = append(made, must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, noop("w"))["taskId"])
	}
	for _, id := range made {
		reaches(t, api, orchestrator, id, "COMPLETED")
	}
	require.Positive(t, number(t, b.dsn, "SELECT count(*) FROM outbox"), "events are kept")
	require.Zero(t, number(t, b.dsn, "SELECT count(*) FROM outbox_parked"))

	bus, err := natsbus.Open(t.Context(), natsbus.Config{
		StoreDir: t.TempDir(), Listen: address, Token: canary, NoSync: true, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bus.Close(context.Background())) })
	b.bus = bus
	h := listenTo(t, bus)
	for _, id := range made {
		h.waitFor(t, id, outbox.SubjectCreated, outbox.SubjectStarted, outbox.SubjectCompleted)
	}
	readyBus(t, api, natsbus.OK, "")
	b.tell(t, outbox.SubjectTaskRequested, noop("heard"))
	eventually(t, patience, func() error {
		if number(t, b.dsn, "SELECT count(*) FROM task WHERE workflow_id = 'heard'") != 1 {
			return errors.New("it does not hear")
		}
		return nil
	})
	require.Equal(t, exitOK, p.stop(t))
	said := p.stderr.String()
	require.Equal(t, 1, strings.Count(said, "waiting for the NATS server"), said)
	require.Equal(t, 1, strings.Count(said, "publishing failed, events wait in the outbox"), said)
	require.NotContains(t, said, canary)
}

// Refused credentials are an outage with a reason, told once and loudly; the process serves.
func TestServeStartsWithRefusedCredentials(t *testing.T) {
	t.Parallel()
	b := setupServe(t, true)
	_, address, _ := strings.Cut(b.bus.ClientURL(), "@")
	p := start(t, append(b.env, "TES_NATS_URL=nats://"+canary+"@"+address), "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	readyBus(t, api, natsbus.Away, "the NATS server refuses our credentials")
	orchestrator := b.peers.Token("workflow-orchestrator")
	made := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, noop("w"))
	reaches(t, api, orchestrator, made["taskId"], "COMPLETED")
	require.Equal(t, exitOK, p.stop(t))
	said := p.stderr.String()
	require.Equal(t, 1, strings.Count(said, `"level":"ERROR"`), said)
	require.Contains(t, said, "the server refused our credentials (put user and password, or the token, into the URL, or name a credentials file")
	require.NotContains(t, said, canary)
}

// Three servers keep each stream. Under two hundred tasks a second the one that leads the
// events ends, twice, and comes back each time: work and events go on, nothing is lost,
// nothing told twice.
func TestLeaderOfTheBusEnds(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 3)
	cluster.Start()
	cluster.WaitForLeader()
	world := setupServe(t, false)
	var err error
	world.bus, err = natsbus.Open(t.Context(), natsbus.Config{URL: cluster.URL(), Replicas: 3, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, world.bus.Close(context.Background())) })
	world.env = append(world.env, "TES_NATS_URL="+cluster.URL(), "TES_NATS_REPLICAS=3")
	f := startFleet(t, world, func(f *fleet) { f.size = 2 })
	var ended []int
	away := -1
	tasks := f.storm(4, func(int) {
		if away >= 0 {
			cluster.Start(away)
			away = -1
			return
		}
		cluster.WaitForStream("TES_EVENTS")
		away = cluster.StreamLeader("TES_EVENTS")
		cluster.Stop(away)
		ended = append(ended, away)
	})
	result := f.checkLanes(tasks)
	result["leadersEnded"], result["answers5xx"] = ended, f.broken.Load()
	say(t, result)
	require.Len(t, ended, 2)
	require.Zero(t, result["duplicates"])
	require.Zero(t, f.broken.Load(), "callers do not see the bus")
	require.Zero(t, f.unanswered.Load())
	for _, m := range f.alive {
		readyBus(t, m.url, natsbus.OK, "")
	}
}
