package natsbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// dialWait is how long Open goes on trying a server that does not answer.
const dialWait = 10 * time.Second

// connect sets nc and js, or says why it cannot.
func (b *Bus) connect(ctx context.Context) error {
	b.newLink()
	opts := b.options()
	target := withoutSecrets(b.cfg.URL)
	if b.srv != nil {
		target = "the embedded NATS server"
		opts = append(opts, nats.InProcessServer(b.srv.Server))
		if b.srv.token != "" {
			opts = append(opts, nats.Token(b.srv.token))
		}
	}
	if err := checkURLs(b.cfg.URL); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	again := time.NewTicker(250 * time.Millisecond)
	defer again.Stop()
	for first := true; ; first = false {
		nc, err := nats.Connect(b.cfg.URL, opts...)
		if err == nil {
			b.nc = nc
			break
		}
		if !mayHeal(err) {
			return fmt.Errorf("connect to %s: %w", target, hint(err))
		}
		if first {
			b.cfg.Logger.Warn("waiting for the NATS server", "url", target, "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to %s: no NATS server answered: is it running, and is the URL right? %w", target, err)
		case <-again.C:
		}
	}
	js, err := jetstream.New(b.nc)
	if err != nil {
		return fmt.Errorf("use JetStream on %s: %w", target, err)
	}
	b.js = js
	return nil
}

func (b *Bus) options() []nats.Option {
	opts := []nats.Option{
		nats.Name("tes"),
		nats.Timeout(2 * time.Second),
		nats.SetCustomDialer(dialer{b.ctx}),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		// The outbox is the buffer: fail at once and keep order, rather than
		// send later what the relay has sent again meanwhile.
		nats.ReconnectBufSize(-1),
		// By default two refusals in a row end the connection for good, which
		// would turn a credential's rotation into an outage.
		nats.IgnoreAuthErrorAbort(),
		// A network that swallows packets is noticed after half a minute, not four.
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(3),
		nats.NoCallbacksAfterClientClose(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			b.dropLink()
			b.cfg.Logger.Warn("lost the connection to NATS", "error", err)
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			b.newLink()
			b.cfg.Logger.Warn("connected to NATS again", "server", nc.ConnectedAddr()) // not the URL: it may hold the token
			b.afterReconnect()
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			b.cfg.Logger.Warn("nats", "error", err)
		}),
	}
	if b.cfg.Credentials != "" {
		opts = append(opts, nats.UserCredentials(b.cfg.Credentials))
	}
	return opts
}

// checkServer refuses what we could not work with.
func (b *Bus) checkServer(ctx context.Context) error {
	if v := b.nc.ConnectedServerVersion(); !atLeast(v, 2, 10) {
		return fmt.Errorf("the NATS server is version %s: 2.10 or newer is needed", v)
	}
	ctx, done := b.exchange(ctx)
	defer done()
	_, err := b.js.AccountInfo(ctx)
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) {
		return fmt.Errorf("the NATS server does not offer JetStream to this account: start it with -js, or enable JetStream for the account: %w", err)
	}
	if err != nil {
		return fmt.Errorf("ask the NATS server for JetStream: %w", why(ctx, err))
	}
	return nil
}

// afterReconnect makes sure of the streams, which are gone if the server came
// back empty, and calls the hooks.
func (b *Bus) afterReconnect() {
	b.background(func() {
		another, err := b.ensureStreams(b.ctx)
		if err != nil {
			b.cfg.Logger.Warn("after reconnecting", "error", err)
		}
		if !another {
			b.callHooks()
		}
	})
}

func (b *Bus) callHooks() {
	b.background(func() {
		b.calling.Lock()
		defer b.calling.Unlock()
		b.mu.Lock()
		hooks := b.hooks[:len(b.hooks):len(b.hooks)]
		b.mu.Unlock()
		for _, fn := range hooks {
			fn()
		}
	})
}

// background keeps slow work off the NATS client's callback goroutine, where it
// would hold up the news of the next disconnect.
func (b *Bus) background(work func()) {
	leave, err := b.enter()
	if err != nil {
		return
	}
	go func() {
		defer leave()
		work()
	}()
}

func (b *Bus) newLink() {
	link, unlink := context.WithCancelCause(b.ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.unlink != nil {
		b.unlink(ErrDisconnected)
	}
	b.link, b.unlink = link, unlink
}

func (b *Bus) dropLink() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unlink(ErrDisconnected)
}

// dialer gives up when the bus does, and so when Open's context does.
type dialer struct{ ctx context.Context }

// Dial is what the NATS client calls.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 2 * time.Second}).DialContext(d.ctx, network, address)
}

// mayHeal tells a server that is not there yet from one that says no.
func mayHeal(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, nats.ErrNoServers) ||
		errors.Is(err, nats.ErrTimeout) || errors.Is(err, io.EOF)
}

func hint(err error) error {
	if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) {
		return fmt.Errorf("the server refused our credentials: put user and password, or the token, into the URL, or name a credentials file: %w", err)
	}
	return err
}

// checkURLs is for the message: the NATS client's own would show the secret.
func checkURLs(urls string) error {
	for part := range strings.SplitSeq(urls, ",") {
		part = strings.TrimSpace(part)
		if part != "" && !strings.Contains(part, "://") {
			part = "nats://" + part
		}
		_, err := url.Parse(part)
		var bad *url.Error
		if errors.As(err, &bad) {
			return fmt.Errorf("the NATS URL %s cannot be read: %w", withoutSecrets(part), bad.Err)
		}
	}
	return nil
}

// withoutSecrets takes the secrets out of a list of URLs; a token stands where a user
// would, so the user goes too.
func withoutSecrets(urls string) string {
	parts := strings.Split(urls, ",")
	for i, p := range parts {
		u, err := url.Parse(strings.TrimSpace(p))
		if err != nil || u.Host == "" {
			parts[i] = p[strings.LastIndexByte(p, '@')+1:]
			continue
		}
		u.User = nil
		parts[i] = u.String()
	}
	return strings.Join(parts, ",")
}

func atLeast(version string, major, minor int) bool {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, errA := strconv.Atoi(parts[0])
	i, errI := strconv.Atoi(parts[1])
	if errA != nil || errI != nil {
		return false
	}
	return a > major || a == major && i >= minor
}
