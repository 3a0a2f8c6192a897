package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

var busAway = flag.Duration("bus-away", 10*time.Second, "how long the bus of TestBusAway is away; from a minute on, latencies are judged")

// What a caller may feel of it: a fifth more, or what no machine can tell from noise.
const (
	awayRatio = 1.2
	awayFloor = 5 * time.Millisecond
)

// The bus goes away under two hundred tasks a second. Nobody who calls sees it: every
// task is made and worked meanwhile. When it is back everything is told, once, and in
// order for each task.
func TestBusAway(t *testing.T) {
	t.Parallel()
	world := setupServe(t, true)
	f := startFleet(t, world, func(f *fleet) { f.size = 2 })
	f.paced(t, 0, time.Second) // whatever is slow once
	before := f.paced(t, 1_000_000, min(*busAway/2, 30*time.Second))
	back := loseBus(t, world)
	away := f.paced(t, 2_000_000, *busAway)
	eventually(t, patience, func() error {
		if n := number(t, world.dsn, "SELECT count(*) FROM task WHERE status <> 'COMPLETED'"); n > 0 {
			return fmt.Errorf("%d tasks are not completed while the bus is away", n)
		}
		return nil
	})
	log := readLog(t, world.dsn)
	backlog := len(log) - f.ears.count()
	require.GreaterOrEqual(t, backlog, 3*len(away), "the bus was not away")
	back()
	begun := time.Now()
	require.NoError(t, world.bus.Subscribe(t.Context(), "task.>", natsbus.All, f.ears.hear))
	f.ears.hearBy(t, patience+*busAway, len(log)) // what a busy machine needs as well
	drained := time.Since(begun)
	settled(t, world.dsn)

	tasks := number(t, world.dsn, "SELECT count(*) FROM task")
	result := f.check(tasks, "COMPLETED")
	p99, p99Away := quantile(before, 0.99), quantile(away, 0.99)
	result["awaySeconds"], result["createdWhileAway"], result["backlog"], result["drainSeconds"] = busAway.Seconds(), len(away), backlog, drained.Seconds()
	result["p50Ms"], result["p50AwayMs"] = ms(quantile(before, 0.5)), ms(quantile(away, 0.5))
	result["p99Ms"], result["p99AwayMs"], result["p99Ratio"] = ms(p99), ms(p99Away), float64(p99Away)/float64(p99)
	say(t, result)
	require.Zero(t, result["duplicates"])
	if *busAway >= time.Minute {
		require.LessOrEqual(t, p99Away, max(time.Duration(awayRatio*float64(p99)), p99+awayFloor))
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// paced makes tasks at killRate for a while and returns how long each took, sorted. All
// must be accepted at the first try.
func (f *fleet) paced(t *testing.T, from int, last time.Duration) (took []time.Duration) {
	t.Helper()
	pace := time.NewTicker(time.Second / killRate)
	defer pace.Stop()
	var all sync.WaitGroup
	var mu sync.Mutex
	var odd error
	for i := range int(last.Seconds() * killRate) {
		<-pace.C
		all.Go(func() {
			key, begun := fmt.Sprintf("key-%d", from+i), time.Now()
			status, _, text, err := ask(t.Context(), "POST", f.any().url+tasksPath, f.token, object{
				"taskDefinitionId": "expression", "workflowId": fmt.Sprint("away-", i%7), "input": object{"n": i}, "correlationId": key,
			}, "Idempotency-Key", key)
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(begun))
			if err != nil || status != http.StatusCreated {
				odd = errors.Join(odd, err, fmt.Errorf("%s: %d %s", key, status, text))
			}
		})
	}
	all.Wait()
	require.NoError(t, odd)
	slices.Sort(took)
	return took
}

// loseBus ends the bus of a world. back starts it again where it was.
func loseBus(t *testing.T, world *served) (back func()) {
	t.Helper()
	at, err := url.Parse(world.bus.ClientURL())
	require.NoError(t, err)
	require.NoError(t, world.bus.Close(context.Background()))
	return func() {
		t.Helper()
		world.bus, err = natsbus.Open(t.Context(), natsbus.Config{
			StoreDir: world.dir, Listen: at.Host, Token: at.User.Username(), NoSync: true, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
	}
}
