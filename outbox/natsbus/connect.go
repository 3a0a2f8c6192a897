package natsbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-3f7a0631/tes/outbox/once"
)

// dialTimeout is how long Open tries to connect to a server that does not answer.
const dialTimeout = 10 * time.Second

// redialSoon is the pause between the first soonTries tries to connect: within a dozen seconds a
// restarted server is back. After them, and for a server that refuses the credentials and logs
// every try, the pause is intervals.redial.
const (
	redialSoon = 250 * time.Millisecond
	soonTries  = 48
)

// target names the server in messages.
func (b *Bus) target() string {
	if b.srv != nil {
		return "the embedded NATS server"
	}
	return withoutSecrets(b.cfg.URL)
}

// connect waits for the first connection, or returns why there cannot be one.
func (b *Bus) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()

	ticker := time.NewTicker(redialSoon)
	defer ticker.Stop()

	for first := true; ; first = false {
		err := b.dial()
		if err == nil {
			return nil
		}
		// A refusal does not end while Open waits: an operator must act.
		if !isTemporary(err) {
			return fmt.Errorf("connect to %s: %w", b.target(), hint(err))
		}

		// Log the wait once, not with each try.
		if first {
			b.cfg.Logger.Warn("waiting for the NATS server", "url", b.target(), "error", err)
		}

		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to %s: no NATS server answered: is it running, and is the URL right? %w", b.target(), err)
		case <-ticker.C:
		}
	}
}

// connectWithRetry tries to connect until it succeeds; false if the bus was closed before.
func (b *Bus) connectWithRetry() bool {
	for tries := 1; b.ctx.Err() == nil; tries++ {
		err := b.dial()
		if err == nil {
			b.logRecovered(&b.dialErrors, "connected to NATS", "server", b.nc.ConnectedAddr())
			return true
		}

		if b.ctx.Err() != nil {
			return false
		}

		b.recordDialError(hint(err))
		if !wait(b.ctx, b.redialPause(tries, err)) {
			return false
		}
	}

	return false
}

func (b *Bus) redialPause(tries int, err error) time.Duration {
	pause := redialSoon
	if tries > soonTries || err != nil && !isTemporary(err) {
		pause = b.cfg.intervals.redial
	}
	return pause + rand.N(pause/4) // or all processes would reconnect at once
}

// recordDialError records why there is no connection, and logs each kind of reason once: as an
// error if an operator must act, as a warning if the server just does not answer.
func (b *Bus) recordDialError(err error) {
	if b.ctx.Err() != nil {
		return // Close was called
	}

	b.mu.Lock()
	b.state.dialErr = err
	b.mu.Unlock()
	// Each kind of error is logged once in an outage.
	if !b.dialErrors.Note(err) {
		return
	}
	if isTemporary(err) {
		b.cfg.Logger.Warn("waiting for the NATS server: events are kept in the database", "url", b.target(), "error", err)
		return
	}

	b.cfg.Logger.Error("the NATS server says no; it is asked again: events are kept in the database", "url", b.target(), "error", err)
}

// logRecovered logs the end of an outage, if there was one.
func (b *Bus) logRecovered(outage *once.Errors, message string, attrs ...any) {
	if n, lasted := outage.Over(); n > 0 {
		b.cfg.Logger.Warn(message, append(attrs, "failures", n, "after", lasted.Round(time.Millisecond))...)
	}
}

// dial tries each server once, and sets nc, js and connCtx.
func (b *Bus) dial() error {
	opts := b.options()
	if b.srv != nil {
		opts = append(opts, nats.InProcessServer(b.srv.Server))
		// The token is needed inside the process too.
		if b.srv.token != "" {
			opts = append(opts, nats.Token(b.srv.token))
		}
	}

	nc, err := nats.Connect(b.cfg.URL, opts...)
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was tried
	}

	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return fmt.Errorf("use JetStream: %w", err)
	}

	b.mu.Lock()
	b.nc, b.js = nc, js
	b.mu.Unlock()
	if b.ctx.Err() != nil { // teardown may have found no connection
		nc.Close()
		return context.Cause(b.ctx) //nolint:wrapcheck // ErrClosed, or the cause of Open's context
	}

	b.beginConn()
	if !nc.IsConnected() { // DisconnectErrHandler was called before connCtx was made
		b.endConn()
	}

	return nil
}

func (b *Bus) options() []nats.Option {
	opts := []nats.Option{
		nats.Name("tes"),
		nats.Timeout(2 * time.Second),
		nats.SetCustomDialer(dialer{b.ctx}),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(func(tries int) time.Duration { return b.reconnectDelay(tries) }),
		// The outbox is the buffer. A client with one of its own would send messages late that
		// the relay has published again meanwhile, and break the order.
		nats.ReconnectBufSize(-1),
		// By default two refusals in a row end the connection for ever: the rotation of a
		// credential would become an outage.
		nats.IgnoreAuthErrorAbort(),
		// A network that drops packets is noticed after half a minute, not after four.
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(3),
		nats.NoCallbacksAfterClientClose(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			b.endConn()
			b.cfg.Logger.Warn("lost the connection to NATS", "error", err)
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { b.recordDialError(err) }),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			b.dialErrors.Over()
			b.beginConn()
			b.cfg.Logger.Warn("connected to NATS again", "server", nc.ConnectedAddr()) // not the URL, which may contain the token
			b.requestRecheck()
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if isAuthError(err) {
				b.recordDialError(hint(err)) // one for each try: each kind is logged once
				return
			}

			b.cfg.Logger.Warn("nats", "error", err)
		}),
	}

	if b.cfg.Credentials != "" {
		opts = append(opts, nats.UserCredentials(b.cfg.Credentials))
	}

	return append(opts, b.tlsOptions()...)
}

// errServerUnusable is a server without JetStream, or of an old version.
var errServerUnusable = errors.New("the NATS server")

// checkServer refuses a server that tes cannot work with.
func (b *Bus) checkServer(ctx context.Context) error {
	if v := b.nc.ConnectedServerVersion(); !atLeast(v, 2, 10) {
		return fmt.Errorf("%w is version %s: 2.10 or newer is needed", errServerUnusable, v)
	}

	ctx, done := b.requestContext(ctx)
	defer done()

	_, err := b.js.AccountInfo(ctx)
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) {
		return fmt.Errorf("%w does not offer JetStream to this account: start it with -js, or enable JetStream for the account: %w", errServerUnusable, err)
	}
	if err != nil {
		return fmt.Errorf("ask the NATS server for JetStream: %w", cause(ctx, err))
	}
	return nil
}

// callHooks calls the functions of OnReconnect in the background.
func (b *Bus) callHooks() {
	b.mu.Lock()
	hooks := b.hooks[:len(b.hooks):len(b.hooks)]
	b.mu.Unlock()
	if len(hooks) == 0 {
		return
	}

	b.background(func() {
		// A function of OnReconnect never runs twice at the same time.
		b.hooksMu.Lock()
		defer b.hooksMu.Unlock()

		for _, fn := range hooks {
			fn()
		}
	})
}

// background runs work in a goroutine that Close waits for. Slow work on the NATS client's callback
// goroutine would delay the callback of the next disconnect.
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

// beginConn makes the context of a new connection.
func (b *Bus) beginConn() {
	connCtx, cancel := context.WithCancelCause(b.ctx)
	b.mu.Lock()
	defer b.mu.Unlock()

	// Requests on the old connection end now, and not after their timeouts.
	if b.cancelConn != nil {
		b.cancelConn(ErrDisconnected)
	}

	b.connCtx, b.cancelConn = connCtx, cancel
}

// endConn ends the connection's context, and with it every request in flight.
func (b *Bus) endConn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cancelConn(ErrDisconnected)
	b.state.ensured = false
}

// dialer dials until the context of the bus ends, which ends with Open's.
type dialer struct{ ctx context.Context }

// Dial is called by the NATS client.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 2 * time.Second}).DialContext(d.ctx, network, address)
}

// isTemporary reports that a server does not answer, as opposed to one that refuses.
func isTemporary(err error) bool {
	if errors.Is(err, context.Canceled) || isCertificateError(err) {
		return false
	}

	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, nats.ErrNoServers) ||
		errors.Is(err, nats.ErrTimeout) || errors.Is(err, io.EOF)
}

// isAuthError reports that the server refused the credentials.
func isAuthError(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) ||
		errors.Is(err, nats.ErrAccountAuthExpired)
}

func hint(err error) error {
	if isAuthError(err) {
		return fmt.Errorf("the server refused our credentials (put user and password, or the token, into the URL, or name a credentials file): %w", err)
	}
	return err
}

// checkCredentials refuses a credentials file that cannot be read. The server checks the contents.
func (b *Bus) checkCredentials() error {
	if b.cfg.Credentials == "" {
		return nil
	}

	text, err := os.ReadFile(b.cfg.Credentials)
	if err == nil && len(bytes.TrimSpace(text)) == 0 {
		err = errors.New("the file is empty")
	}
	if err != nil {
		return fmt.Errorf("read the NATS credentials: %w", err)
	}
	return nil
}

// CheckURL returns an error for a list of servers that cannot be read. The error of the NATS client
// would quote the secret in the URL.
func CheckURL(urls string) error {
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

// withoutSecrets removes users and passwords from a list of URLs. A token is in the place of the
// user.
func withoutSecrets(urls string) string {
	parts := strings.Split(urls, ",")
	for i, p := range parts {
		u, err := url.Parse(strings.TrimSpace(p))
		// Unreadable: remove the text before the last @, where the secret may be.
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
