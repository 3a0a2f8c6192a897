package natsbus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/seed-3f7a0631/tes/outbox/once"
)

const (
	eventSubjects      = "task.>"
	deadLetterPrefix   = "deadletter."
	deadLetterSubjects = deadLetterPrefix + ">"
)

// inboundSubjects are the families of subjects that other services publish on.
var inboundSubjects = []string{"workflow.>", "integration.>", "system.>"}

// streams knows which streams there are, and ensures that they exist; a streamSetup creates and adjusts
// each of them.
type streams struct {
	cfg    Config
	conn   *connection
	health *health

	ready     chan struct{} // closed when the streams were ensured for the first time
	markReady func()        // closes ready
	batches   atomic.Bool   // the events stream takes atomic batches

	ensureMu sync.Mutex // serialises ensure
	hooksMu  sync.Mutex // serialises calls of hooks

	// Errors of an outage, each kind logged once: no streams, too few replicas.
	setupErrors, replicaErrors once.Errors

	// The rest is guarded by mu.
	mu       sync.Mutex
	hooks    []func()         // called when the streams are there again
	events   jetstream.Stream // when it was ensured last; nil: not yet, or it cannot be used
	consumed []string         // subjects that Consume was called for
}

func newStreams(cfg Config, conn *connection, h *health) *streams {
	s := &streams{cfg: cfg, conn: conn, health: h, ready: make(chan struct{})}
	s.markReady = sync.OnceFunc(func() { close(s.ready) })
	return s
}

// ensure creates the three streams, or adjusts their settings: at the start, after a
// reconnect, and when a stream is missing. An error of one stream does not keep the others from
// being created. recreated reports that the events stream is not the one that it was. The functions
// of OnReconnect are called then, and when the streams exist for the first time since a reconnect.
func (s *streams) ensure(ctx context.Context) (recreated bool, err error) {
	if err := s.conn.checkConnected(); err != nil {
		return false, err
	}

	s.ensureMu.Lock()
	defer s.ensureMu.Unlock()

	// Each part has a timeout of its own: a cluster that has just been formed may not answer one of
	// the requests.
	part := func(do func(context.Context) error) error {
		ctx, done := s.conn.requestContext(ctx)
		defer done()

		return do(ctx)
	}

	// Without JetStream no stream can be created.
	if err := part(s.conn.checkServer); err != nil {
		s.recordEnsured(err, nil, nil)
		return false, err
	}

	set := &streamSetup{cfg: s.cfg, conn: s.conn}
	err = part(func(ctx context.Context) (err error) {
		recreated, err = s.ensureEvents(ctx, set)
		return err
	})

	others := errors.Join(
		part(s.ensureReaders),
		part(func(ctx context.Context) error { return s.ensureInbound(ctx, set) }),
		part(func(ctx context.Context) error { return s.ensureDeadLetters(ctx, set) }),
	)
	s.recordEnsured(err, others, errors.Join(set.fewer...))
	return recreated, errors.Join(err, others)
}

// recordEnsured records the errors of the events stream, of the other streams and consumers, and of
// missing replicas. It logs each kind once, and once more when it is over.
func (s *streams) recordEnsured(events, others, fewer error) {
	s.health.recordSetup(events, others, fewer)

	log := s.cfg.Logger
	err := errors.Join(events, others)
	switch {
	case err == nil:
		logRecovered(log, &s.setupErrors, "the streams are ensured again")
	case s.conn.ctx.Err() == nil && !errors.Is(err, ErrDisconnected) && s.setupErrors.Note(err):
		log.Error("the streams could not be ensured, tes tries again", "error", err)
	}

	switch {
	case fewer == nil && err == nil:
		logRecovered(log, &s.replicaErrors, "the streams have all their replicas now", "replicas", s.cfg.Replicas)
	case fewer != nil && s.replicaErrors.Note(fewer):
		log.Error("a stream has fewer replicas than configured, tes tries again", "error", fewer)
	}
}

// ensureEvents creates or adjusts the events stream.
func (s *streams) ensureEvents(ctx context.Context, set *streamSetup) (recreated bool, err error) {
	events, err := set.ensure(ctx, s.cfg.Stream, "Task events, in order per task", []string{eventSubjects})
	if err != nil {
		// Publishing to an unusable stream could lose events. After other errors the last known
		// stream stays in use.
		if errors.Is(err, errStreamUnusable) {
			s.replace(nil)
		}
		return false, err
	}

	info := events.CachedInfo()
	before := s.replace(events)

	// From the answer, not from the request: a server that does not know a setting ignores it.
	s.batches.Store(info.Config.AllowAtomicPublish)
	first := s.health.recordEvents()
	s.markReady()

	recreated = before != nil && !before.CachedInfo().Created.Equal(info.Created)
	if recreated || first {
		s.callHooks()
	}

	return recreated, nil
}

// replace sets the events stream, and returns the one before.
func (s *streams) replace(events jetstream.Stream) (before jetstream.Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()

	before, s.events = s.events, events
	return before
}

// known returns the events stream when it was ensured last; nil if it was not ensured yet, or cannot
// be used. The connection may be lost meanwhile.
func (s *streams) known() jetstream.Stream {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.events
}

// current returns the events stream, or an error if it was not ensured yet.
func (s *streams) current() (jetstream.Stream, error) {
	lost, events := s.conn.lost(), s.known()
	switch {
	case errors.Is(lost, ErrClosed):
		return nil, lost
	case events != nil:
		return events, nil
	case lost != nil:
		return nil, lost
	}

	if err := s.health.snapshot().eventsErr; err != nil {
		return nil, fmt.Errorf("stream %s is not ready: %w", s.cfg.Stream, err)
	}
	return nil, fmt.Errorf("stream %s is not ready yet", s.cfg.Stream)
}

// readerName is the form of a reader's name: one token of a subject.
var readerName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// checkReaders refuses names that a consumer cannot have, and names of our own consumers.
func checkReaders(names []string) error {
	for _, name := range names {
		if !readerName.MatchString(name) || strings.HasPrefix(name, "tes-") {
			return fmt.Errorf("%q is not a valid name for the consumer of another service: letters, digits, - and _, at most 64, and not tes-…", name)
		}
	}
	return nil
}

// ensureReaders creates the missing consumers of other services, each from the oldest stored event.
func (s *streams) ensureReaders(ctx context.Context) error {
	for _, name := range s.cfg.Readers {
		_, err := s.conn.js.Consumer(ctx, s.cfg.Stream, name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			_, err = s.conn.js.CreateConsumer(ctx, s.cfg.Stream, jetstream.ConsumerConfig{
				Durable: name, Description: "Events, for another service",
				AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1,
			})
		}
		if err != nil {
			return fmt.Errorf("make consumer %s on stream %s: %w", name, s.cfg.Stream, cause(ctx, err))
		}
	}
	return nil
}

// ensureInbound creates the stream of messages from other services. Subjects that another team's
// stream captures are left out: that stream is consumed. Of each family without such a stream the
// whole family is captured; of the others only the consumed subjects that no stream captures.
func (s *streams) ensureInbound(ctx context.Context, set *streamSetup) error {
	s.mu.Lock()
	consumed := slices.Clone(s.consumed)
	s.mu.Unlock()

	var ours []string
	for _, subject := range append(slices.Clone(inboundSubjects), consumed...) {
		if slices.ContainsFunc(ours, func(family string) bool { return covers(family, subject) }) {
			continue
		}

		owners, err := capturing(ctx, s.conn.js, subject)
		if err != nil {
			return err
		}

		if !slices.ContainsFunc(owners, func(owner string) bool { return owner != s.cfg.Inbound }) {
			ours = append(ours, subject)
		}
	}

	// Other teams' streams capture every subject.
	if len(ours) == 0 {
		return nil
	}

	_, err := set.ensure(ctx, s.cfg.Inbound, "Messages from other services to the task service", ours)
	return err
}

// ensureDeadLetters creates the stream of dead letters, unless another stream captures them.
func (s *streams) ensureDeadLetters(ctx context.Context, set *streamSetup) error {
	owners, err := capturing(ctx, s.conn.js, deadLetterSubjects)
	if err != nil || len(owners) > 0 && !slices.Contains(owners, s.cfg.DeadLetters) {
		return err
	}

	_, err = set.ensure(ctx, s.cfg.DeadLetters, "Messages that could not be processed, with the reason in Tes-Reason", []string{deadLetterSubjects})
	return err
}

// streamOf returns the stream that captures subject. If there is none, ensure adds the subject to our
// inbound stream.
func (s *streams) streamOf(ctx context.Context, subject string) (string, error) {
	if err := s.conn.checkConnected(); err != nil {
		return "", err
	}

	ask, done := s.conn.requestContext(ctx)
	owners, err := capturing(ask, s.conn.js, subject)
	done()
	if err != nil || len(owners) > 0 {
		return first(owners), err
	}

	s.mu.Lock()
	if !slices.Contains(s.consumed, subject) {
		s.consumed = append(s.consumed, subject)
	}
	s.mu.Unlock()

	_, ensureErr := s.ensure(ctx) // may be the error of another stream
	ask, done = s.conn.requestContext(ctx)
	defer done()

	owners, err = capturing(ask, s.conn.js, subject)
	if err == nil && len(owners) == 0 {
		err = errors.Join(fmt.Errorf("no stream captures %s", subject), ensureErr)
	}
	return first(owners), err
}

// first returns the first name; empty if there is none.
func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// addHook implements Bus.OnReconnect.
func (s *streams) addHook(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hooks = append(s.hooks, fn)
}

// callHooks calls the functions of OnReconnect in the background.
func (s *streams) callHooks() {
	s.mu.Lock()
	hooks := s.hooks[:len(s.hooks):len(s.hooks)]
	s.mu.Unlock()

	if len(hooks) == 0 {
		return
	}

	s.conn.background(func() {
		// A function of OnReconnect never runs twice at the same time.
		s.hooksMu.Lock()
		defer s.hooksMu.Unlock()

		for _, fn := range hooks {
			fn()
		}
	})
}
