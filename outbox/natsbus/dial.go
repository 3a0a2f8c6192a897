package natsbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
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
func (c *connection) target() string {
	if c.srv != nil {
		return "the embedded NATS server"
	}
	return withoutSecrets(c.cfg.URL)
}

// connect waits for the first connection, or returns why there cannot be one.
func (c *connection) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()

	ticker := time.NewTicker(redialSoon)
	defer ticker.Stop()

	for first := true; ; first = false {
		err := c.dial()
		if err == nil {
			return nil
		}
		// A refusal does not end while Open waits: an operator must act.
		if !isTemporary(err) {
			return fmt.Errorf("connect to %s: %w", c.target(), hint(err))
		}

		// Log the wait once, not with each try.
		if first {
			c.cfg.Logger.Warn("waiting for the NATS server", "url", c.target(), "error", err)
		}

		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to %s: no NATS server answered: is it running, and is the URL right? %w", c.target(), err)
		case <-ticker.C:
		}
	}
}

// connectWithRetry tries to connect until it succeeds; false if the bus was closed before.
func (c *connection) connectWithRetry() bool {
	for tries := 1; c.ctx.Err() == nil; tries++ {
		err := c.dial()
		if err == nil {
			logRecovered(c.cfg.Logger, &c.dialErrors, "connected to NATS", "server", c.nc.ConnectedAddr())
			return true
		}

		if c.ctx.Err() != nil {
			return false
		}

		c.recordDialError(hint(err))
		if !wait(c.ctx, c.redialPause(tries, err)) {
			return false
		}
	}

	return false
}

func (c *connection) redialPause(tries int, err error) time.Duration {
	pause := redialSoon
	if tries > soonTries || err != nil && !isTemporary(err) {
		pause = c.cfg.intervals.redial
	}
	return pause + rand.N(pause/4) // or all processes would reconnect at once
}

// recordDialError records why there is no connection, and logs each kind of reason once: as an
// error if an operator must act, as a warning if the server just does not answer.
func (c *connection) recordDialError(err error) {
	if c.ctx.Err() != nil {
		return // Close was called
	}

	c.health.recordDial(err)
	// Each kind of error is logged once in an outage.
	if !c.dialErrors.Note(err) {
		return
	}
	if isTemporary(err) {
		c.cfg.Logger.Warn("waiting for the NATS server: events are kept in the database", "url", c.target(), "error", err)
		return
	}

	c.cfg.Logger.Error("the NATS server refuses the connection, tes tries again: events are kept in the database", "url", c.target(), "error", err)
}

// logRecovered logs the end of an outage, if there was one.
func logRecovered(log *slog.Logger, outage *once.Errors, message string, attrs ...any) {
	if n, lasted := outage.Over(); n > 0 {
		log.Warn(message, append(attrs, "failures", n, "after", lasted.Round(time.Millisecond))...)
	}
}

// dial tries each server once, and sets nc, js and connCtx. The caller says in its error what was
// tried.
func (c *connection) dial() error {
	opts := c.options()
	if c.srv != nil {
		opts = append(opts, nats.InProcessServer(c.srv.Server))
		// The token is needed inside the process too.
		if c.srv.token != "" {
			opts = append(opts, nats.Token(c.srv.token))
		}
	}

	nc, err := nats.Connect(c.cfg.URL, opts...)
	if err != nil {
		return err
	}

	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return fmt.Errorf("use JetStream: %w", err)
	}

	c.mu.Lock()
	c.nc, c.js = nc, js
	c.mu.Unlock()
	if c.ctx.Err() != nil { // teardown may have found no connection
		nc.Close()
		return context.Cause(c.ctx) // ErrClosed, or the cause of Open's context
	}

	c.begin()
	if !nc.IsConnected() { // DisconnectErrHandler was called before connCtx was made
		c.lose()
	}

	return nil
}

func (c *connection) options() []nats.Option {
	opts := []nats.Option{
		nats.Name("tes"),
		nats.Timeout(2 * time.Second),
		nats.SetCustomDialer(dialer{c.ctx}),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(func(tries int) time.Duration { return c.reconnectDelay(tries) }),
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
			c.lose()
			c.cfg.Logger.Warn("lost the connection to NATS", "error", err)
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { c.recordDialError(err) }),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			c.dialErrors.Over()
			c.begin()
			c.cfg.Logger.Warn("connected to NATS again", "server", nc.ConnectedAddr()) // not the URL, which may contain the token
			c.requestRecheck()
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if isAuthError(err) {
				c.recordDialError(hint(err)) // one for each try: each kind is logged once
				return
			}

			c.cfg.Logger.Warn("nats", "error", err)
		}),
	}

	if c.cfg.Credentials != "" {
		opts = append(opts, nats.UserCredentials(c.cfg.Credentials))
	}

	return append(opts, c.tlsOptions()...)
}

// errServerUnusable is a server without JetStream, or of an old version.
var errServerUnusable = errors.New("the NATS server")

// checkServer refuses a server that tes cannot work with.
func (c *connection) checkServer(ctx context.Context) error {
	if v := c.nc.ConnectedServerVersion(); !atLeast(v, 2, 10) {
		return fmt.Errorf("%w is version %s: 2.10 or newer is needed", errServerUnusable, v)
	}

	ctx, done := c.requestContext(ctx)
	defer done()

	_, err := c.js.AccountInfo(ctx)
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) {
		return fmt.Errorf("%w does not offer JetStream to this account: start it with -js, or enable JetStream for the account: %w", errServerUnusable, err)
	}
	if err != nil {
		return fmt.Errorf("ask the NATS server for JetStream: %w", cause(ctx, err))
	}
	return nil
}

// switchServer connects to another server of a cluster. The current one may be cut off from the
// others, or may not know yet which server leads a stream.
func (c *connection) switchServer() {
	// There is no other server to connect to.
	if c.srv != nil || len(c.nc.Servers()) < 2 {
		return
	}

	c.cfg.Logger.Warn("JetStream does not answer through this NATS server, tes connects to another one", "server", c.nc.ConnectedAddr())
	if err := c.nc.ForceReconnect(); err != nil {
		c.cfg.Logger.Warn("nats", "error", err)
	}
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
func checkCredentials(file string) error {
	if file == "" {
		return nil
	}

	text, err := os.ReadFile(file)
	if err == nil && len(bytes.TrimSpace(text)) == 0 {
		err = errors.New("the file is empty")
	}
	if err != nil {
		return fmt.Errorf("read the NATS credentials: %w", err)
	}
	return nil
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
