package natsbus

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus/natstest"
)

// quick is a rhythm for tests that wait for the bus to look after itself.
func quick(cfg *Config) {
	cfg.intervals = intervals{probe: 20 * time.Millisecond, replicas: 20 * time.Millisecond, redial: 20 * time.Millisecond}
}

// startBus is setup for a bus that does not wait for its server.
func startBus(t *testing.T, url string, change ...func(*Config)) *testBundle {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	log := &logBuffer{}
	cfg := Config{URL: url, Logger: slog.New(slog.NewTextHandler(log, nil))}
	quick(&cfg)
	for _, fn := range change {
		fn(&cfg)
	}
	bus, err := Start(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%.4000s", log)
		}
		require.NoError(t, bus.Close(context.WithoutCancel(ctx)))
	})
	bus.consumers.pause = func(int) time.Duration { return time.Millisecond }
	return &testBundle{Bus: bus, ctx: ctx, log: log}
}

// health waits until the bus says that it is so, and why.
func (b *testBundle) health(t *testing.T, state, reason string) {
	t.Helper()
	require.Eventually(t, func() bool {
		is, why := b.Health()
		return is == state && strings.Contains(why, reason)
	}, 2*patience, 5*time.Millisecond, "want %s %q", state, reason)
}

// freeAddress is one that nobody listens on.
func freeAddress(t *testing.T) *net.TCPAddr {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return l.Addr().(*net.TCPAddr)
}

// With the server away a bus is made at once. It takes nothing, and above all sets nothing
// aside as too large for a server that it has never seen. When the server comes, whoever
// waits is told, publishes and hears.
func TestStartWithoutServer(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	b := startBus(t, "nats://user:secret@"+address.String())
	called, got := make(chan struct{}, 64), make(chan string, 8)
	b.OnReconnect(func() { called <- struct{}{} })
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		got <- string(d.Body)
		return nil
	})
	b.health(t, Away, "")
	_, err := b.Publish(b.ctx, messages(1, 12))
	require.ErrorIs(t, err, ErrDisconnected)
	_, _, err = b.Tail(b.ctx)
	require.ErrorIs(t, err, ErrDisconnected)
	_, err = b.Stored(b.ctx, 1)
	require.ErrorIs(t, err, ErrDisconnected)
	require.ErrorIs(t, b.Send(b.ctx, requested, nil, nil), ErrDisconnected)
	require.ErrorIs(t, b.Subscribe(b.ctx, "", All, nil), ErrDisconnected)
	require.Eventually(t, func() bool { return tries(b.Bus) > 2 }, patience, time.Millisecond)
	require.Equal(t, 1, strings.Count(b.log.String(), "waiting for the NATS server"), b.log)
	require.NotContains(t, b.log.String(), "secret")

	plainServer(t, server.Options{JetStream: true, Port: address.Port})
	receive(t, called)
	b.health(t, OK, "")
	_, err = b.Publish(b.ctx, messages(1, 12))
	require.NoError(t, err)
	require.Equal(t, ids(messages(1, 12)), b.stored(t))
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("after")))
	require.Equal(t, "after", receive(t, got))
}

// tries are how often the server was asked in vain.
func tries(b *Bus) int { return b.conn.dialErrors.Count() }

// A server that refuses us is an outage too: the reason is told loudly, once, and when the
// credentials are good nobody has to restart anything.
func TestStartWithRefusedCredentials(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	run := func(token string) *server.Server {
		return plainServer(t, server.Options{JetStream: true, Port: address.Port, Authorization: token})
	}
	first := run("another")
	b := startBus(t, "nats://secret@"+address.String())
	b.health(t, Away, "the NATS server refuses our credentials")
	require.Eventually(t, func() bool { return tries(b.Bus) > 3 }, patience, time.Millisecond)
	require.Equal(t, 1, strings.Count(b.log.String(), "level=ERROR"), b.log)
	require.Contains(t, b.log.String(), "the server refused our credentials (put user and password, or the token, into the URL")
	require.NotContains(t, b.log.String(), "secret")

	first.Shutdown()
	first.WaitForShutdown()
	run("secret")
	b.health(t, OK, "")
	_, err := b.Publish(b.ctx, messages(1, 2))
	require.NoError(t, err)
}

// What no server can mend is told at once.
func TestStartRefusesWhatNoServerCanMend(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]Config{
		"the NATS URL x:notaport cannot be read": {URL: "nats://user:secret@x:notaport"},
		"read the NATS credentials":              {URL: "nats://127.0.0.1:1", Credentials: t.TempDir() + "/none"},
		"not a valid name for the consumer":      {URL: "nats://127.0.0.1:1", Readers: []string{"a b"}},
		"1 to 5 replicas":                        {URL: "nats://127.0.0.1:1", Replicas: 6},
		"make the store directory":               {StoreDir: "/dev/null/x"},
	} {
		_, err := Start(context.Background(), cfg)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "secret")
	}
}

// A server that answers and has no JetStream for us, or a stream that we must not publish
// to: nothing is published, the reason is told, and it ends without a restart.
func TestStartWithWhatCannotBeUsed(t *testing.T) {
	t.Parallel()
	srv := plainServer(t, server.Options{})
	b := startBus(t, srv.ClientURL())
	b.health(t, Failing, "jetstream not enabled")
	_, err := b.Publish(b.ctx, messages(1, 1))
	require.ErrorContains(t, err, "does not offer JetStream")
	require.NoError(t, srv.EnableJetStream(&server.JetStreamConfig{StoreDir: t.TempDir()}))
	b.health(t, OK, "")

	require.NoError(t, b.conn.js.DeleteStream(b.ctx, "TES_DEADLETTER"))
	other := startBus(t, srv.ClientURL(), func(cfg *Config) { cfg.Stream = "OTHER_EVENTS" })
	other.health(t, Failing, "subjects overlap")
	_, err = other.Publish(other.ctx, messages(1, 1))
	require.ErrorContains(t, err, `stream ["TES_EVENTS"] has the subjects [task.>] already`)
	require.Eventually(t, func() bool {
		_, err := b.conn.js.Stream(b.ctx, "TES_DEADLETTER")
		return err == nil
	}, patience, time.Millisecond, "the others are made all the same")
}

// A cluster of which too few servers run has no leader for JetStream. The process begins all
// the same, and joins when the others have come.
func TestStartWithoutALeaderOfJetStream(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 3)
	cluster.Start(0)
	b := startBus(t, cluster.URL())
	called, got := make(chan struct{}, 64), make(chan string, 8)
	b.OnReconnect(func() { called <- struct{}{} })
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		got <- string(d.Body)
		return nil
	})
	b.health(t, Failing, "")
	_, err := b.Publish(b.ctx, messages(1, 12))
	require.Error(t, err)

	cluster.Start(1, 2)
	receiveIn(t, called)
	b.health(t, OK, "")
	b.publishes(t, messages(1, 12))
	require.Eventually(t, func() bool { return b.Send(b.ctx, requested, nil, []byte("after")) == nil }, patience, 10*time.Millisecond)
	require.Equal(t, "after", receive(t, got))
}

// receiveIn is receive for what an election may hold up.
func receiveIn[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(2 * patience):
		require.FailNow(t, "nothing came in time")
		panic("unreachable")
	}
}

// Bus that says ok takes what comes: a stream that is full, by publishing to it or by
// looking at it, is told of with its limit, once in the log, and so is its end.
func TestHealthOfAFullStream(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]func(*jetstream.StreamConfig){
		"messages": func(cfg *jetstream.StreamConfig) { cfg.MaxMsgs = 20 },
		"bytes":    func(cfg *jetstream.StreamConfig) { cfg.MaxBytes = 5000 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, quick, listening)
			idle := startBus(t, b.ClientURL())
			idle.health(t, OK, "")
			open := b.streams.events.CachedInfo().Config
			limited := open
			limit(&limited)
			_, err := b.conn.js.UpdateStream(b.ctx, limited)
			require.NoError(t, err)
			for n := 1; err == nil; n++ {
				_, err = b.Publish(b.ctx, messages(n, 1))
			}
			state, reason := b.Health()
			require.Equal(t, Failing, state)
			require.Contains(t, reason, "JetStream says: maximum "+name+" exceeded (1 times since ")
			_, err = b.Publish(b.ctx, messages(1000, 1))
			require.Error(t, err)
			_, reason = b.Health()
			require.Contains(t, reason, "(2 times since ")
			idle.health(t, Failing, "the stream is full")

			_, err = b.conn.js.UpdateStream(b.ctx, open)
			require.NoError(t, err)
			idle.health(t, OK, "")
			_, err = b.Publish(b.ctx, messages(1000, 1))
			require.NoError(t, err)
			b.health(t, OK, "")
		})
	}
}

// A stream without a leader takes nothing, though the connection stands.
func TestHealthWithoutALeaderOfTheStream(t *testing.T) {
	t.Parallel()
	cluster := natstest.New(t, 3)
	cluster.Start()
	cluster.WaitForLeader()
	b := startBus(t, cluster.URLOf(0), func(cfg *Config) { cfg.Replicas = 3 })
	b.health(t, OK, "")
	cluster.Stop(1)
	cluster.Stop(2)
	b.health(t, Failing, "")
	require.True(t, b.Connected())
	cluster.Start(1, 2)
	b.health(t, OK, "")
}

// What a publication finds wrong with the streams is tried again by itself, and is not told
// of when it is over, also where nobody publishes any more.
func TestHealthAfterAFailureThatAPublicationFound(t *testing.T) {
	t.Parallel()
	b := setup(t, quick)
	b.health(t, OK, "")
	ended, end := context.WithCancel(b.ctx)
	end()
	_, err := b.streams.ensure(ended)
	require.Error(t, err)
	b.health(t, OK, "")
}
