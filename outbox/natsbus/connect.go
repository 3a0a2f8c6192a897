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

// dialWait is how long Open goes on trying a server that does not answer.
const dialWait = 10 * time.Second

// redialSoon is the pause between two tries to connect at first. Later it is rhythm.redial:
// after soonTries, which are a dozen seconds in which a restarted server is back; and where
// a server says no, for it notes each try in its log.
const (
	redialSoon = 250 * time.Millisecond
	soonTries  = 48
)

// target names the server for people.
func (b *Bus) target() string {
	if b.srv != nil {
		return "the embedded NATS server"
	}
	return withoutSecrets(b.cfg.URL)
}

// connect waits for the first connection, or says why there cannot be one.
func (b *Bus) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	again := time.NewTicker(redialSoon)
	defer again.Stop()
	for first := true; ; first = false {
		err := b.dial()
		if err == nil {
			return nil
		}
		if !mayHeal(err) {
			return fmt.Errorf("connect to %s: %w", b.target(), hint(err))
		}
		if first {
			b.cfg.Logger.Warn("waiting for the NATS server", "url", b.target(), "error", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("connect to %s: no NATS server answered: is it running, and is the URL right? %w", b.target(), err)
		case <-again.C:
		}
	}
}

// connectLater is connect for Start: it tries until the bus is closed, which is false.
func (b *Bus) connectLater() bool {
	for tries := 1; b.ctx.Err() == nil; tries++ {
		err := b.dial()
		if err == nil {
			b.over(&b.dialling, "connected to NATS", "server", b.nc.ConnectedAddr())
			return true
		}
		if b.ctx.Err() != nil {
			return false
		}
		b.missed(hint(err))
		if !wait(b.ctx, b.redialAfter(tries, err)) {
			return false
		}
	}
	return false
}

func (b *Bus) redialAfter(tries int, err error) time.Duration {
	pause := redialSoon
	if tries > soonTries || err != nil && !mayHeal(err) {
		pause = b.cfg.rhythm.redial
	}
	return pause + rand.N(pause/4) // or all processes come back at once
}

// missed notes why there is no connection, and tells it once. A refusal is an error that
// somebody has to mend; a server that does not answer may be back without anybody's doing.
func (b *Bus) missed(err error) {
	if b.ctx.Err() != nil {
		return // we are closing
	}
	b.mu.Lock()
	b.state.away = err
	b.mu.Unlock()
	if !b.dialling.Note(err) {
		return
	}
	if mayHeal(err) {
		b.cfg.Logger.Warn("waiting for the NATS server: events are kept in the database", "url", b.target(), "error", err)
		return
	}
	b.cfg.Logger.Error("the NATS server says no; it is asked again: events are kept in the database", "url", b.target(), "error", err)
}

// over says once that a trouble has ended that was told of.
func (b *Bus) over(of *once.Errors, what string, attrs ...any) {
	if n, lasted := of.Over(); n > 0 {
		b.cfg.Logger.Warn(what, append(attrs, "failures", n, "after", lasted.Round(time.Millisecond))...)
	}
}

// dial tries each server once, and sets nc, js and the link.
func (b *Bus) dial() error {
	opts := b.options()
	if b.srv != nil {
		opts = append(opts, nats.InProcessServer(b.srv.Server))
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
	if b.ctx.Err() != nil { // shut may have looked already
		nc.Close()
		return context.Cause(b.ctx) //nolint:wrapcheck // ErrClosed, or why Open's caller gave up
	}
	b.newLink()
	if !nc.IsConnected() { // the news of it came before there was a link to end
		b.dropLink()
	}
	return nil
}

func (b *Bus) options() []nats.Option {
	opts := []nats.Option{
		nats.Name("tes"),
		nats.Timeout(2 * time.Second),
		nats.SetCustomDialer(dialer{b.ctx}),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(func(tries int) time.Duration { return b.betweenTries(tries) }),
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
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { b.missed(err) }),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			b.dialling.Over()
			b.newLink()
			b.cfg.Logger.Warn("connected to NATS again", "server", nc.ConnectedAddr()) // not the URL: it may hold the token
			b.wonder()
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if refuses(err) {
				b.missed(hint(err)) // which comes with each try
				return
			}
			b.cfg.Logger.Warn("nats", "error", err)
		}),
	}
	if b.cfg.Credentials != "" {
		opts = append(opts, nats.UserCredentials(b.cfg.Credentials))
	}
	return append(opts, b.secure()...)
}

// errUnservable is a server that lacks what we need.
var errUnservable = errors.New("the NATS server")

// checkServer refuses what we could not work with.
func (b *Bus) checkServer(ctx context.Context) error {
	if v := b.nc.ConnectedServerVersion(); !atLeast(v, 2, 10) {
		return fmt.Errorf("%w is version %s: 2.10 or newer is needed", errUnservable, v)
	}
	ctx, done := b.exchange(ctx)
	defer done()
	_, err := b.js.AccountInfo(ctx)
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) {
		return fmt.Errorf("%w does not offer JetStream to this account: start it with -js, or enable JetStream for the account: %w", errUnservable, err)
	}
	if err != nil {
		return fmt.Errorf("ask the NATS server for JetStream: %w", why(ctx, err))
	}
	return nil
}

// callHooks calls those that stand at this moment.
func (b *Bus) callHooks() {
	b.mu.Lock()
	hooks := b.hooks[:len(b.hooks):len(b.hooks)]
	b.mu.Unlock()
	if len(hooks) == 0 {
		return
	}
	b.background(func() {
		b.calling.Lock()
		defer b.calling.Unlock()
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
	b.state.sure = false
}

// dialer gives up when the bus does, and so when Open's context does.
type dialer struct{ ctx context.Context }

// Dial is what the NATS client calls.
func (d dialer) Dial(network, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 2 * time.Second}).DialContext(d.ctx, network, address)
}

// mayHeal tells a server that is not there yet from one that says no.
func mayHeal(err error) bool {
	if errors.Is(err, context.Canceled) || untrusted(err) {
		return false
	}
	var ne net.Error
	return errors.As(err, &ne) || errors.Is(err, nats.ErrNoServers) ||
		errors.Is(err, nats.ErrTimeout) || errors.Is(err, io.EOF)
}

// refuses says that the server does not take us for who we are.
func refuses(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) ||
		errors.Is(err, nats.ErrAccountAuthExpired)
}

func hint(err error) error {
	if refuses(err) {
		return fmt.Errorf("the server refused our credentials (put user and password, or the token, into the URL, or name a credentials file): %w", err)
	}
	return err
}

// checkCredentials refuses a file that cannot be read. What stands in it the server judges.
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

// CheckURL says what is wrong with a list of servers. The NATS client's own words would
// show the secret in it.
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
