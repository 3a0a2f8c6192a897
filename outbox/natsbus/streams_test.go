package natsbus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus/natstest"
)

// streamConfig is how a stream is at the moment.
func (b *testBundle) streamConfig(t *testing.T, name string) jetstream.StreamConfig {
	t.Helper()
	stream, err := b.conn.js.Stream(b.ctx, name)
	require.NoError(t, err)
	return stream.CachedInfo().Config
}

// isBack waits for a stream that was deleted to be made again.
func (b *testBundle) isBack(t *testing.T, name string) jetstream.StreamConfig {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := b.conn.js.Stream(b.ctx, name)
		return err == nil
	}, patience, time.Millisecond, "%s is not made again", name)
	return b.streamConfig(t, name)
}

// A stream that is deleted under a running process is made again as it was made at first,
// whoever notices: consumers, the look, or a publication. The next process starts on it.
func TestDeletedStreamsAreMadeAsAtFirst(t *testing.T) {
	t.Parallel()
	for _, name := range streamNames {
		for who, change := range map[string]func(*Config){"by use": func(*Config) {}, "by looking": quick} {
			t.Run(name+" "+who, func(t *testing.T) {
				t.Parallel()
				host := setup(t, listening, func(cfg *Config) { cfg.intervals.probe = time.Hour })
				b := setup(t, func(cfg *Config) { cfg.URL = host.ClientURL(); cfg.intervals.probe = time.Hour }, change)
				first := b.streamConfig(t, name)
				if who == "by use" {
					b.consume(t, requested, func(context.Context, outbox.Delivery) error { return &outbox.Poison{Reason: "bad"} })
					b.consumeAs(t, "other", "integration.response_received", func(context.Context, outbox.Delivery) error { return nil })
				}
				require.NoError(t, b.conn.js.DeleteStream(b.ctx, name))
				if who == "by use" && name != "TES_INBOUND" {
					require.NoError(t, b.Send(b.ctx, requested, nil, []byte("x")))
					_, _ = b.Publish(b.ctx, messages(1, 1))
				}
				again := b.isBack(t, name)
				require.Equal(t, first.Subjects, again.Subjects)
				require.Equal(t, first, again)
				next := setup(t, func(cfg *Config) { cfg.URL = host.ClientURL() })
				require.Equal(t, first, next.streamConfig(t, name))
			})
		}
	}
}

// consumeAs is consume under another name.
func (b *testBundle) consumeAs(t *testing.T, durable, subject string, h outbox.Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(b.ctx)
	ended := make(chan error, 1)
	go func() { ended <- b.Consume(ctx, durable, subject, h) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// An older program, whose stream was deleted, made it again with the very subjects that it
// heard. That stream is repaired, its messages stay, and its consumers go on.
func TestStreamOfExactSubjectsIsRepaired(t *testing.T) {
	t.Parallel()
	host := setup(t, listening, func(cfg *Config) { cfg.Inbound, cfg.intervals.probe = "UNUSED", time.Hour })
	require.NoError(t, host.conn.js.DeleteStream(host.ctx, "UNUSED"))
	_, err := host.conn.js.CreateStream(host.ctx, jetstream.StreamConfig{Name: "TES_INBOUND", Subjects: []string{
		"workflow.task_requested", "system.shutdown_requested", "integration.response_received", "system.maintenance_mode",
	}})
	require.NoError(t, err)
	require.NoError(t, host.Send(host.ctx, requested, nil, []byte("early")))

	b := setup(t, func(cfg *Config) { cfg.URL = host.ClientURL() })
	require.Equal(t, inboundSubjects, b.streamConfig(t, "TES_INBOUND").Subjects)
	got := make(chan string, 8)
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		got <- string(d.Body)
		return nil
	})
	require.Equal(t, "early", receive(t, got))
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("late")))
	require.Equal(t, "late", receive(t, got))
}

// A neighbour that keeps a part of a family leaves us the subjects that we hear and it does
// not have; when its stream goes, the family is ours, and the next process starts.
func TestFamilySharedWithANeighbour(t *testing.T) {
	t.Parallel()
	host := setup(t, listening, func(cfg *Config) { cfg.Inbound, cfg.intervals.probe = "UNUSED", time.Hour })
	require.NoError(t, host.conn.js.DeleteStream(host.ctx, "UNUSED"))
	_, err := host.conn.js.CreateStream(host.ctx, jetstream.StreamConfig{Name: "THEIRS", Subjects: []string{"integration.status.*"}})
	require.NoError(t, err)

	b := setup(t, func(cfg *Config) { cfg.URL = host.ClientURL() })
	require.Equal(t, []string{"workflow.>", "system.>"}, b.streamConfig(t, "TES_INBOUND").Subjects)
	const response = "integration.response_received"
	b.consume(t, response, func(context.Context, outbox.Delivery) error { return nil })
	require.Eventually(t, func() bool { return b.Send(b.ctx, response, nil, nil) == nil }, patience, 10*time.Millisecond)
	require.Equal(t, []string{"workflow.>", "system.>", response}, b.streamConfig(t, "TES_INBOUND").Subjects)

	require.NoError(t, host.conn.js.DeleteStream(host.ctx, "THEIRS"))
	next := setup(t, func(cfg *Config) { cfg.URL = host.ClientURL() })
	require.ElementsMatch(t, inboundSubjects, next.streamConfig(t, "TES_INBOUND").Subjects)
}

// A stream beside the events stream that could not be ensured, for it had no leader at that
// moment, is there all the same: it is ensured again at the next probe of all streams.
func TestErrorOfAnotherStreamIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t, func(cfg *Config) { cfg.intervals.probe = time.Hour })
	require.True(t, b.maintainer.isHealthy(true))

	b.Bus.health.mu.Lock()
	b.Bus.health.state.otherErr = errors.New("stream TES_INBOUND: no leader")
	b.Bus.health.mu.Unlock()
	require.True(t, b.maintainer.isHealthy(false), "the probe of the events stream alone")
	require.False(t, b.maintainer.isHealthy(true))

	_, err := b.streams.ensure(b.ctx)
	require.NoError(t, err)
	require.True(t, b.maintainer.isHealthy(true))
}

func TestCovers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern, subject string
		want             bool
	}{
		{"workflow.>", "workflow.task_requested", true},
		{"workflow.>", "workflow.a.b", true},
		{"workflow.>", "workflow.>", true},
		{"workflow.>", "workflow.*", true},
		{"workflow.*", "workflow.a", true},
		{"workflow.*", "workflow.*", true},
		{">", "a", true},
		{"a.*.c", "a.b.c", true},
		{"a", "a", true},
		{"workflow.>", "workflow", false},
		{"workflow.*", "workflow.>", false},
		{"workflow.*", "workflow.a.b", false},
		{"workflow.a", "workflow.*", false},
		{"workflow.>", "integration.a", false},
		{"a.b", "a", false},
		{"a.b", "a.b.c", false},
	} {
		require.Equal(t, tt.want, covers(tt.pattern, tt.subject), "%s %s", tt.pattern, tt.subject)
	}
	require.Equal(t, []string{"x", "workflow.>", "system.>"}, withSubjects([]string{"x", "workflow.a", "workflow.>"}, []string{"workflow.>", "workflow.b", "system.>"}))
}

// The limits of a stream that is there are its operator's, and what happens at them too:
// after a restart it drops its oldest as it did before, and publishing goes on.
func TestLimitsAreTheOperators(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	inDir := func(cfg *Config) { cfg.StoreDir = dir }
	first := setup(t, inDir)
	theirs := first.streamConfig(t, "TES_EVENTS")
	require.Equal(t, jetstream.DiscardNew, theirs.Discard, "ours drop nothing")
	theirs.MaxMsgs, theirs.MaxBytes, theirs.MaxAge, theirs.MaxMsgsPerSubject, theirs.Discard = 5, 1<<20, time.Hour, 4, jetstream.DiscardOld
	_, err := first.conn.js.UpdateStream(first.ctx, theirs)
	require.NoError(t, err)
	require.NoError(t, first.Close(first.ctx))

	second := setup(t, inDir)
	require.Equal(t, theirs, second.streamConfig(t, "TES_EVENTS"))
	for n := range 10 {
		_, err = second.Publish(second.ctx, messages(10*n, 10))
		require.NoError(t, err)
	}
	last, _, err := second.Tail(second.ctx)
	require.NoError(t, err)
	require.EqualValues(t, 100, last)
	id, err := second.Stored(second.ctx, last)
	require.NoError(t, err)
	require.Equal(t, "event-00099", id)
	state, _ := second.Health()
	require.Equal(t, OK, state)

	theirs.MaxAge = time.Minute // shorter than our duplicate window
	theirs.Duplicates = time.Minute
	_, err = second.conn.js.UpdateStream(second.ctx, theirs)
	require.NoError(t, err)
	require.NoError(t, second.Close(second.ctx))
	third := setup(t, inDir)
	require.Equal(t, theirs, third.streamConfig(t, "TES_EVENTS"))
}

// A server alone keeps no replicas: that is said in a sentence, once, and the bus works.
func TestMoreReplicasThanServers(t *testing.T) {
	t.Parallel()
	b := setup(t, quick, func(cfg *Config) { cfg.Replicas = 3 })
	_, err := b.Publish(b.ctx, messages(1, 12))
	require.NoError(t, err)
	b.health(t, OK, "the NATS cluster has too few servers with JetStream for the replicas: stream TES_EVENTS has 1 of the 3 that are configured")
	before := b.streams.replicaErrors.Count()
	require.Eventually(t, func() bool { return b.streams.replicaErrors.Count() > before+2 }, patience, time.Millisecond, "it is not tried again")
	require.Equal(t, 1, strings.Count(b.log.String(), "a stream has fewer replicas than configured"), b.log)
}

// Streams get the replicas that are asked for, new ones and those that are there. Not asked,
// each keeps its own.
func TestReplicas(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 3)
	cluster.Start()
	cluster.WaitForLeader()
	open := func(replicas int) *testBundle {
		return startBus(t, cluster.URL(), func(cfg *Config) { cfg.Replicas = replicas })
	}
	has := func(b *testBundle, replicas int) {
		t.Helper()
		b.health(t, OK, "")
		for _, name := range streamNames {
			require.Eventually(t, func() bool { return b.replicas(name) == replicas }, 2*patience, 10*time.Millisecond, "%s has no %d replicas", name, replicas)
		}
	}
	unset := open(0)
	has(unset, 1)
	unset.publishes(t, messages(1, 20))
	three := open(3)
	has(three, 3)
	kept := open(0)
	has(kept, 3)
	require.NoError(t, kept.Close(kept.ctx))
	unset.publishes(t, messages(11, 20))
	require.Equal(t, ids(messages(1, 30)), unset.stored(t))
	require.NoError(t, three.Close(three.ctx))
	has(open(1), 1)
}

// A cluster that has fewer servers than replicas are asked for is used all the same.
func TestMoreReplicasThanTheClusterHas(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 2)
	cluster.Start()
	cluster.WaitForLeader()
	b := startBus(t, cluster.URL(), func(cfg *Config) { cfg.Replicas = 3 })
	b.health(t, OK, "the NATS cluster has too few servers with JetStream for the replicas")
	b.publishes(t, messages(1, 20))
	require.Equal(t, ids(messages(1, 20)), b.stored(t))
	require.Equal(t, 1, strings.Count(b.log.String(), "a stream has fewer replicas than configured"), b.log)
}

// publishes tells a batch again until it is stored, as a relay does: a cluster that has just
// changed may leave a question without an answer.
func (b *testBundle) publishes(t *testing.T, batch []outbox.Message) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, err := b.Publish(b.ctx, batch)
		return err == nil
	}, 2*patience, 10*time.Millisecond)
}

// replicas are those of a stream, 0 if it does not say so soon.
func (b *testBundle) replicas(name string) int {
	ctx, enough := context.WithTimeout(b.ctx, 2*time.Second)
	defer enough()
	stream, err := b.conn.js.Stream(ctx, name)
	if err != nil {
		return 0
	}
	return stream.CachedInfo().Config.Replicas
}

var streamNames = []string{"TES_EVENTS", "TES_INBOUND", "TES_DEADLETTER"}

// The server that leads the events stream ends in the midst of publishing, and comes back.
// What was acknowledged is there, once and in order, and what failed can be told again.
func TestLeaderOfTheStreamEnds(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 3)
	cluster.Start()
	cluster.WaitForLeader()
	b := startBus(t, cluster.URL(), func(cfg *Config) { cfg.Replicas = 3 })
	b.health(t, OK, "")
	told := make(chan int)
	go func() {
		defer close(told)
		for n := 0; n < 2000 && b.ctx.Err() == nil; n += 10 {
			for b.ctx.Err() == nil {
				if _, err := b.Publish(b.ctx, messages(n, 10)); err == nil {
					break
				}
				_ = wait(b.ctx, 10*time.Millisecond)
			}
			if n == 500 || n == 1500 {
				told <- n
			}
		}
	}()
	<-told
	cluster.WaitForStream("TES_EVENTS")
	leader := cluster.StreamLeader("TES_EVENTS")
	cluster.Stop(leader)
	<-told // told by the two that are left
	cluster.Start(leader)
	for range told {
		require.FailNow(t, "there are two stops")
	}
	require.NoError(t, b.ctx.Err())
	b.health(t, OK, "")
	require.Equal(t, ids(messages(0, 2000)), slices.DeleteFunc(b.stored(t), func(id string) bool { return id == "" }))
}

// The fence holds on a stream with replicas too, which refuses under another code.
func TestStalePublisherIsRefusedByReplicas(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 3)
	cluster.Start()
	cluster.WaitForLeader()
	open := func() *testBundle {
		b := startBus(t, cluster.URL(), func(cfg *Config) { cfg.Replicas = 3 })
		b.health(t, OK, "")
		_, _, err := b.Tail(b.ctx)
		require.NoError(t, err)
		return b
	}
	stale, live := open(), open()
	live.publishes(t, messages(1, 30))
	for _, n := range []int{1, 50} {
		_, err := stale.Publish(stale.ctx, messages(100_000, n))
		require.ErrorIs(t, err, ErrMoved)
		last, _, err := stale.Tail(stale.ctx)
		require.NoError(t, err)
		require.EqualValues(t, 30, last)
		stale.publisher.fence.after-- // the end that it took for the stream's
	}
}
