package natsbus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

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

// streamSetup creates and adjusts streams, one after the other. It is for one call of streams.ensure.
type streamSetup struct {
	cfg   Config
	conn  *connection
	fewer []error // one for each stream with fewer replicas than configured
}

// ensure creates one stream with some subjects, or adjusts the settings of an existing one.
func (s *streamSetup) ensure(ctx context.Context, name, description string, subjects []string) (jetstream.Stream, error) {
	stream, err := s.conn.js.Stream(ctx, name)
	if err == nil {
		err = checkLeader(stream.CachedInfo())
	}
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = s.create(ctx, jetstream.StreamConfig{
			Name: name, Description: description, Subjects: subjects,
			Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Replicas: max(s.cfg.Replicas, 1),
			// A full stream refuses messages, and events wait in the outbox; the default would
			// drop the oldest events. Limits are set at the creation only: those of an existing
			// stream belong to its operator.
			MaxAge: s.cfg.MaxAge, Discard: jetstream.DiscardNew,
		})

		// Another process may have created the stream meanwhile.
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			stream, err = s.conn.js.Stream(ctx, name)
		}
	}
	if hasCode(err, errSubjectsOverlap) {
		owners, _ := capturing(ctx, s.conn.js, subjects[0])
		return nil, fmt.Errorf("make stream %s: stream %q has the subjects %v already: delete or rename it, or remove these subjects from it: %w", name, owners, subjects, err)
	}
	if err == nil {
		stream, err = s.adjust(ctx, stream, subjects)
	}
	if err == nil {
		stream, err = s.replicate(ctx, stream)
	}
	if err != nil {
		return nil, fmt.Errorf("make stream %s: %w", name, cause(ctx, err))
	}
	return stream, nil
}

// create creates a stream with all replicas, or with one while the cluster has too few servers.
func (s *streamSetup) create(ctx context.Context, cfg jetstream.StreamConfig) (jetstream.Stream, error) {
	cfg = s.withOurSettings(cfg)
	stream, err := s.conn.js.CreateStream(ctx, cfg)
	// A stream with a single replica now is better than no stream: replicate adds the rest later.
	if cfg.Replicas > 1 && tooFewServers(err) {
		cfg.Replicas = 1
		stream, err = s.conn.js.CreateStream(ctx, cfg)
	}
	return stream, err // the caller names the stream
}

// replicate sets the configured replicas. While the cluster has too few servers the stream keeps its
// replicas and can be published to.
func (s *streamSetup) replicate(ctx context.Context, stream jetstream.Stream) (jetstream.Stream, error) {
	cfg := stream.CachedInfo().Config
	if s.cfg.Replicas == 0 || cfg.Replicas == s.cfg.Replicas {
		return stream, nil
	}

	has := cfg.Replicas
	cfg.Replicas = s.cfg.Replicas
	grown, err := s.conn.js.UpdateStream(ctx, cfg)
	if tooFewServers(err) {
		s.fewer = append(s.fewer, fmt.Errorf("%w: stream %s has %d of the %d that are configured", errTooFewServers, cfg.Name, has, s.cfg.Replicas))
		return stream, nil
	}
	if err != nil {
		return nil, fmt.Errorf("give it %d replicas: %w", s.cfg.Replicas, err)
	}

	s.cfg.Logger.Info("a stream has other replicas now", "stream", cfg.Name, "replicas", s.cfg.Replicas, "before", has)
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
func (s *streamSetup) adjust(ctx context.Context, stream jetstream.Stream, subjects []string) (jetstream.Stream, error) {
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
	want := s.withOurSettings(have)
	want.Subjects = withSubjects(have.Subjects, subjects)
	if reflect.DeepEqual(have, want) {
		return stream, nil
	}

	updated, err := s.conn.js.UpdateStream(ctx, want)
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
func (s *streamSetup) withOurSettings(cfg jetstream.StreamConfig) jetstream.StreamConfig {
	// The server keeps about 125 bytes in memory for each id of the window. The window of the many
	// events may be short, because the relay reads the stream's end before it publishes an event
	// again.
	if cfg.Duplicates = otherDuplicates; cfg.Name == s.cfg.Stream {
		cfg.Duplicates = s.cfg.Duplicates
	}
	if cfg.MaxAge > 0 { // JetStream refuses a window that is longer than the age limit
		cfg.Duplicates = min(cfg.Duplicates, cfg.MaxAge)
	}

	cfg.NoAck = false
	if cfg.Name == s.cfg.Stream && atLeast(s.conn.nc.ConnectedServerVersion(), 2, 12) {
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
func capturing(ctx context.Context, js jetstream.JetStream, subject string) ([]string, error) {
	list := js.StreamNames(ctx, jetstream.WithStreamListSubject(subject))
	var names []string
	for name := range list.Name() {
		names = append(names, name)
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("look for the stream of %s: %w", subject, cause(ctx, err))
	}
	return names, nil
}
