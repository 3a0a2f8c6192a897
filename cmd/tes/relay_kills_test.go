package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/cmd/tes/testdata/sabotage"
)

var relayKills = flag.Int("relay-kills", 3, "how often TestRelayKills kills the relay at each of its points")

// relayPoints are where a relay dies worst.
var relayPoints = []string{beforePublish, afterAck, beforeMark}

// doomed is a fleet whose relay dies again and again: a process takes the lead,
// relays a while, and is killed at its point.
type doomed struct {
	*fleet
	points []string // of those to be launched yet
	died   map[string]int
	held   map[string]int // events that the killed had in their hands
}

// startDoomed starts a fleet of which each process dies at the next point, and does
// what more its environment says.
func startDoomed(t *testing.T, points []string, env ...string) *doomed {
	t.Helper()
	d := &doomed{points: points, died: map[string]int{}, held: map[string]int{}}
	dice := rand.New(rand.NewPCG(*seed, 0)) // the seed is the test's
	d.fleet = startFleet(t, setupServe(t, true), func(f *fleet) {
		f.size, f.exe = min(2, len(points)), sabotaged(t)
		f.arm = func() []string {
			if len(d.points) == 0 {
				return env
			}
			point := d.points[0]
			d.points = d.points[1:]
			return append([]string{sabotage.Dies + "=" + point, fmt.Sprintf("%s=%d", sabotage.Passes, 3+dice.IntN(12))}, env...)
		}
	})
	return d
}

// run gives tasks and withdraws them, which no executor has a part in, until every
// process of the doomed is dead. Then others take their places.
func (d *doomed) run() (tasks int) {
	t := d.t
	t.Helper()
	over, given := make(chan struct{}), make(chan error, 1)
	go func() {
		var err error
		tasks, err = d.withdraw(over)
		given <- err
	}()
	buried := make([]bool, d.size)
	for range len(d.points) + d.size {
		which := d.bereaved(buried)
		if buried[which] = true; len(d.points) > 0 {
			d.replace(which)
			buried[which] = false
		}
	}
	for which := range d.size {
		d.replace(which)
	}
	close(over)
	require.NoError(t, <-given)
	settled(t, d.world.dsn)
	return tasks
}

// bereaved waits until another one has died, and returns its place.
func (d *doomed) bereaved(buried []bool) (which int) {
	d.t.Helper()
	eventually(d.t, patience, func() error {
		for i, m := range d.alive {
			select {
			case <-m.done:
				if which = i; !buried[i] {
					return nil
				}
			default:
			}
		}
		return errors.New("all live")
	})
	said := strings.Split(strings.TrimSpace(d.alive[which].stderr.String()), "\n")
	var events int
	_, err := fmt.Sscanf(said[len(said)-1], "sabotage: %d events", &events)
	require.NoError(d.t, err, "it did not die where it was to: %s", d.alive[which].stderr)
	point := said[len(said)-1][strings.Index(said[len(said)-1], "events ")+len("events "):]
	d.died[point]++
	d.held[point] += events
	return which
}

// withdraw makes tasks that wait for a worker, and cancels each, until it is over.
func (d *doomed) withdraw(over <-chan struct{}) (tasks int, err error) {
	pace := time.NewTicker(time.Second / killRate)
	defer pace.Stop()
	var all sync.WaitGroup
	var mu sync.Mutex
	for {
		select {
		case <-over:
			all.Wait()
			return tasks, err
		case <-pace.C:
		}
		i := tasks
		tasks++
		all.Go(func() {
			task, failed := d.give(i, "remote")
			if failed == nil {
				_, failed = d.ask("POST", fmt.Sprintf("%s/%v/cancel", tasksPath, task), object{"reason": "withdrawn"})
			}
			mu.Lock()
			defer mu.Unlock()
			err = errors.Join(err, failed)
		})
	}
}

// The process that relays is killed before it publishes, after the bus has said yes,
// and before it could note that: nothing is lost, the order is kept, and what is told
// again is the same.
func TestRelayKills(t *testing.T) {
	t.Parallel()
	d := startDoomed(t, slices.Repeat(relayPoints, *relayKills))
	tasks := d.run()
	result := d.check(tasks, "CANCELLED")
	result["kills"], result["heldWhenKilled"] = d.died, d.held
	say(t, result)
	for _, point := range relayPoints {
		require.Equal(t, *relayKills, d.died[point], point)
		require.Positive(t, d.held[point], point)
	}
}
