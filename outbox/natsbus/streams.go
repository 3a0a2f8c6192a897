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

// inboundSubjects are the families of subjects that others speak on.
var inboundSubjects = []string{"workflow.>", "integration.>", "system.>"}

// otherDuplicates is the duplicate window of the streams that do not hold events.
const otherDuplicates = 15 * time.Minute

// mostReplicas is JetStream's limit.
const mostReplicas = 5

// What JetStream says, by its codes.
const (
	errSubjectsOverlap jetstream.ErrorCode = 10065 // another stream has such a subject
	errNoPeers         jetstream.ErrorCode = 10005 // the cluster has too few servers that are fit
	errNoCluster       jetstream.ErrorCode = 10074 // a server alone keeps no replicas
)

// errTooFewServers is a stream with fewer replicas than it should have.
var errTooFewServers = errors.New("the NATS cluster has too few servers with JetStream for the replicas")

// errUnfit is a stream that is there and that we must not publish to.
var errUnfit = errors.New("the stream cannot be used")

// ensureStreams makes our three streams, or brings them to our settings: at the start, after
// a connection, and when one is missing. What is wrong with one does not keep the others
// from being made. It reports whether the events stream is another one than it was. It calls
// the hooks if so, and when the streams are there for the first time since a connection.
func (b *Bus) ensureStreams(ctx context.Context) (another bool, err error) {
	if err := b.joined(); err != nil {
		return false, err
	}
	b.setup.Lock()
	defer b.setup.Unlock()
	// Each part has a time of its own: a cluster that has just come together may leave one
	// question without an answer.
	part := func(do func(context.Context) error) error {
		ctx, done := b.exchange(ctx)
		defer done()
		return do(ctx)
	}

	if err := part(b.checkServer); err != nil {
		b.ensured(err, nil, nil)
		return false, err
	}
	var fewer []error // streams with fewer replicas than they should have
	err = part(func(ctx context.Context) (err error) {
		another, err = b.ensureEvents(ctx, &fewer)
		return err
	})
	beside := errors.Join(
		part(b.ensureReaders),
		part(func(ctx context.Context) error { return b.ensureInbound(ctx, &fewer) }),
		part(func(ctx context.Context) error { return b.ensureDeadLetters(ctx, &fewer) }),
	)
	b.ensured(err, beside, errors.Join(fewer...))
	return another, errors.Join(err, beside)
}

// ensured notes what is wrong with the events stream, what beside, and where replicas are
// missing. It tells of each once, and once when it is over.
func (b *Bus) ensured(making, beside, fewer error) {
	b.mu.Lock()
	s := &b.state
	s.making, s.beside, s.fewer, s.grownAt = making, beside, fewer, time.Now()
	if making != nil {
		s.sure = false // whoever found it, the next look tries again
	}
	b.mu.Unlock()
	err := errors.Join(making, beside)
	switch {
	case err == nil:
		b.over(&b.making, "the streams are as they should be again")
	case b.ctx.Err() == nil && !errors.Is(err, ErrDisconnected) && b.making.Note(err):
		b.cfg.Logger.Error("the streams are not as they should be; it is tried again", "error", err)
	}
	switch {
	case fewer == nil && err == nil:
		b.over(&b.growing, "the streams have all their replicas now", "replicas", b.cfg.Replicas)
	case fewer != nil && b.growing.Note(fewer):
		b.cfg.Logger.Error("a stream has fewer replicas than it should; it is tried again", "error", fewer)
	}
}

// ensureEvents makes sure of the events stream.
func (b *Bus) ensureEvents(ctx context.Context, fewer *[]error) (another bool, err error) {
	events, err := b.ensureStream(ctx, b.cfg.Stream, "Task events, in order per task", []string{eventSubjects}, fewer)
	b.mu.Lock()
	if err != nil {
		if errors.Is(err, errUnfit) {
			b.events = nil
		}
		b.mu.Unlock()
		return false, err
	}
	another = b.events != nil && !b.events.CachedInfo().Created.Equal(events.CachedInfo().Created)
	tell := another || !b.state.sure
	b.begin()
	if !b.state.sure {
		b.state.publication.err = nil // what failed before says nothing any more
	}
	b.events, b.state.sure, b.state.look = events, true, nil
	b.mu.Unlock()

	// What the server answers counts: one that does not know a setting drops it.
	b.batches.Store(events.CachedInfo().Config.AllowAtomicPublish)
	if tell {
		b.callHooks()
	}
	return another, nil
}

// stream is the events stream, once it was made sure of.
func (b *Bus) stream() (jetstream.Stream, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ctx.Err() != nil:
		return nil, ErrClosed
	case b.events != nil:
		return b.events, nil
	case b.link.Err() != nil:
		return nil, ErrDisconnected
	case b.state.making != nil:
		return nil, fmt.Errorf("stream %s is not ready: %w", b.cfg.Stream, b.state.making)
	}
	return nil, fmt.Errorf("stream %s is not ready yet", b.cfg.Stream)
}

// readerName is what a reader's consumer may be called: one word of a subject.
var readerName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// checkReaders refuses names that no consumer can have, and those of our own.
func checkReaders(names []string) error {
	for _, name := range names {
		if !readerName.MatchString(name) || strings.HasPrefix(name, "tes-") {
			return fmt.Errorf("%q is no name for a consumer of others: letters, digits, - and _, at most 64, and not tes-…", name)
		}
	}
	return nil
}

// ensureReaders makes the consumers of others that are not there, each from the oldest
// event that is kept.
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
			return fmt.Errorf("make consumer %s on stream %s: %w", name, b.cfg.Stream, why(ctx, err))
		}
	}
	return nil
}

// ensureInbound makes a stream of what others tell us, as far as no other stream has it.
// The neighbours' subjects are the neighbours': where they keep a stream, theirs is the one
// to consume. Of a family that nobody else has any part of, all is ours; of another, only
// what is consumed here and captured nowhere.
func (b *Bus) ensureInbound(ctx context.Context, fewer *[]error) error {
	b.mu.Lock()
	heard := slices.Clone(b.heard)
	b.mu.Unlock()
	var ours []string
	for _, subject := range append(slices.Clone(inboundSubjects), heard...) {
		if slices.ContainsFunc(ours, func(family string) bool { return covers(family, subject) }) {
			continue
		}
		owners, err := b.owners(ctx, subject)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(owners, func(owner string) bool { return owner != b.cfg.Inbound }) {
			ours = append(ours, subject)
		}
	}
	if len(ours) == 0 {
		return nil
	}
	_, err := b.ensureStream(ctx, b.cfg.Inbound, "What other services tell the task service", ours, fewer)
	return err
}

// ensureDeadLetters makes the stream of dead letters, unless another one has them.
func (b *Bus) ensureDeadLetters(ctx context.Context, fewer *[]error) error {
	owners, err := b.owners(ctx, deadLetterSubjects)
	if err != nil || len(owners) > 0 && !slices.Contains(owners, b.cfg.DeadLetters) {
		return err
	}
	_, err = b.ensureStream(ctx, b.cfg.DeadLetters, "Messages that could not be acted on, with the reason in Tes-Reason", []string{deadLetterSubjects}, fewer)
	return err
}

// ensureStream makes one stream with those subjects, or brings it to our settings.
func (b *Bus) ensureStream(ctx context.Context, name, description string, subjects []string, fewer *[]error) (jetstream.Stream, error) {
	stream, err := b.js.Stream(ctx, name)
	if err == nil {
		err = led(stream.CachedInfo())
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = b.create(ctx, jetstream.StreamConfig{
			Name: name, Description: description, Subjects: subjects,
			Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Replicas: max(b.cfg.Replicas, 1),
			// A full stream pushes back into the outbox; the default would drop the oldest
			// events unseen. These are for a stream that is made here: the limits of one
			// that is there are its operator's, all of them.
			MaxAge: b.cfg.MaxAge, Discard: jetstream.DiscardNew,
		})
		// Another process of ours may have been faster.
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			stream, err = b.js.Stream(ctx, name)
		}
	}
	if said(err, errSubjectsOverlap) {
		owners, _ := b.owners(ctx, subjects[0])
		return nil, fmt.Errorf("make stream %s: stream %q has the subjects %v already: delete or rename it, or give it these subjects no more: %w", name, owners, subjects, err)
	}
	if err == nil {
		stream, err = b.adjust(ctx, stream, subjects)
	}
	if err == nil {
		stream, err = b.replicate(ctx, stream, fewer)
	}
	if err != nil {
		return nil, fmt.Errorf("make stream %s: %w", name, why(ctx, err))
	}
	return stream, nil
}

// create makes a stream with all its replicas, or, while the cluster has too few servers
// for them, with one.
func (b *Bus) create(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	cfg = b.wanted(cfg)
	stream, err := b.js.CreateStream(ctx, cfg)
	if cfg.Replicas > 1 && tooFewServers(err) {
		cfg.Replicas = 1
		stream, err = b.js.CreateStream(ctx, cfg)
	}
	return stream, err //nolint:wrapcheck // the caller names the stream
}

// replicate gives a stream the replicas that were asked for. Where the cluster has too few
// servers the stream stays as it is, and is good enough to publish to.
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

func tooFewServers(err error) bool { return said(err, errNoPeers) || said(err, errNoCluster) }

// said tells whether an error is JetStream's answer with that code.
func said(err error, code jetstream.ErrorCode) bool {
	var no *jetstream.APIError
	return errors.As(err, &no) && no.ErrorCode == code
}

// adjust changes only what we care about and is silent when nothing differs, so
// that an account without the right to change streams can use a ready one.
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
		return nil, fmt.Errorf("%w: stream %s %s, and that cannot be changed: delete it or configure another name", errUnfit, have.Name, obstacle)
	}
	want := b.wanted(have)
	want.Subjects = withSubjects(have.Subjects, subjects)
	if reflect.DeepEqual(have, want) {
		return stream, nil
	}
	updated, err := b.js.UpdateStream(ctx, want)
	if said(err, errSubjectsOverlap) {
		return nil, fmt.Errorf("stream %s cannot have the subjects %v: another stream has some of them: %w", have.Name, want.Subjects, err)
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s exists with other settings and could not be brought to ours: %w", have.Name, err)
	}
	return updated, nil
}

// wanted puts our settings over cfg and leaves the rest as it is: above all an operator's
// limits, and what is to happen at them.
func (b *Bus) wanted(cfg jetstream.StreamConfig) jetstream.StreamConfig {
	// The server keeps each id of the window in memory, some 125 bytes. Events are many, and
	// the relay reads the stream's end before it tells one again; the others are few.
	if cfg.Duplicates = otherDuplicates; cfg.Name == b.cfg.Stream {
		cfg.Duplicates = b.cfg.Duplicates
	}
	if cfg.MaxAge > 0 { // JetStream refuses a window longer than the messages live
		cfg.Duplicates = min(cfg.Duplicates, cfg.MaxAge)
	}
	cfg.NoAck = false
	if cfg.Name == b.cfg.Stream && atLeast(b.nc.ConnectedServerVersion(), 2, 12) {
		cfg.AllowAtomicPublish = true
	}
	return cfg
}

// withSubjects adds subjects to those that a stream has. One that another of them covers is
// left out: a stream whose subjects overlap is refused.
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

// covers says whether all that a subject captures a pattern captures too.
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

// owners are the streams that capture anything of subject.
func (b *Bus) owners(ctx context.Context, subject string) ([]string, error) {
	list := b.js.StreamNames(ctx, jetstream.WithStreamListSubject(subject))
	var names []string
	for name := range list.Name() {
		names = append(names, name)
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("look for the stream of %s: %w", subject, why(ctx, err))
	}
	return names, nil
}

// streamOf finds the stream to consume subject from. If nobody captures it, the streams
// are made sure of: ours has it then.
func (b *Bus) streamOf(ctx context.Context, subject string) (string, error) {
	if err := b.joined(); err != nil {
		return "", err
	}
	ask, done := b.exchange(ctx)
	owners, err := b.owners(ask, subject)
	done()
	if err != nil || len(owners) > 0 {
		return first(owners), err
	}

	b.mu.Lock()
	if !slices.Contains(b.heard, subject) {
		b.heard = append(b.heard, subject)
	}
	b.mu.Unlock()
	_, refused := b.ensureStreams(ctx) // of all streams: this one may be there all the same
	ask, done = b.exchange(ctx)
	defer done()
	owners, err = b.owners(ask, subject)
	if err == nil && len(owners) == 0 {
		err = errors.Join(fmt.Errorf("no stream captures %s", subject), refused)
	}
	return first(owners), err
}

func first(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}
