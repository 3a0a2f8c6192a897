package natsbus

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

func TestOpenMakesTheStreams(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.Empty(t, b.ClientURL(), "nobody else can come in")
	for name, subjects := range map[string][]string{
		"TES_EVENTS":     {"task.>"},
		"TES_INBOUND":    {"workflow.>", "integration.>", "system.>"},
		"TES_DEADLETTER": {"deadletter.>"},
	} {
		stream, err := b.conn.js.Stream(b.ctx, name)
		require.NoError(t, err)
		cfg := stream.CachedInfo().Config
		require.Equal(t, subjects, cfg.Subjects)
		require.Equal(t, jetstream.FileStorage, cfg.Storage)
		require.Equal(t, jetstream.LimitsPolicy, cfg.Retention)
		require.Equal(t, jetstream.DiscardNew, cfg.Discard)
		require.Equal(t, 7*24*time.Hour, cfg.MaxAge)
		require.Equal(t, map[bool]time.Duration{true: 2 * time.Minute, false: 15 * time.Minute}[name == "TES_EVENTS"], cfg.Duplicates)
		require.Equal(t, name == "TES_EVENTS", cfg.AllowAtomicPublish)
	}
	require.Empty(t, b.log.String())
}

func TestRestartFindsTheStream(t *testing.T) {
	t.Parallel()
	dir := storeDir(t)
	inDir := func(cfg *Config) { cfg.StoreDir = dir }
	first := setup(t, inDir, func(cfg *Config) { cfg.NoSync = false })
	_, err := first.Publish(first.ctx, messages(1, 10))
	require.NoError(t, err)
	_, created, err := first.Tail(first.ctx)
	require.NoError(t, err)
	require.NoError(t, first.Close(first.ctx))

	second := setup(t, inDir)
	last, again, err := second.Tail(second.ctx)
	require.NoError(t, err)
	require.EqualValues(t, 10, last)
	require.Equal(t, created, again)
	// Ids are remembered too.
	last, err = second.Publish(second.ctx, messages(6, 10))
	require.NoError(t, err)
	require.EqualValues(t, 15, last)
	require.Equal(t, ids(messages(1, 15)), second.stored(t))
}

func TestOneServerToADirectory(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// A collected lock file would be closed, and the lock gone with it.
	runtime.GC()
	runtime.GC()
	_, err := Open(b.ctx, Config{StoreDir: b.cfg.StoreDir})
	require.ErrorContains(t, err, "is in use by the embedded NATS server of process")
	require.ErrorContains(t, err, "join that one by its URL")
	require.NoError(t, b.Close(b.ctx))

	next, err := Open(b.ctx, Config{StoreDir: b.cfg.StoreDir, NoSync: true})
	require.NoError(t, err)
	require.NoError(t, next.Close(b.ctx))
}

// The store is the server's alone, and what it is in is not: tes dev keeps a PostgreSQL there
// that runs under another account.
func TestStoreDirectoryLeavesItsParentSearchable(t *testing.T) {
	t.Parallel()
	base := filepath.Join(t.TempDir(), "new", "data")
	setup(t, func(cfg *Config) { cfg.StoreDir = filepath.Join(base, "nats") })
	for dir, mode := range map[string]os.FileMode{filepath.Dir(base): 0o755, base: 0o755, filepath.Join(base, "nats"): 0o700} {
		info, err := os.Stat(dir)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), dir)
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	dir := storeDir(t)
	_, err = Open(context.Background(), Config{StoreDir: dir, Listen: l.Addr().String()})
	require.ErrorContains(t, err, "cannot listen on "+l.Addr().String())
	require.ErrorContains(t, err, "choose another address, or port 0")
	// Nothing of the failed start remains.
	b := setup(t, func(cfg *Config) { cfg.StoreDir = dir }, listening)
	require.NotEmpty(t, b.ClientURL())
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/file"
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for want, cfg := range map[string]Config{
		"is not host:port":                       {Listen: "4222"},
		"no port between 0 and 65535":            {Listen: "localhost:http"},
		"make the store directory":               {StoreDir: file},
		"the NATS URL x:notaport cannot be read": {URL: "nats://user:secret@x:notaport"},
	} {
		if cfg.StoreDir == "" {
			cfg.StoreDir = storeDir(t)
		}
		_, err := Open(context.Background(), cfg)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestJoinAnEmbeddedServer(t *testing.T) {
	t.Parallel()
	host := setup(t, listening)
	guest := setup(t, func(cfg *Config) { cfg.URL = host.ClientURL() })
	_, err := guest.Publish(guest.ctx, messages(1, 3))
	require.NoError(t, err)
	_, err = host.Publish(host.ctx, messages(4, 3))
	require.NoError(t, err)
	require.Equal(t, ids(messages(1, 6)), guest.stored(t))
	require.Equal(t, host.stored(t), guest.stored(t))
}

func TestUnauthenticatedClientIsRefused(t *testing.T) {
	t.Parallel()
	host := setup(t, listening)
	url := host.ClientURL()
	open := "nats://" + url[strings.LastIndexByte(url, '@')+1:]
	_, err := nats.Connect(open)
	require.ErrorIs(t, err, nats.ErrAuthorization)
	_, err = nats.Connect(open, nats.Token("guess"))
	require.ErrorIs(t, err, nats.ErrAuthorization)

	_, err = Open(host.ctx, Config{URL: strings.Replace(open, "nats://", "nats://guess@", 1)})
	require.ErrorContains(t, err, "the server refused our credentials")
	require.NotContains(t, err.Error(), "guess")
}

func TestGivenToken(t *testing.T) {
	t.Parallel()
	host := setup(t, listening, func(cfg *Config) { cfg.Token = "s p/c@l" })
	nc, err := nats.Connect(host.ClientURL())
	require.NoError(t, err)
	nc.Close()
}

func TestOpenGivesUpOnASilentAddress(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = Open(ctx, Config{URL: "nats://user:secret@" + address, Logger: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "connect to nats://"+address+": no NATS server answered")
	require.NotContains(t, err.Error(), "secret")
}

// plainServer is a NATS server that is not ours.
func plainServer(t *testing.T, opts server.Options) *server.Server {
	t.Helper()
	opts.Host, opts.NoSigs, opts.NoLog, opts.StoreDir = "127.0.0.1", true, true, storeDir(t)
	if opts.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	srv, err := server.NewServer(&opts)
	require.NoError(t, err)
	srv.Start()
	require.True(t, srv.ReadyForConnections(patience))
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	return srv
}

func TestServerWithoutJetStream(t *testing.T) {
	t.Parallel()
	srv := plainServer(t, server.Options{})
	_, err := Open(context.Background(), Config{URL: srv.ClientURL()})
	require.ErrorContains(t, err, "does not offer JetStream")
}

// oldServer speaks just enough to be connected to.
func oldServer(t *testing.T, version string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "INFO {\"server_id\":\"old\",\"version\":%q,\"headers\":true,\"max_payload\":1048576}\r\n", version)
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			if lines.Text() == "PING" {
				fmt.Fprint(conn, "PONG\r\n")
			}
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return "nats://" + l.Addr().String()
}

func TestOldServerIsRefused(t *testing.T) {
	t.Parallel()
	_, err := Open(context.Background(), Config{URL: oldServer(t, "2.9.25"), Logger: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "the NATS server is version 2.9.25: 2.10 or newer is needed")
}

func TestExistingStreams(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		have jetstream.StreamConfig
		err  string // "" where it can be ours
	}{
		"other limits": {jetstream.StreamConfig{Name: "TES_EVENTS", Subjects: []string{"task.>", "job.>"}, MaxAge: time.Hour, Duplicates: time.Minute, MaxBytes: 1 << 20, Description: "theirs"}, ""},
		"in memory":    {jetstream.StreamConfig{Name: "TES_EVENTS", Subjects: []string{"task.>"}, Storage: jetstream.MemoryStorage}, "keeps its messages in memory"},
		"work queue":   {jetstream.StreamConfig{Name: "TES_EVENTS", Subjects: []string{"task.>"}, Retention: jetstream.WorkQueuePolicy}, "drops messages once they are consumed"},
		"another's":    {jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"task.created"}}, `stream ["OTHER"] has the subjects [task.>] already`},
		"everything":   {jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"deadletter.>", "workflow.>", "system.>", "integration.*"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			srv := plainServer(t, server.Options{JetStream: true})
			nc, err := nats.Connect(srv.ClientURL())
			require.NoError(t, err)
			defer nc.Close()
			js, err := jetstream.New(nc)
			require.NoError(t, err)
			_, err = js.CreateStream(ctx, tt.have)
			require.NoError(t, err)

			b, err := Open(ctx, Config{URL: srv.ClientURL()})
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			defer func() { require.NoError(t, b.Close(ctx)) }()
			cfg := b.streams.events.CachedInfo().Config
			require.Equal(t, 2*time.Minute, cfg.Duplicates)
			require.True(t, cfg.AllowAtomicPublish)
			if tt.have.Name == "TES_EVENTS" {
				require.Equal(t, tt.have.Subjects, cfg.Subjects)
				require.Equal(t, time.Hour, cfg.MaxAge, "an operator's limits stay")
				require.EqualValues(t, 1<<20, cfg.MaxBytes)
				require.Equal(t, jetstream.DiscardOld, cfg.Discard, "and so does what happens at them")
				require.Equal(t, "theirs", cfg.Description)
			}
			_, err = b.Publish(ctx, messages(1, 2))
			require.NoError(t, err)
		})
	}
}

func TestReconnect(t *testing.T) {
	t.Parallel()
	srv := plainServer(t, server.Options{JetStream: true})
	address := srv.Addr().(*net.TCPAddr)
	b := setup(t, func(cfg *Config) { cfg.URL = srv.ClientURL() })
	called, got := make(chan struct{}, 8), make(chan string, 8)
	b.OnReconnect(func() { called <- struct{}{} })
	b.consume(t, requested, func(_ context.Context, d outbox.Delivery) error {
		got <- string(d.Body)
		return nil
	})
	_, err := b.Publish(b.ctx, messages(1, 3))
	require.NoError(t, err)
	link := b.conn.connCtx
	srv.Shutdown()
	srv.WaitForShutdown()
	<-link.Done()
	_, err = b.Publish(b.ctx, messages(4, 3))
	require.ErrorIs(t, err, ErrDisconnected, "at once, not after a timeout")

	// Another server, and so an empty store, where the old one was.
	plainServer(t, server.Options{JetStream: true, Port: address.Port})
	receive(t, called)
	require.Empty(t, b.stored(t))
	_, err = b.Publish(b.ctx, messages(1, 6))
	require.NoError(t, err)
	require.Equal(t, ids(messages(1, 6)), b.stored(t))
	require.NoError(t, b.Send(b.ctx, requested, nil, []byte("after")))
	require.Equal(t, "after", receive(t, got))
}

func TestClosedBus(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ended := make(chan error, 1)
	go func() {
		ended <- b.Consume(b.ctx, "test", requested, func(context.Context, outbox.Delivery) error { return nil })
	}()
	require.NoError(t, b.Subscribe(b.ctx, "", All, func(outbox.Delivery, uint64) {}))
	require.Eventually(t, func() bool {
		_, err := b.conn.js.Consumer(b.ctx, b.cfg.Inbound, "test")
		return err == nil
	}, patience, time.Millisecond)
	require.NoError(t, b.Close(b.ctx))
	require.NoError(t, receive(t, ended))
	require.NoError(t, b.Close(b.ctx), "closing twice is fine")

	_, err := b.Publish(b.ctx, messages(1, 2))
	require.ErrorIs(t, err, ErrClosed)
	_, err = b.Stored(b.ctx, 1)
	require.ErrorIs(t, err, ErrClosed)
	_, _, err = b.Tail(b.ctx)
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, b.Send(b.ctx, requested, nil, nil), ErrClosed)
	require.ErrorIs(t, b.Consume(b.ctx, "test", requested, nil), ErrClosed)
	require.ErrorIs(t, b.Subscribe(b.ctx, "", All, nil), ErrClosed)
}

func TestConsumeStoppedWhileItAsks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	stopped, stop := context.WithCancel(b.ctx)
	stop()
	require.NoError(t, b.Consume(stopped, "test", requested, nil))
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	at, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- b.Consume(b.ctx, "test", requested, func(context.Context, outbox.Delivery) error {
			close(at)
			<-release
			return nil
		})
	}()
	require.Eventually(t, func() bool { return b.Send(b.ctx, requested, nil, nil) == nil }, patience, time.Millisecond)
	receive(t, at)
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	require.ErrorContains(t, b.Close(ctx), "handlers were still at work")
	close(release)
	require.NoError(t, receive(t, ended))
}

func TestAtLeast(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{"2.10.0": true, "2.10.27-RC.1": true, "2.12.3": true, "3.0.0": true, "v2.11.0": true, "2.9.25": false, "1.99.0": false, "": false, "dev": false} {
		require.Equal(t, want, atLeast(version, 2, 10), version)
	}
}
