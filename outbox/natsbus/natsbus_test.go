package natsbus

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/natsbus/natstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, natstest.Leaks()...) }

// patience bounds every wait of a test; none is expected to last.
const patience = time.Minute

// testBundle is a bus of the test's own and what it logged.
type testBundle struct {
	*Bus
	ctx context.Context
	log *logBuffer
}

// setup opens an embedded bus, with change applied to its configuration.
func setup(t *testing.T, change ...func(*Config)) *testBundle {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	log := &logBuffer{}
	cfg := Config{StoreDir: storeDir(t), NoSync: true, Logger: slog.New(slog.NewTextHandler(log, nil))}
	for _, fn := range change {
		fn(&cfg)
	}
	bus, err := Open(ctx, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bus.Close(context.WithoutCancel(ctx))) })
	bus.consumers.pause = func(int) time.Duration { return time.Millisecond }
	return &testBundle{Bus: bus, ctx: ctx, log: log}
}

func listening(cfg *Config) { cfg.Listen = "127.0.0.1:0" }

// admin is a plain client, to do to the bus what others may do to it.
func (b *testBundle) admin(t *testing.T) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(b.conn.srv.Server), nats.Token(b.conn.srv.token))
	require.NoError(t, err)
	t.Cleanup(nc.Close)
	return nc
}

// stored reads back what the events stream holds, by id.
func (b *testBundle) stored(t *testing.T) (ids []string) {
	t.Helper()
	last, _, err := b.Tail(b.ctx)
	require.NoError(t, err)
	for seq := uint64(1); seq <= last; seq++ {
		id, err := b.Stored(b.ctx, seq)
		require.NoError(t, err)
		ids = append(ids, id)
	}
	return ids
}

// consume runs Consume until the test ends and requires that it ends well.
func (b *testBundle) consume(t *testing.T, subject string, h outbox.Handler) {
	t.Helper()
	ctx, cancel := context.WithCancel(b.ctx)
	ended := make(chan error, 1)
	go func() { ended <- b.Consume(ctx, "test", subject, h) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
}

// receive takes one value or fails the test.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		require.FailNow(t, "nothing came in time")
		panic("unreachable")
	}
}

// messages makes n events with ids from..from+n-1.
func messages(from, n int) []outbox.Message {
	batch := make([]outbox.Message, n)
	for i := range batch {
		batch[i] = outbox.Message{
			ID:      fmt.Sprintf("event-%05d", from+i),
			Subject: "task.created",
			Header:  map[string]string{"ce-type": "task.instance.created"},
			Body:    fmt.Appendf(nil, `{"n":%d}`, from+i),
		}
	}
	return batch
}

func ids(batch []outbox.Message) []string {
	out := make([]string, len(batch))
	for i, m := range batch {
		out[i] = m.ID
	}
	return out
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// storeDir is a directory for the store of an embedded server. A server that has stopped may
// still write the files of an unfinished batch, which t.TempDir would fail on.
func storeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tes-natsbus-")
	require.NoError(t, err)
	t.Cleanup(func() {
		require.Eventually(t, func() bool { return os.RemoveAll(dir) == nil }, patience, 10*time.Millisecond)
	})
	return dir
}
