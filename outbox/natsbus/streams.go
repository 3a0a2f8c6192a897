package natsbus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	eventSubjects      = "task.>"
	deadLetterPrefix   = "deadletter."
	deadLetterSubjects = deadLetterPrefix + ">"
)

var inboundSubjects = []string{"workflow.>", "integration.>", "system.>"}

// otherDuplicates is the duplicate window of the streams that do not hold events.
const otherDuplicates = 15 * time.Minute

// errSubjectsOverlap is JetStream's code for a subject that another stream has.
const errSubjectsOverlap jetstream.ErrorCode = 10065

// ensureStreams makes our three streams, or brings them to our settings. It
// reports whether the events stream is another one than it was, and has then
// called the hooks.
func (b *Bus) ensureStreams(ctx context.Context) (another bool, err error) {
	b.setup.Lock()
	defer b.setup.Unlock()
	ctx, done := b.exchange(ctx)
	defer done()

	events, err := b.ensureStream(ctx, b.cfg.Stream, "Task events, in order per task", []string{eventSubjects})
	if err != nil {
		return false, err
	}
	b.mu.Lock()
	another = b.events != nil && !b.events.CachedInfo().Created.Equal(events.CachedInfo().Created)
	b.events = events
	b.mu.Unlock()
	if another {
		b.callHooks()
	}
	if err := b.ensureReaders(ctx, events); err != nil {
		return another, err
	}
	// What the server answers counts: one that does not know a setting drops it.
	b.batches.Store(events.CachedInfo().Config.AllowAtomicPublish)

	if err := b.ensureShared(ctx, b.cfg.Inbound, "What other services tell the task service", inboundSubjects); err != nil {
		return another, err
	}
	return another, b.ensureShared(ctx, b.cfg.DeadLetters, "Messages that could not be acted on, with the reason in Tes-Reason", []string{deadLetterSubjects})
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
func (b *Bus) ensureReaders(ctx context.Context, events jetstream.Stream) error {
	for _, name := range b.cfg.Readers {
		_, err := events.Consumer(ctx, name)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			_, err = events.CreateConsumer(ctx, jetstream.ConsumerConfig{
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

// ensureShared makes a stream of those subjects that no other stream has. The
// neighbours' subjects are the neighbours': where they keep a stream, theirs is
// the one to consume.
func (b *Bus) ensureShared(ctx context.Context, name, description string, subjects []string) error {
	var free []string
	for _, subject := range subjects {
		owners, err := b.owners(ctx, subject)
		if err != nil {
			return err
		}
		if len(owners) == 0 || slices.Contains(owners, name) {
			free = append(free, subject)
		}
	}
	if len(free) == 0 {
		return nil
	}
	_, err := b.ensureStream(ctx, name, description, free)
	return err
}

func (b *Bus) ensureStream(ctx context.Context, name, description string, subjects []string) (jetstream.Stream, error) {
	stream, err := b.js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = b.js.CreateStream(ctx, b.wanted(jetstream.StreamConfig{
			Name: name, Description: description, Subjects: subjects,
			Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Replicas: b.cfg.Replicas,
		}))
		// Another process of ours may have been faster.
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			stream, err = b.js.Stream(ctx, name)
		}
	}
	var refused *jetstream.APIError
	if errors.As(err, &refused) && refused.ErrorCode == errSubjectsOverlap {
		owners, _ := b.owners(ctx, subjects[0])
		return nil, fmt.Errorf("make stream %s: stream %q has the subjects %v already: delete or rename it, or give it these subjects no more: %w", name, owners, subjects, err)
	}
	if err != nil {
		return nil, fmt.Errorf("make stream %s: %w", name, why(ctx, err))
	}
	return b.adjust(ctx, stream, subjects)
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
		return nil, fmt.Errorf("stream %s %s, and that cannot be changed: delete it or configure another name", have.Name, obstacle)
	}
	want := b.wanted(have)
	for _, subject := range subjects {
		if !slices.Contains(want.Subjects, subject) {
			want.Subjects = append(slices.Clone(want.Subjects), subject)
		}
	}
	if reflect.DeepEqual(have, want) {
		return stream, nil
	}
	updated, err := b.js.UpdateStream(ctx, want)
	if err != nil {
		return nil, fmt.Errorf("stream %s exists with other settings and could not be brought to ours: %w", have.Name, why(ctx, err))
	}
	return updated, nil
}

// wanted puts our settings over cfg and leaves the rest, such as an operator's
// limits and replicas, as they are.
func (b *Bus) wanted(cfg jetstream.StreamConfig) jetstream.StreamConfig {
	cfg.MaxAge = b.cfg.MaxAge
	// The server keeps each id of the window in memory, some 125 bytes. Events are many, and
	// the relay reads the stream's end before it tells one again; the others are few.
	if cfg.Duplicates = min(b.cfg.MaxAge, otherDuplicates); cfg.Name == b.cfg.Stream {
		cfg.Duplicates = b.cfg.Duplicates
	}
	// A full stream pushes back into the outbox; the default would drop the
	// oldest events unseen.
	cfg.Discard = jetstream.DiscardNew
	cfg.NoAck = false
	if cfg.Name == b.cfg.Stream && atLeast(b.nc.ConnectedServerVersion(), 2, 12) {
		cfg.AllowAtomicPublish = true
	}
	return cfg
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

// streamOf finds the stream to consume subject from, and adds the subject to
// ours if nobody captures it yet.
func (b *Bus) streamOf(ctx context.Context, subject string) (string, error) {
	ctx, done := b.exchange(ctx)
	defer done()
	owners, err := b.owners(ctx, subject)
	if err != nil {
		return "", err
	}
	if len(owners) > 0 {
		return owners[0], nil
	}
	b.setup.Lock()
	defer b.setup.Unlock()
	_, err = b.ensureStream(ctx, b.cfg.Inbound, "What other services tell the task service", []string{subject})
	return b.cfg.Inbound, err
}

// Tail is the sequence of the last event stored, and when the stream was made:
// another time means another stream, whose sequences start again.
func (b *Bus) Tail(ctx context.Context) (last uint64, created time.Time, err error) {
	ctx, done := b.exchange(ctx)
	defer done()
	stream, err := b.js.Stream(ctx, b.cfg.Stream)
	if err != nil {
		return 0, time.Time{}, fmt.Errorf("read the tail of stream %s: %w", b.cfg.Stream, why(ctx, err))
	}
	info := stream.CachedInfo()
	b.arm(info)
	return info.State.LastSeq, info.Created, nil
}

// Stored is the id of the event at sequence seq, or "" if there is none, be it
// that it never was, was lost, or is too old.
func (b *Bus) Stored(ctx context.Context, seq uint64) (id string, err error) {
	if seq == 0 {
		return "", nil // to the server 0 means "unset" and is an error
	}
	ctx, done := b.exchange(ctx)
	defer done()
	b.mu.Lock()
	events := b.events
	b.mu.Unlock()
	msg, err := events.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read event %d of stream %s: %w", seq, b.cfg.Stream, why(ctx, err))
	}
	return eventID(msg.Header.Get(jetstream.MsgIDHeader)), nil
}

// idReaders is how many messages are asked for at a time when ids are read.
const idReaders = 16

// IDs are the ids of the events from one sequence to another, both included, with the
// sequence of each. A place whose event is gone, or never was, has none.
func (b *Bus) IDs(ctx context.Context, from, to uint64) (map[string]uint64, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ids, places := map[string]uint64{}, make(chan uint64)
	var mu sync.Mutex
	var readers sync.WaitGroup
	for range min(idReaders, to-min(from, to)+1) {
		readers.Go(func() {
			for seq := range places {
				id, err := b.Stored(ctx, seq)
				if err != nil {
					stop(err)
					return
				}
				if id == "" {
					continue
				}
				mu.Lock()
				ids[id] = seq
				mu.Unlock()
			}
		})
	}
	for seq := from; seq <= to && ctx.Err() == nil; seq++ {
		select {
		case places <- seq:
		case <-ctx.Done():
		}
	}
	close(places)
	readers.Wait()
	return ids, context.Cause(ctx)
}
