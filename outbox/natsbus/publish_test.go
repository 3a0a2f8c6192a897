package natsbus

import (
	"context"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

func TestPublishKeepsOrderOverBatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.True(t, b.streams.batches.Load(), "the embedded server takes atomic batches")

	batch := messages(1, 2*embeddedBatchMessages+500) // three atomic batches
	last, err := b.Publish(b.ctx, batch)
	require.NoError(t, err)
	require.EqualValues(t, len(batch), last)
	more := messages(len(batch)+1, 1) // a batch of one
	last, err = b.Publish(b.ctx, more)
	require.NoError(t, err)
	require.EqualValues(t, len(batch)+1, last)
	require.Equal(t, ids(append(batch, more...)), b.stored(t))

	msg, err := b.streams.events.GetMsg(b.ctx, 7)
	require.NoError(t, err)
	require.Equal(t, "task.created", msg.Subject)
	require.JSONEq(t, `{"n":7}`, string(msg.Data))
	require.Equal(t, "task.instance.created", msg.Header.Get("ce-type"))
	require.Equal(t, "event-00007", msg.Header.Get(jetstream.MsgIDHeader))
}

func TestPublishNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	last, err := b.Publish(b.ctx, nil)
	require.NoError(t, err)
	require.Zero(t, last)
}

// What a relay does after a lost acknowledgement: some of the batch is stored.
func TestPublishAgainStoresOnceAndInOrder(t *testing.T) {
	t.Parallel()
	all := messages(1, 60)
	pick := func(numbers ...int) (batch []outbox.Message) {
		for _, n := range numbers {
			batch = append(batch, all[n-1])
		}
		return batch
	}
	for name, tt := range map[string]struct {
		before []outbox.Message
		batch  []outbox.Message
		want   []outbox.Message
		last   uint64
	}{
		"all of it":         {all[:50], all[:50], all[:50], 50},
		"its head":          {all[:20], all[:60], all[:60], 60},
		"one in the middle": {pick(3), pick(1, 2, 3, 4, 5), pick(3, 1, 2, 4, 5), 5},
		"every second":      {pick(2, 4, 6), pick(1, 2, 3, 4, 5, 6, 7), pick(2, 4, 6, 1, 3, 5, 7), 7},
		"its last":          {pick(3), pick(1, 2, 3), pick(3, 1, 2), 1},
		"twice in itself":   {nil, pick(1, 2, 1, 3), pick(1, 2, 3), 3},
	} {
		for _, server := range []string{"with batches", "without batches"} {
			t.Run(name+" "+server, func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				b.streams.batches.Store(server == "with batches")
				_, err := b.Publish(b.ctx, tt.before)
				require.NoError(t, err)
				last, err := b.Publish(b.ctx, tt.batch)
				require.NoError(t, err)
				require.Equal(t, ids(tt.want), b.stored(t))
				require.Equal(t, tt.last, last)
			})
		}
	}
}

func TestPublishSplitsByBytes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	batch := messages(1, 18)
	for i := range batch {
		batch[i].Body = make([]byte, 512<<10)
	}
	chunks, err := b.publisher.split(batch)
	require.NoError(t, err)
	require.Len(t, chunks, 2)
	last, err := b.Publish(b.ctx, batch)
	require.NoError(t, err)
	require.EqualValues(t, 18, last)
	for _, seq := range []int{1, len(chunks[0]), len(chunks[0]) + 1, 18} {
		id, err := b.Stored(b.ctx, uint64(seq))
		require.NoError(t, err)
		require.Equal(t, batch[seq-1].ID, id)
	}
}

func TestPublishTooLarge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	batch := messages(1, 12)
	batch[1].Body = make([]byte, maxPayload)
	last, err := b.Publish(b.ctx, batch)
	require.Zero(t, last)
	var large *TooLarge
	require.ErrorAs(t, err, &large)
	require.Equal(t, TooLarge{ID: "event-00002", Size: large.Size, Limit: maxPayload}, *large)
	require.Empty(t, b.stored(t), "nothing is sent, so the relay can park the one and send the rest in order")
	var parked interface{ MessageID() string }
	require.ErrorAs(t, err, &parked)
	require.Equal(t, "event-00002", parked.MessageID())

	// The largest that is taken does not fit into a batch and travels alone.
	_, size := b.publisher.message(batch[0])
	batch[1].Body = make([]byte, maxPayload-size+len(batch[0].Body))
	_, err = b.Publish(b.ctx, batch)
	require.NoError(t, err)
	require.Equal(t, ids(batch), b.stored(t))
}

func TestPublishTooLargeForTheStream(t *testing.T) {
	t.Parallel()
	b := setup(t)
	cfg := b.streams.events.CachedInfo().Config
	cfg.MaxMsgSize = 1000
	_, err := b.conn.js.UpdateStream(b.ctx, cfg)
	require.NoError(t, err)
	batch := messages(1, 12)
	batch[1].Body = make([]byte, 2000)
	last, err := b.Publish(b.ctx, batch)
	var large *TooLarge
	require.ErrorAs(t, err, &large)
	require.Equal(t, "event-00002", large.ID)
	require.EqualValues(t, 1, last, "the one before it is stored")
}

func TestPublishRefusesWhatNoStreamTakes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, subject := range []string{"", "task", "task.", "task..created", "task.*", "task.>", "task.a b", "task.a\r\nPUB x 0", "workflow.x"} {
		batch := messages(1, 1)
		batch[0].Subject = subject
		_, err := b.Publish(b.ctx, batch)
		var bad *BadSubject
		require.ErrorAs(t, err, &bad, subject)
		require.Equal(t, "event-00001", bad.MessageID())
	}
	_, err := b.Publish(b.ctx, []outbox.Message{{Subject: "task.created"}})
	require.ErrorContains(t, err, "has no id")
}

func TestPublishHeadersCannotGiveOrders(t *testing.T) {
	t.Parallel()
	b := setup(t)
	batch := messages(1, 2)
	batch[0].Header = map[string]string{"Nats-Expected-Stream": "OTHER", "Nats-Msg-Id": "other", "traceparent": "00-a\r\nNats-Rollup: all"}
	_, err := b.Publish(b.ctx, batch)
	require.NoError(t, err)
	require.Equal(t, ids(batch), b.stored(t))
}

func TestFullStreamPushesBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	cfg := b.streams.events.CachedInfo().Config
	cfg.MaxMsgs = 5
	_, err := b.conn.js.UpdateStream(b.ctx, cfg)
	require.NoError(t, err)
	batch := messages(1, 8)
	last, err := b.Publish(b.ctx, batch)
	require.Error(t, err)
	got := b.stored(t)
	require.Len(t, got, int(last))
	require.Equal(t, ids(batch)[:last], got, "a prefix, and nothing old was dropped")

	cfg.MaxMsgs = -1
	_, err = b.conn.js.UpdateStream(b.ctx, cfg)
	require.NoError(t, err)
	_, err = b.Publish(b.ctx, batch)
	require.NoError(t, err)
	require.Equal(t, ids(batch), b.stored(t))
}

// The server's memory of ids outlives a purge, so an acknowledgement as a
// duplicate does not mean that the message is there.
func TestPublishAfterPurgeStoresAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	batch := messages(1, 5)
	_, err := b.Publish(b.ctx, batch)
	require.NoError(t, err)
	require.NoError(t, b.streams.events.Purge(b.ctx))
	for range 2 { // the second time they are duplicates that are there
		last, err := b.Publish(b.ctx, batch)
		require.NoError(t, err)
		require.EqualValues(t, 10, last)
	}
	require.Equal(t, append(make([]string, 5), ids(batch)...), b.stored(t))
}

func TestPublishMakesALostStreamAnew(t *testing.T) {
	t.Parallel()
	b := setup(t)
	called := make(chan struct{}, 64) // also for each time that the streams are well again
	b.OnReconnect(func() { called <- struct{}{} })
	_, before, err := b.Tail(b.ctx)
	require.NoError(t, err)
	require.NoError(t, b.conn.js.DeleteStream(b.ctx, b.cfg.Stream))

	_, err = b.Publish(b.ctx, messages(1, 12))
	require.Error(t, err, "what was lost is to be sent first")
	// The server may still be clearing the old one away. It is asked again, and
	// every refusal takes its time.
	for err != nil && b.ctx.Err() == nil {
		_, err = b.Publish(b.ctx, messages(1, 12))
	}
	require.NoError(t, err)
	receive(t, called)
	_, after, err := b.Tail(b.ctx)
	require.NoError(t, err)
	require.NotEqual(t, before, after)
	require.Equal(t, ids(messages(1, 12)), b.stored(t))
}

func TestStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.Publish(b.ctx, messages(1, 2))
	require.NoError(t, err)
	for seq, want := range map[uint64]string{0: "", 1: "event-00001", 2: "event-00002", 3: "", 1 << 60: ""} {
		id, err := b.Stored(b.ctx, seq)
		require.NoError(t, err)
		require.Equal(t, want, id)
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.Publish(b.ctx, messages(1, 100))
	require.NoError(t, err)
	require.NoError(t, b.streams.events.DeleteMsg(b.ctx, 42))
	got, err := b.IDs(b.ctx, 41, 1000)
	require.NoError(t, err)
	require.Len(t, got, 59)
	require.NotContains(t, got, "event-00042")
	for n := 43; n <= 100; n++ {
		require.EqualValues(t, n, got[ids(messages(n, 1))[0]])
	}
	none, err := b.IDs(b.ctx, 101, 100)
	require.NoError(t, err)
	require.Empty(t, none)
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	_, err = b.IDs(ctx, 1, 100)
	require.ErrorIs(t, err, context.Canceled)
}

func TestPublishEndsWithItsContext(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	_, err := b.Publish(ctx, messages(1, 12))
	require.ErrorIs(t, err, context.Canceled)
}

func TestServerThatForgotBatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	admin, err := jetstream.New(b.admin(t))
	require.NoError(t, err)
	cfg := b.streams.events.CachedInfo().Config
	cfg.AllowAtomicPublish = false
	_, err = admin.UpdateStream(b.ctx, cfg)
	require.NoError(t, err)
	_, err = b.Publish(b.ctx, messages(1, 12))
	require.NoError(t, err)
	require.False(t, b.streams.batches.Load())
	require.Equal(t, ids(messages(1, 12)), b.stored(t))
}

func TestHeaderSizeIsTheServers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	msg, size := b.publisher.message(messages(1, 1)[0])
	whole := &nats.Msg{Header: msg.Header, Data: msg.Data}
	require.Equal(t, whole.Size(), size)
}

// The memory that the server keeps for each event of the duplicate window.
func BenchmarkDuplicateWindow(b *testing.B) {
	for name, window := range map[string]time.Duration{"inside": time.Hour, "outside": 100 * time.Millisecond} {
		b.Run(name, func(b *testing.B) {
			bus, err := Open(b.Context(), Config{StoreDir: b.TempDir(), NoSync: true, Duplicates: window})
			require.NoError(b, err)
			defer func() { require.NoError(b, bus.Close(context.Background())) }()
			heap := func() float64 {
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				return float64(m.HeapAlloc)
			}
			before, n := heap(), 0
			for b.Loop() {
				_, err := bus.Publish(b.Context(), messages(n, 1000))
				require.NoError(b, err)
				n += 1000
			}
			if window < time.Second {
				<-time.After(10 * window) // the server forgets by a timer
			}
			b.ReportMetric((heap()-before)/float64(n), "heap-B/event")
		})
	}
}

func BenchmarkPublish(b *testing.B) {
	for name, noSync := range map[string]bool{"SyncAlways": false, "NoSync": true} {
		b.Run(name, func(b *testing.B) {
			bus, err := Open(b.Context(), Config{StoreDir: b.TempDir(), NoSync: noSync})
			require.NoError(b, err)
			defer func() { require.NoError(b, bus.Close(context.Background())) }()
			const size = 1000
			body := []byte(strings.Repeat("x", 400))
			n := 0
			for b.Loop() {
				b.StopTimer()
				batch := messages(n, size)
				for i := range batch {
					batch[i].Body = body
				}
				n += size
				b.StartTimer()
				_, err := bus.Publish(b.Context(), batch)
				require.NoError(b, err)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
