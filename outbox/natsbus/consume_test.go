package natsbus

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

const requested = "workflow.task_requested"

// letters subscribes to the dead letters.
func (b *testBundle) letters(t *testing.T) <-chan outbox.Delivery {
	t.Helper()
	out := make(chan outbox.Delivery, 16)
	require.NoError(t, b.Subscribe(b.ctx, deadLetterSubjects, All, func(d outbox.Delivery, _ uint64) { out <- d }))
	return out
}

// settled waits for the consumer to have nothing left to do. The server
// reports it only when asked.
func (b *testBundle) settled(t *testing.T, durable string) {
	t.Helper()
	require.Eventually(t, func() bool {
		c, err := b.conn.js.Consumer(b.ctx, b.cfg.Inbound, durable)
		if err != nil {
			return false
		}
		i := c.CachedInfo()
		return i.NumAckPending == 0 && i.NumPending == 0 && i.Delivered.Consumer > 0
	}, patience, 5*time.Millisecond)
}

func TestConsumeAcknowledges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	got := make(chan outbox.Delivery, 8)
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		got <- d
		return nil
	})
	require.NoError(t, b.Send(b.ctx, requested, map[string]string{"traceparent": "00-1"}, []byte(`{"a":1}`)))
	d := receive(t, got)
	require.Equal(t, requested, d.Subject)
	require.Equal(t, `{"a":1}`, string(d.Body))
	require.Equal(t, "00-1", d.Header["traceparent"])
	require.Equal(t, 1, d.Redelivered)
	require.WithinDuration(t, time.Now(), d.At, time.Minute)
	b.settled(t, "test")
	require.Empty(t, got)
}

func TestConsumeHearsWhatWasSentBefore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("early")))
	got := make(chan string, 1)
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		got <- string(d.Body)
		return nil
	})
	require.Equal(t, "early", receive(t, got))
}

func TestConsumeAsksAgainAfterErrorAndPanic(t *testing.T) {
	t.Parallel()
	b := setup(t)
	got := make(chan int, 8)
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		got <- d.Redelivered
		switch d.Redelivered {
		case 1:
			return errors.New("not now")
		case 2:
			panic("whoops")
		}
		return nil
	})
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("x")))
	for want := 1; want <= 3; want++ {
		require.Equal(t, want, receive(t, got))
	}
	b.settled(t, "test")
	require.Empty(t, got)
	require.Contains(t, b.log.String(), "whoops")
}

func TestConsumeBuriesPoison(t *testing.T) {
	t.Parallel()
	b := setup(t)
	letters := b.letters(t)
	var calls atomic.Int32
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		if string(d.Body) == "good" {
			return nil
		}
		calls.Add(1)
		return errors.Join(errors.New("read the request"), &outbox.Poison{Reason: "not JSON:\r\nTes-Forged: \x1b[31myes\x00 " + strings.Repeat("é", 2000)})
	})
	require.NoError(t, b.Send(b.ctx, requested, map[string]string{
		"traceparent": "00-1", jetstream.MsgIDHeader: "m1", jetstream.ExpectedStreamHeader: b.cfg.Inbound,
	}, []byte("{poison")))
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("good")))

	letter := receive(t, letters)
	require.Equal(t, "deadletter."+requested, letter.Subject)
	require.Equal(t, "{poison", string(letter.Body))
	require.Equal(t, "00-1", letter.Header["traceparent"])
	require.NotContains(t, letter.Header, "Tes-Forged")
	reason := letter.Header[ReasonHeader]
	require.True(t, strings.HasPrefix(reason, "not JSON: Tes-Forged: [31myes éé"), reason)
	require.LessOrEqual(t, len(reason), maxReason)
	b.settled(t, "test")
	require.EqualValues(t, 1, calls.Load(), "a poison is tried once")
	require.Empty(t, letters)
}

func TestConsumeGivesUp(t *testing.T) {
	t.Parallel()
	b := setup(t)
	letters := b.letters(t)
	var calls atomic.Int32
	b.consume(t, requested, func(context.Context, outbox.Delivery) error {
		calls.Add(1)
		return errors.New("the tables are turned")
	})
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("x")))
	letter := receive(t, letters)
	require.Equal(t, "given up after 20 deliveries: the tables are turned", letter.Header[ReasonHeader])
	b.settled(t, "test")
	require.EqualValues(t, 20, calls.Load())
}

// A process that dies in the handler answers nothing; the server counts.
func TestConsumeGivesUpOnAMessageThatKills(t *testing.T) {
	t.Parallel()
	b := setup(t, func(cfg *Config) { cfg.MaxDeliveries = 2 })
	letters := b.letters(t)
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("x")))
	pull, err := b.conn.js.CreateConsumer(b.ctx, b.cfg.Inbound, jetstream.ConsumerConfig{Durable: "test", FilterSubject: requested, AckPolicy: jetstream.AckExplicitPolicy})
	require.NoError(t, err)
	for range 2 {
		msg, err := pull.Next()
		require.NoError(t, err)
		require.NoError(t, msg.Nak()) // stands for the silence of a killed process
	}
	b.consume(t, requested, func(context.Context, outbox.Delivery) error {
		t.Error("called")
		return nil
	})
	letter := receive(t, letters)
	require.Contains(t, letter.Header[ReasonHeader], "given up after 2 deliveries, the last of which was never answered")
	b.settled(t, "test")
}

func TestConsumeBuriesTheLargest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	letters := b.letters(t)
	b.consume(t, requested, func(context.Context, outbox.Delivery) error {
		return &outbox.Poison{Reason: "too much"}
	})
	require.NoError(t, b.Send(b.ctx, requested, nil, make([]byte, maxPayload)))
	letter := receive(t, letters)
	require.Equal(t, "too much", letter.Header[ReasonHeader])
	require.Equal(t, "2097152", letter.Header["Tes-Cut-From"])
	require.NotEmpty(t, letter.Body)
	b.settled(t, "test")
}

func TestConsumeWaitsForDeadLetters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.conn.js.DeleteStream(b.ctx, b.cfg.DeadLetters))
	b.consume(t, requested, func(context.Context, outbox.Delivery) error {
		return &outbox.Poison{Reason: "bad"}
	})
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("x")))
	b.settled(t, "test")
	require.Equal(t, "bad", receive(t, b.letters(t)).Header[ReasonHeader])
}

func TestConsumeIsNotHeldUpByOneSlowHandler(t *testing.T) {
	t.Parallel()
	b := setup(t)
	release, slow := make(chan struct{}), make(chan struct{})
	quick := make(chan struct{}, 100)
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		if string(d.Body) == "slow" {
			close(slow)
			<-release
			return nil
		}
		quick <- struct{}{}
		return nil
	})
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("slow")))
	receive(t, slow)
	for range 100 {
		require.NoError(t, b.Send(b.ctx, requested, nil, []byte("quick")))
	}
	for range 100 {
		receive(t, quick)
	}
	close(release)
	b.settled(t, "test")
}

func TestConsumeHandsBackWhenItStops(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.consumers.pause = func(int) time.Duration { return time.Hour } // a hand-back does not wait for it
	at, ended := make(chan struct{}, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(b.ctx)
	go func() {
		ended <- b.Consume(ctx, "test", requested, func(ctx context.Context, _ outbox.Delivery) error {
			at <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		})
	}()
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("x")))
	receive(t, at)
	cancel()
	require.NoError(t, receive(t, ended))

	got := make(chan int, 1)
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		got <- d.Redelivered
		return nil
	})
	require.Equal(t, 2, receive(t, got))
	b.settled(t, "test")
}

func TestConsumeSurvivesTheLossOfItsStream(t *testing.T) {
	t.Parallel()
	b := setup(t)
	got := make(chan string, 8)
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		got <- string(d.Body)
		return nil
	})
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("one")))
	require.Equal(t, "one", receive(t, got))
	require.NoError(t, b.conn.js.DeleteStream(b.ctx, b.cfg.Inbound))
	require.Eventually(t, func() bool {
		return b.Send(b.ctx, requested, nil, []byte("two")) == nil
	}, patience, 10*time.Millisecond)
	require.Equal(t, "two", receive(t, got))
}

func TestConsumeUsesTheNeighboursStream(t *testing.T) {
	t.Parallel()
	host := setup(t, listening, func(cfg *Config) { cfg.Inbound = "UNUSED" })
	require.NoError(t, host.conn.js.DeleteStream(host.ctx, "UNUSED"))
	_, err := host.conn.js.CreateStream(host.ctx, jetstream.StreamConfig{Name: "ORCHESTRATOR", Subjects: []string{"workflow.task_requested"}})
	require.NoError(t, err)

	b := setup(t, func(cfg *Config) { cfg.URL = host.ClientURL() })
	inbound, err := b.conn.js.Stream(b.ctx, b.cfg.Inbound)
	require.NoError(t, err)
	require.Equal(t, []string{"integration.>", "system.>"}, inbound.CachedInfo().Config.Subjects)
	got := make(chan string, 8)
	h := func(_ context.Context, d outbox.Delivery) error {
		got <- d.Subject
		return nil
	}
	b.consume(t, requested, h)
	require.NoError(t, b.Send(b.ctx, requested, nil, nil))
	require.Equal(t, requested, receive(t, got))
	// A subject under the same word that nobody keeps yet becomes ours.
	b.consume(t, "workflow.cancelled", h)
	require.Eventually(t, func() bool { return b.Send(b.ctx, "workflow.cancelled", nil, nil) == nil }, patience, 10*time.Millisecond)
	require.Equal(t, "workflow.cancelled", receive(t, got))
}

func TestSubscribe(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.Publish(b.ctx, messages(1, 3))
	require.NoError(t, err)
	type event struct {
		id  string
		seq uint64
	}
	listen := func(from From) <-chan event {
		out := make(chan event, 16)
		require.NoError(t, b.Subscribe(b.ctx, "", from, func(d outbox.Delivery, seq uint64) {
			out <- event{d.Header[jetstream.MsgIDHeader], seq}
		}))
		return out
	}
	all, second, fresh := listen(All), listen(2), listen(New)
	_, err = b.Publish(b.ctx, messages(4, 2))
	require.NoError(t, err)
	for want := uint64(1); want <= 5; want++ {
		e := event{messages(int(want), 1)[0].ID, want}
		require.Equal(t, e, receive(t, all))
		if want >= 2 {
			require.Equal(t, e, receive(t, second))
		}
		if want >= 4 {
			require.Equal(t, e, receive(t, fresh))
		}
	}
}

func TestRedeliverAfter(t *testing.T) {
	t.Parallel()
	var got []time.Duration
	for _, n := range []int{1, 2, 5, 6, 20, 1 << 40} {
		got = append(got, redeliveryPause(n)/time.Second)
	}
	require.Equal(t, []time.Duration{1, 2, 16, 30, 30, 30}, got)
}

func TestSendNeedsAStream(t *testing.T) {
	t.Parallel()
	b := setup(t)
	err := b.Send(b.ctx, "nobody.listens", nil, nil)
	require.ErrorIs(t, err, jetstream.ErrNoStreamResponse)
	require.NotErrorIs(t, err, nats.ErrTimeout)
}

// Who counts dead letters is told of each, again if that failed, and under the same
// id, before the message is gone.
func TestConsumeTellsOfDeadLetters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	letters := b.letters(t)
	told := make(chan [3]string, 8)
	var calls atomic.Int32
	b.OnDeadLetter(func(_ context.Context, id, subject, reason string) error {
		told <- [3]string{id, subject, reason}
		if calls.Add(1) == 1 {
			return errors.New("the database is away")
		}
		return nil
	})
	b.consume(t, requested, func(context.Context, outbox.Delivery) error { return &outbox.Poison{Reason: "bad"} })
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("x")))
	want := [3]string{"dead-" + b.cfg.Inbound + "-1", requested, "bad"}
	require.Equal(t, want, receive(t, told))
	require.Equal(t, want, receive(t, told))
	b.settled(t, "test")
	receive(t, letters)
	require.Empty(t, letters, "the letter is one, however often it is told of")
}

// A backlog is handed out many at a time, and never more than there are places.
func TestConsumeTakesABacklogAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range slots + 10 {
		require.NoError(t, b.Send(b.ctx, requested, nil, nil))
	}
	var at atomic.Int32
	full, release := make(chan struct{}), make(chan struct{})
	b.consume(t, requested, func(context.Context, outbox.Delivery) error {
		if at.Add(1) == slots {
			close(full)
		}
		<-release
		return nil
	})
	receive(t, full)
	c, err := b.conn.js.Consumer(b.ctx, b.cfg.Inbound, "test")
	require.NoError(t, err)
	require.Equal(t, slots, c.CachedInfo().NumAckPending, "what has no place is not asked for")
	close(release)
	b.settled(t, "test")
	require.EqualValues(t, slots+10, at.Load())
}
