package natsbus

import (
	"context"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

const deployed = "../../deploy/nats.conf"

// passwords of the users in deploy/nats.conf. That of tes is one that a URL must encode.
var passwords = map[string]string{
	"tes": "t/e@s+1", "orchestrator": "orchestrator-1", "integration": "integration-1", "operator": "operator-1", "events": "events-1",
}

// deployment is a server with deploy/nats.conf, and a tes on it.
type deployment struct {
	*testBundle
	address string
}

// deploy runs the very file that compose.yaml runs, but for where it listens and where it
// keeps its streams.
func deploy(t *testing.T) *deployment {
	t.Helper()
	for user, password := range passwords {
		t.Setenv("NATS_"+strings.ToUpper(user)+"_PASSWORD", password)
	}
	opts, err := server.ProcessConfigFile(deployed)
	require.NoError(t, err)
	opts.Host, opts.Port, opts.HTTPPort, opts.StoreDir, opts.NoSigs, opts.NoLog = "127.0.0.1", server.RANDOM_PORT, 0, storeDir(t), true, true
	srv, err := server.NewServer(opts)
	require.NoError(t, err)
	srv.Start()
	require.True(t, srv.ReadyForConnections(patience))
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	d := &deployment{address: srv.Addr().String()}
	d.testBundle = setup(t, func(cfg *Config) { cfg.URL, cfg.Readers = d.url("tes"), []string{"orchestrator", "events"} })
	return d
}

func (d *deployment) url(user string) string {
	return (&url.URL{Scheme: "nats", User: url.UserPassword(user, passwords[user]), Host: d.address}).String()
}

// client is a user's connection, and what the server has refused it.
type client struct {
	*nats.Conn
	t       *testing.T
	refused chan error
}

func (d *deployment) client(t *testing.T, user string) *client {
	t.Helper()
	c := &client{t: t, refused: make(chan error, 64)}
	var err error
	c.Conn, err = nats.Connect(d.url(user), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.refused <- err }))
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// mayNot demands that the server refuses what act asks for.
func (c *client) mayNot(what string, act func() error) {
	c.t.Helper()
	require.NoError(c.t, act(), what)
	require.NoError(c.t, c.Flush())
	err := receive(c.t, c.refused)
	require.ErrorIs(c.t, err, nats.ErrPermissionViolation, what)
}

func (c *client) mayNotPublish(subjects ...string) {
	c.t.Helper()
	for _, subject := range subjects {
		c.mayNot("publish "+subject, func() error { return c.Publish(subject, []byte("{}")) })
	}
}

func (c *client) mayNotRead(subjects ...string) {
	c.t.Helper()
	for _, subject := range subjects {
		c.mayNot("subscribe "+subject, func() error { _, err := c.SubscribeSync(subject); return err })
	}
}

// says publishes with a name for the message, and demands that it is stored.
func (c *client) says(ctx context.Context, subject string) {
	c.t.Helper()
	js, err := jetstream.New(c.Conn)
	require.NoError(c.t, err)
	ack, err := js.Publish(ctx, subject, []byte(`{"from":"`+subject+`"}`), jetstream.WithMsgID(subject))
	require.NoError(c.t, err, subject)
	require.Equal(c.t, "TES_INBOUND", ack.Stream)
	again, err := js.Publish(ctx, subject, []byte(`{}`), jetstream.WithMsgID(subject))
	require.NoError(c.t, err, subject)
	require.True(c.t, again.Duplicate)
}

// counts are how many messages each stream has.
func (d *deployment) counts(t *testing.T) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	for _, name := range []string{"TES_EVENTS", "TES_INBOUND", "TES_DEADLETTER"} {
		stream, err := d.conn.js.Stream(d.ctx, name)
		require.NoError(t, err)
		out[name] = stream.CachedInfo().State.Msgs
	}
	return out
}

// Orders that would hurt: nobody but the server's owner gives them.
var harm = []string{
	"$JS.API.STREAM.DELETE.TES_EVENTS", "$JS.API.STREAM.PURGE.TES_EVENTS", "$JS.API.STREAM.MSG.DELETE.TES_EVENTS",
}

// Orders that are tes's alone.
var ownOrders = append([]string{
	"$JS.API.STREAM.UPDATE.TES_EVENTS", "$JS.API.STREAM.CREATE.MINE", "$JS.API.STREAM.INFO.TES_INBOUND", "$JS.API.STREAM.MSG.GET.TES_INBOUND",
	"$JS.API.CONSUMER.CREATE.TES_EVENTS.mine", "$JS.API.CONSUMER.CREATE.TES_EVENTS.events", "$JS.API.CONSUMER.DELETE.TES_INBOUND.tes-shutdown",
	"$JS.API.CONSUMER.DURABLE.CREATE.TES_EVENTS.mine", "$JS.API.CONSUMER.MSG.NEXT.TES_INBOUND.tes-shutdown", "$JS.ACK.TES_INBOUND.tes-shutdown.1.1.1.1.1",
}, harm...)

// TestDeployedUsers runs deploy/nats.conf: each user can do its work from end to end, and
// is refused everything else.
func TestDeployedUsers(t *testing.T) { // the file takes its passwords from the environment
	d := deploy(t)
	heard := make(chan string, 16)
	for durable, subject := range map[string]string{"tes-task-requests": "workflow.task_requested", "tes-integration-responses": "integration.response_received", "tes-shutdown": "system.shutdown_requested"} {
		ctx, cancel := context.WithCancel(d.ctx)
		ended := make(chan error, 1)
		go func() {
			ended <- d.Consume(ctx, durable, subject, func(_ context.Context, m outbox.Delivery) error {
				heard <- m.Subject
				if strings.HasPrefix(m.Subject, "system.") {
					return &outbox.Poison{Reason: "of no use"}
				}
				return nil
			})
		}()
		t.Cleanup(func() { cancel(); require.NoError(t, <-ended) })
	}

	// tes: events in batches and one by one, their tail, a look on, dead letters.
	shown := make(chan string, 64)
	require.NoError(t, d.Subscribe(d.ctx, "", All, func(m outbox.Delivery, _ uint64) { shown <- m.Header[jetstream.MsgIDHeader] }))
	live := d.client(t, "events")
	looking, err := live.SubscribeSync("task.>")
	require.NoError(t, err)
	require.NoError(t, live.Flush())
	_, err = d.Publish(d.ctx, messages(1, 20))
	require.NoError(t, err)
	_, err = d.Publish(d.ctx, messages(15, 8))
	require.NoError(t, err)
	require.Equal(t, ids(messages(1, 22)), d.stored(t))
	for _, id := range ids(messages(1, 22)) {
		require.Equal(t, id, receive(t, shown))
	}
	m, err := looking.NextMsgWithContext(d.ctx)
	require.NoError(t, err)
	require.Equal(t, "task.created", m.Subject)

	for user, subject := range map[string]string{"orchestrator": "workflow.task_requested", "integration": "integration.response_received", "operator": "system.shutdown_requested"} {
		c := d.client(t, user)
		c.says(d.ctx, subject)
		require.Equal(t, subject, receive(t, heard))
		for _, other := range []string{"workflow.task_requested", "integration.response_received", "system.shutdown_requested", "system.maintenance_mode"} {
			if strings.Split(other, ".")[0] != strings.Split(subject, ".")[0] {
				c.mayNotPublish(other)
			}
		}
		c.mayNotPublish("task.completed", "deadletter.workflow.task_requested", "$SYS.REQ.SERVER.PING", "anything")
		c.mayNotPublish(ownOrders...)
		c.mayNotRead("workflow.>", "integration.>", "system.>", "deadletter.>", "$JS.>", "$SYS.>", ">", "_R_.>")
	}
	require.Eventually(t, func() bool { return d.counts(t)["TES_DEADLETTER"] == 1 }, patience, 10*time.Millisecond, "tes buries what is of no use")

	reader := d.client(t, "events")
	reader.mayNotPublish("task.completed", "workflow.task_requested", "integration.x", "system.x", "deadletter.x", "JS.TES.API.CONSUMER.MSG.NEXT.TES_EVENTS.orchestrator", "JS.TES.API.STREAM.DELETE.TES_EVENTS", "JS.TES.API.CONSUMER.CREATE.TES_EVENTS.events", "JS.TES.API.CONSUMER.DELETE.TES_EVENTS.events", "$JS.ACK.TES_EVENTS.orchestrator.1.1.1.1.1")
	reader.mayNotPublish(ownOrders...)
	reader.mayNotRead("workflow.>", "integration.>", "system.>", "deadletter.>", "$JS.>", ">", "_R_.>")

	tes := d.client(t, "tes")
	tes.mayNotPublish(append([]string{"workflow.task_requested", "integration.response_received", "system.shutdown_requested", "anything"}, harm...)...)
	tes.mayNotRead("task.>", ">", "$JS.>")
	require.Equal(t, map[string]uint64{"TES_EVENTS": 22, "TES_INBOUND": 3, "TES_DEADLETTER": 1}, d.counts(t), "nothing of all that was done")
}

// TestDeployedReaders: who reads events has a consumer ready, takes and acknowledges what
// is in it, and leaves the others' alone.
func TestDeployedReaders(t *testing.T) { // the file takes its passwords from the environment
	d := deploy(t)
	_, err := d.Publish(d.ctx, messages(1, 30))
	require.NoError(t, err)
	for _, user := range []string{"orchestrator", "events"} {
		js, err := jetstream.NewWithAPIPrefix(d.client(t, user).Conn, "JS.TES.API")
		require.NoError(t, err)
		pull, err := js.Consumer(d.ctx, "TES_EVENTS", user)
		require.NoError(t, err)
		var got []string
		for len(got) < 30 {
			batch, err := pull.Fetch(6, jetstream.FetchMaxWait(10*time.Second))
			require.NoError(t, err)
			for m := range batch.Messages() {
				got = append(got, m.Headers().Get(jetstream.MsgIDHeader))
				require.NoError(t, m.DoubleAck(d.ctx))
			}
			require.NoError(t, batch.Error())
		}
		require.Equal(t, ids(messages(1, 30)), got, user)
		info, err := pull.Info(d.ctx)
		require.NoError(t, err)
		require.Zero(t, info.NumAckPending+int(info.NumPending), user)
		require.Equal(t, jetstream.AckExplicitPolicy, info.Config.AckPolicy)
	}
	require.Equal(t, map[string]uint64{"TES_EVENTS": 30, "TES_INBOUND": 0, "TES_DEADLETTER": 0}, d.counts(t))
}

// TestDeployedReplies: where the server's acknowledgement of a message, or an event that
// was asked for, is to go is the sender's word too. It stays in the sender's account.
func TestDeployedReplies(t *testing.T) { // the file takes its passwords from the environment
	d := deploy(t)
	_, err := d.Publish(d.ctx, messages(1, 3))
	require.NoError(t, err)
	orchestrator, reader := d.client(t, "orchestrator"), d.client(t, "events")
	targets := append([]string{"task.completed", "system.shutdown_requested", "deadletter.x", "workflow.mine"}, harm...)
	for _, to := range targets {
		require.NoError(t, orchestrator.PublishRequest("workflow.task_requested", to, []byte(`{}`)))
		require.NoError(t, reader.PublishRequest("JS.TES.API.CONSUMER.MSG.NEXT.TES_EVENTS.events", to, []byte(`{"batch":1,"no_wait":true}`)))
	}
	// Both connections are answered in order, so what came before this was acted upon.
	orchestrator.says(d.ctx, "workflow.last")
	info, err := reader.RequestWithContext(d.ctx, "JS.TES.API.CONSUMER.INFO.TES_EVENTS.events", nil)
	require.NoError(t, err)
	require.Contains(t, string(info.Data), `"stream_seq":3`, "all three were given out")
	require.Equal(t, map[string]uint64{"TES_EVENTS": 3, "TES_INBOUND": uint64(len(targets)) + 1, "TES_DEADLETTER": 0}, d.counts(t))
	stream, err := d.conn.js.Stream(d.ctx, "TES_INBOUND")
	require.NoError(t, err)
	inbound, err := stream.Info(d.ctx, jetstream.WithSubjectFilter(">"))
	require.NoError(t, err)
	require.Equal(t, map[string]uint64{"workflow.task_requested": uint64(len(targets)), "workflow.last": 1}, inbound.State.Subjects)
}

// TestDeployedPasswords: without its passwords the server does not start, and with a wrong
// one nobody comes in.
func TestDeployedPasswords(t *testing.T) { // the file takes its passwords from the environment
	_, err := server.ProcessConfigFile(deployed)
	require.ErrorContains(t, err, "NATS_TES_PASSWORD")
	d := deploy(t)
	for _, user := range []string{"tes", "orchestrator", "nobody"} {
		_, err := nats.Connect("nats://" + user + ":guess@" + d.address)
		require.ErrorIs(t, err, nats.ErrAuthorization, user)
	}
	_, err = nats.Connect("nats://" + d.address)
	require.ErrorIs(t, err, nats.ErrAuthorization)
	_, err = Open(d.ctx, Config{URL: "nats://tes:guess@" + d.address, Logger: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "the server refused our credentials")
}

// TestReaders: the consumers of others are made once, and stay as their owners set them.
func TestReaders(t *testing.T) {
	t.Parallel()
	dir := storeDir(t)
	open := func(readers ...string) *testBundle {
		return setup(t, func(cfg *Config) { cfg.StoreDir, cfg.Readers = dir, readers })
	}
	first := open("a", "b-2")
	_, err := first.conn.js.UpdateConsumer(first.ctx, "TES_EVENTS", jetstream.ConsumerConfig{Durable: "a", AckPolicy: jetstream.AckExplicitPolicy, AckWait: time.Hour, MaxDeliver: -1})
	require.NoError(t, err)
	require.NoError(t, first.Close(first.ctx))
	second := open("a", "c")
	for name, wait := range map[string]time.Duration{"a": time.Hour, "b-2": ackWait, "c": ackWait} {
		c, err := second.conn.js.Consumer(second.ctx, "TES_EVENTS", name)
		require.NoError(t, err)
		require.Equal(t, wait, c.CachedInfo().Config.AckWait, name)
		require.Equal(t, jetstream.DeliverAllPolicy, c.CachedInfo().Config.DeliverPolicy)
	}
	for _, bad := range []string{"", "a.b", "a b", "*", ">", strings.Repeat("x", 65), "tes-shutdown"} {
		_, err := Open(second.ctx, Config{StoreDir: storeDir(t), NoSync: true, Readers: []string{bad}})
		require.ErrorContains(t, err, "not a valid name for the consumer", bad)
	}
}
