package natsbus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	eventSubjects      = "task.>"
	deadLetterPrefix   = "deadletter."
	deadLetterSubjects = deadLetterPrefix + ">"
)

// inboundSubjects are the families of subjects that other services publish on.
var inboundSubjects = []string{"workflow.>", "integration.>", "system.>"}

// otherDuplicates is the duplicate window of the streams other than the events stream.
const otherDuplicates = 15 * time.Minute

// maxReplicas is JetStream's limit.
const maxReplicas = 5

// Error codes of JetStream.
const (
	errSubjectsOverlap jetstream.ErrorCode = 10065 // another stream captures a subject
	errNoPeers         jetstream.ErrorCode = 10005 // the cluster has too few suitable servers
	errNoCluster       jetstream.ErrorCode = 10074 // a server without a cluster keeps no replicas
)

// errTooFewServers is the error of a stream with fewer replicas than configured.
var errTooFewServers = errors.New("the NATS cluster has too few servers with JetStream for the replicas")

// errStreamUnusable is the error of an existing stream that tes must not publish to.
var errStreamUnusable = errors.New("the stream cannot be used")

// ensureStreams creates the three streams, or adjusts their settings: at the start, after a
// reconnect, and when a stream is missing. An error of one stream does not keep the others from
// being created. recreated reports that the events stream is not the one that it was. The functions
// of OnReconnect are called then, and when the streams exist for the first time since a reconnect.
func (b *Bus) ensureStreams(ctx context.Context) (recreated bool, err error) {
	if err := b.checkConnected(); err != nil {
		return false, err
	}

	b.ensureMu.Lock()
	defer b.ensureMu.Unlock()

	// Each part has a timeout of its own: a cluster that has just been formed may not answer one of
	// the requests.
	part := func(do func(context.Context) error) error {
		ctx, done := b.requestContext(ctx)
		defer done()

		return do(ctx)
	}

	// Without JetStream no stream can be created.
	if err := part(b.checkServer); err != nil {
		b.recordEnsured(err, nil, nil)
		return false, err
	}

	var fewer []error // streams with fewer replicas than configured
	err = part(func(ctx context.Context) (err error) {
		recreated, err = b.ensureEvents(ctx, &fewer)
		return err
	})

	others := errors.Join(
		part(b.ensureReaders),
		part(func(ctx context.Context) error { return b.ensureInbound(ctx, &fewer) }),
		part(func(ctx context.Context) error { return b.ensureDeadLetters(ctx, &fewer) }),
	)
	b.recordEnsured(err, others, errors.Join(fewer...))
	return recreated, errors.Join(err, others)
}

// recordEnsured records the errors of the events stream, of the other streams and consumers, and of
// missing replicas. It logs each kind once, and once more when it is over.
func (b *Bus) recordEnsured(events, others, fewer error) {
	b.mu.Lock()
	s := &b.state
	s.eventsErr, s.otherErr, s.replicasErr, s.replicasAskedAt = events, others, fewer, time.Now()
	if events != nil {
		s.ensured = false // the next probe tries again
	}

	b.mu.Unlock()
	err := errors.Join(events, others)
	switch {
	case err == nil:
		b.logRecovered(&b.setupErrors, "the streams are as they should be again")
	case b.ctx.Err() == nil && !errors.Is(err, ErrDisconnected) && b.setupErrors.Note(err):
		b.cfg.Logger.Error("the streams are not as they should be; it is tried again", "error", err)
	}

	switch {
	case fewer == nil && err == nil:
		b.logRecovered(&b.replicaErrors, "the streams have all their replicas now", "replicas", b.cfg.Replicas)
	case fewer != nil && b.replicaErrors.Note(fewer):
		b.cfg.Logger.Error("a stream has fewer replicas than it should; it is tried again", "error", fewer)
	}
}

// ensureEvents creates or adjusts the events stream.
func (b *Bus) ensureEvents(ctx context.Context, fewer *[]error) (recreated bool, err error) {
	events, err := b.ensureStream(ctx, b.cfg.Stream, "Task events, in order per task", []string{eventSubjects}, fewer)
	b.mu.Lock()
	if err != nil {
		// Publishing to an unusable stream could lose events. After other errors the last known
		// stream stays in use.
		if errors.Is(err, errStreamUnusable) {
			b.events = nil
		}

		b.mu.Unlock()
		return false, err
	}

	recreated = b.events != nil && !b.events.CachedInfo().Created.Equal(events.CachedInfo().Created)
	callHooks := recreated || !b.state.ensured
	b.markReady()
	if !b.state.ensured {
		b.state.lastPublish.err = nil // a failure before the reconnect means nothing any more
	}

	b.events, b.state.ensured, b.state.probeErr = events, true, nil
	b.mu.Unlock()

	// From the answer, not from the request: a server that does not know a setting ignores it.
	b.batches.Store(events.CachedInfo().Config.AllowAtomicPublish)
	if callHooks {
		b.callHooks()
	}

	return recreated, nil
}

// stream returns the events stream, or an error if it was not ensured yet.
func (b *Bus) stream() (jetstream.Stream, error) {
	b.mu.Lock()
	defer b.mu.Unlock()

	switch {
	case b.ctx.Err() != nil:
		return nil, ErrClosed
	case b.events != nil:
		return b.events, nil
	case b.connCtx.Err() != nil:
		return nil, ErrDisconnected
	case b.state.eventsErr != nil:
		return nil, fmt.Errorf("stream %s is not ready: %w", b.cfg.Stream, b.state.eventsErr)
	}
	return nil, fmt.Errorf("stream %s is not ready yet", b.cfg.Stream)
}

// readerName is the form of a reader's name: one token of a subject.
var readerName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// checkReaders refuses names that a consumer cannot have, and names of our own consumers.
func checkReaders(names []string) error {
	for _, name := range names {
		if !readerName.MatchString(name) || strings.HasPrefix(name, "tes-") {
			return fmt.Errorf("%q is no name for a consumer of others: letters, digits, - and _, at most 64, and not tes-…", name)
		}
	}
	return nil
}

// ensureReaders creates the missing consumers of other services, each from the oldest stored event.
func (b *Bus) ensureReaders(ctx context.Context) error {
	for _, name := range b.cfg.Readers {
		_, err := b.js.Consumer(ctx, b.cfg.Stream, name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			_, err = b.js.CreateConsumer(ctx, b.cfg.Stream, jetstream.ConsumerConfig{
				Durable: name, Description: "Events, for whoever may ask this consumer for them",
				AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1,
			})
		}
		if err != nil {
			return fmt.Errorf("make consumer %s on stream %s: %w", name, b.cfg.Stream, cause(ctx, err))
		}
	}
	return nil
}

// ensureInbound creates the stream of messages from other services. Subjects that another team's
// stream captures are left out: that stream is consumed. Of each family without such a stream the
// whole family is captured; of the others only the consumed subjects that no stream captures.
func (b *Bus) ensureInbound(ctx context.Context, fewer *[]error) error {
	b.mu.Lock()
	consumed := slices.Clone(b.consumed)
	b.mu.Unlock()
	var ours []string
	for _, subject := range append(slices.Clone(inboundSubjects), consumed...) {
		if slices.ContainsFunc(ours, func(family string) bool { return covers(family, subject) }) {
			continue
		}

		owners, err := b.capturing(ctx, subject)
		if err != nil {
			return err
		}

		if !slices.ContainsFunc(owners, func(owner string) bool { return owner != b.cfg.Inbound }) {
			ours = append(ours, subject)
		}
	}

	// Other teams' streams capture every subject.
	if len(ours) == 0 {
		return nil
	}

	_, err := b.ensureStream(ctx, b.cfg.Inbound, "What other services tell the task service", ours, fewer)
	return err
}

// ensureDeadLetters creates the stream of dead letters, unless another stream captures them.
func (b *Bus) ensureDeadLetters(ctx context.Context, fewer *[]error) error {
	owners, err := b.capturing(ctx, deadLetterSubjects)
	if err != nil || len(owners) > 0 && !slices.Contains(owners, b.cfg.DeadLetters) {
		return err
	}

	_, err = b.ensureStream(ctx, b.cfg.DeadLetters, "Messages that could not be acted on, with the reason in Tes-Reason", []string{deadLetterSubjects}, fewer)
	return err
}

// ensureStream creates one stream with some subjects, or adjusts the settings of an existing one.
func (b *Bus) ensureStream(ctx context.Context, name, description string, subjects []string, fewer *[]error) (jetstream.Stream, error) {
	stream, err := b.js.Stream(ctx, name)
	if err == nil {
		err = checkLeader(stream.CachedInfo())
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = b.create(ctx, jetstream.StreamConfig{
			Name: name, Description: description, Subjects: subjects,
			Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Replicas: max(b.cfg.Replicas, 1),
			// A full stream refuses messages, and events wait in the outbox; the default would
			// drop the oldest events. Limits are set at the creation only: those of an existing
			// stream belong to its operator.
			MaxAge: b.cfg.MaxAge, Discard: jetstream.DiscardNew,
		})

		// Another process may have created the stream meanwhile.
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			stream, err = b.js.Stream(ctx, name)
		}
	}
	if hasCode(err, errSubjectsOverlap) {
		owners, _ := b.capturing(ctx, subjects[0])
		return nil, fmt.Errorf("make stream %s: stream %q has the subjects %v already: delete or rename it, or give it these subjects no more: %w", name, owners, subjects, err)
	}
	if err == nil {
		stream, err = b.adjust(ctx, stream, subjects)
	}
	if err == nil {
		stream, err = b.replicate(ctx, stream, fewer)
	}
	if err != nil {
		return nil, fmt.Errorf("make stream %s: %w", name, cause(ctx, err))
	}
	return stream, nil
}

// create creates a stream with all replicas, or with one while the cluster has too few servers.
func (b *Bus) create(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	cfg = b.withOurSettings(cfg)
	stream, err := b.js.CreateStream(ctx, cfg)
	// A stream with a single replica now is better than no stream: replicate adds the rest later.
	if cfg.Replicas > 1 && tooFewServers(err) {
		cfg.Replicas = 1
		stream, err = b.js.CreateStream(ctx, cfg)
	}
	return stream, err //nolint:wrapcheck // the caller names the stream
}

// replicate sets the configured replicas. While the cluster has too few servers the stream keeps its
// replicas and can be published to.
func (b *Bus) replicate(ctx context.Context, stream jetstream.Stream, fewer *[]error) (jetstream.Stream, error) {
	cfg := stream.CachedInfo().Config
	if b.cfg.Replicas == 0 || cfg.Replicas == b.cfg.Replicas {
		return stream, nil
	}

	has := cfg.Replicas
	cfg.Replicas = b.cfg.Replicas
	grown, err := b.js.UpdateStream(ctx, cfg)
	if tooFewServers(err) {
		*fewer = append(*fewer, fmt.Errorf("%w: stream %s has %d of the %d that were asked for", errTooFewServers, cfg.Name, has, b.cfg.Replicas))
		return stream, nil
	}
	if err != nil {
		return nil, fmt.Errorf("give it %d replicas: %w", b.cfg.Replicas, err)
	}

	b.cfg.Logger.Info("a stream has other replicas now", "stream", cfg.Name, "replicas", b.cfg.Replicas, "before", has)
	return grown, nil
}

func tooFewServers(err error) bool { return hasCode(err, errNoPeers) || hasCode(err, errNoCluster) }

// hasCode reports whether an error is an answer of JetStream with a code.
func hasCode(err error, code jetstream.ErrorCode) bool {
	var no *jetstream.APIError
	return errors.As(err, &no) && no.ErrorCode == code
}

// adjust changes the settings that tes depends on. Without a difference it sends no request, so that
// an account without the right to change streams can use an existing one.
func (b *Bus) adjust(ctx context.Context, stream jetstream.Stream, subjects []string) (jetstream.Stream, error) {
	have := stream.CachedInfo().Config
	var obstacle string
	switch {
	case have.Storage != jetstream.FileStorage:
		obstacle = "keeps its messages in memory"
	case have.Retention != jetstream.LimitsPolicy:
		obstacle = "drops messages once they are consumed (retention must be limits)"
	case have.PersistMode == jetstream.AsyncPersistMode:
		obstacle = "acknowledges before it writes (persist mode must be default)"
	case have.Mirror != nil:
		obstacle = "is a mirror"
	case have.Sealed:
		obstacle = "is sealed"
	}

	if obstacle != "" {
		return nil, fmt.Errorf("%w: stream %s %s, and that cannot be changed: delete it or configure another name", errStreamUnusable, have.Name, obstacle)
	}

	// From the existing settings, so that no request is sent without a difference.
	want := b.withOurSettings(have)
	want.Subjects = withSubjects(have.Subjects, subjects)
	if reflect.DeepEqual(have, want) {
		return stream, nil
	}

	updated, err := b.js.UpdateStream(ctx, want)
	if hasCode(err, errSubjectsOverlap) {
		return nil, fmt.Errorf("stream %s cannot have the subjects %v: another stream has some of them: %w", have.Name, want.Subjects, err)
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s exists with other settings and could not be brought to ours: %w", have.Name, err)
	}
	return updated, nil
}

// withOurSettings returns cfg with the settings that tes depends on. All others are left as they are,
// above all the operator's limits and the discard policy.
func (b *Bus) withOurSettings(cfg jetstream.StreamConfig) jetstream.StreamConfig {
	// The server keeps about 125 bytes in memory for each id of the window. The window of the many
	// events may be short, because the relay reads the stream's end before it publishes an event
	// again.
	if cfg.Duplicates = otherDuplicates; cfg.Name == b.cfg.Stream {
		cfg.Duplicates = b.cfg.Duplicates
	}
	if cfg.MaxAge > 0 { // JetStream refuses a window that is longer than the age limit
		cfg.Duplicates = min(cfg.Duplicates, cfg.MaxAge)
	}

	cfg.NoAck = false
	if cfg.Name == b.cfg.Stream && atLeast(b.nc.ConnectedServerVersion(), 2, 12) {
		cfg.AllowAtomicPublish = true
	}

	return cfg
}

// withSubjects adds subjects to those of a stream. A subject that another one covers is left out,
// because JetStream refuses overlapping subjects.
func withSubjects(have, add []string) []string {
	covered := func(subject string, by []string) bool {
		return slices.ContainsFunc(by, func(other string) bool { return other != subject && covers(other, subject) })
	}

	var all []string
	for _, subject := range slices.Concat(have, add) {
		if !slices.Contains(all, subject) && !covered(subject, have) && !covered(subject, add) {
			all = append(all, subject)
		}
	}
	return all
}

// covers reports whether a pattern matches every subject that another pattern matches.
func covers(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, token := range p {
		switch {
		case token == ">":
			return len(s) > i
		case i >= len(s) || s[i] == ">":
			return false
		case token != "*" && token != s[i]:
			return false
		}
	}
	return len(p) == len(s)
}

// capturing returns the names of the streams that capture some of the subjects of a pattern.
func (b *Bus) capturing(ctx context.Context, subject string) ([]string, error) {
	list := b.js.StreamNames(ctx, jetstream.WithStreamListSubject(subject))
	var names []string
	for name := range list.Name() {
		names = append(names, name)
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("look for the stream of %s: %w", subject, cause(ctx, err))
	}
	return names, nil
}

// streamOf returns the stream that captures subject. If there is none, ensureStreams adds the subject
// to our inbound stream.
func (b *Bus) streamOf(ctx context.Context, subject string) (string, error) {
	if err := b.checkConnected(); err != nil {
		return "", err
	}

	ask, done := b.requestContext(ctx)
	owners, err := b.capturing(ask, subject)
	done()
	if err != nil || len(owners) > 0 {
		return first(owners), err
	}

	b.mu.Lock()
	if !slices.Contains(b.consumed, subject) {
		b.consumed = append(b.consumed, subject)
	}

	b.mu.Unlock()
	_, ensureErr := b.ensureStreams(ctx) // may be the error of another stream
	ask, done = b.requestContext(ctx)
	defer done()

	owners, err = b.capturing(ask, subject)
	if err == nil && len(owners) == 0 {
		err = errors.Join(fmt.Errorf("no stream captures %s", subject), ensureErr)
	}
	return first(owners), err
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}
