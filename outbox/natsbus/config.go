package natsbus

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// Config says which server to use and how the streams are named. The zero value runs a server
// inside this process that no other process can reach.
type Config struct {
	// URL of an external server, such as nats://user:password@host:4222; several are separated by
	// commas. Default: empty, which embeds a server.
	URL string
	// Credentials is the path of a .creds file for an external server.
	// Default: empty, none.
	Credentials string

	// RootCAs returns the authorities whose certificates an external server may present, nil for
	// the system's. Certificate returns the client certificate. Both are called for each
	// connection. With either, a server without TLS is refused. Default: nil; the URL and the
	// server decide.
	RootCAs     func() (*x509.CertPool, error)
	Certificate func() (tls.Certificate, error)

	// StoreDir is where the embedded server keeps its streams. One process at a
	// time may use it. Default: tes-data/nats under the working directory.
	StoreDir string
	// MaxStore is how many bytes the embedded server may keep on disk. A full server refuses
	// messages, and events wait in the outbox. Default: 16 GiB.
	MaxStore int64
	// Listen is the host:port on which the embedded server accepts other processes; an empty host
	// is 127.0.0.1, port 0 is any free port. Default: empty, this process only.
	Listen string
	// Token is the secret that a client of the embedded listener must present. A listener never
	// accepts clients without it. Default: a random token for each Open; ClientURL returns it.
	Token string
	// NoSync makes the embedded server acknowledge messages before they are on disk. A power cut
	// then loses acknowledged messages; for tests. Default: false.
	NoSync bool

	// Stream keeps the events, subjects task.>. Default: TES_EVENTS.
	Stream string
	// Inbound keeps messages from other services. The stream is not created if another team's
	// stream captures its subjects. Default: TES_INBOUND.
	Inbound string
	// DeadLetters keeps messages that could not be processed. Default: TES_DEADLETTER.
	DeadLetters string
	// MaxAge is how long a stream that is created here keeps a message. An existing stream keeps
	// its limits. Default: 7 days.
	MaxAge time.Duration
	// Duplicates is how long the events stream recognises a repeated message id. The server keeps
	// 125 bytes in memory for each event of this time. The other streams have 15 minutes.
	// Default: 2 minutes.
	Duplicates time.Duration
	// Replicas is how many servers of an external cluster keep each stream, 1 to 5. Existing
	// streams are adjusted. While the cluster has too few servers, an existing stream keeps its
	// replicas, a new one is created with 1, and the adjustment is tried again. Default: 0; a new
	// stream has 1 and an existing one keeps its replicas.
	Replicas int
	// Readers are names of durable pull consumers that are created on the events stream for other
	// services, so that these need no right to create consumers. An existing consumer is not
	// changed. Default: none.
	Readers []string
	// MaxDeliveries is how often an inbound message is delivered before it becomes a dead letter.
	// With the growing pauses between deliveries, 20 take about eight minutes. Default: 20.
	MaxDeliveries int

	// Logger gets the warnings and errors of the bus and of the embedded server.
	// Default: slog.Default().
	Logger *slog.Logger

	intervals intervals // the zero value is for production; tests shorten it
}

// intervals is how often the bus checks its connection and its streams.
type intervals struct {
	// probe is how often the events stream is probed while nothing is published. The other
	// streams are probed at every fifth probe. Default: 2 s.
	probe time.Duration
	// replicas is how often missing replicas are asked for again. Default: 30 s.
	replicas time.Duration
	// redial is the pause between two tries to connect to a server that has been away for long,
	// or that refuses the credentials. Default: 2 s.
	redial time.Duration
}

// check refuses a configuration that no server could accept.
func (c Config) check() error {
	if err := checkReaders(c.Readers); err != nil {
		return err
	}

	if c.Replicas < 0 || c.Replicas > maxReplicas {
		return fmt.Errorf("a stream has 1 to %d replicas, not %d", maxReplicas, c.Replicas)
	}
	return CheckURL(c.URL)
}

func (c Config) withDefaults() Config {
	if c.StoreDir == "" {
		c.StoreDir = filepath.Join("tes-data", "nats")
	}
	if c.MaxStore <= 0 {
		c.MaxStore = 16 << 30
	}
	if c.Stream == "" {
		c.Stream = "TES_EVENTS"
	}
	if c.Inbound == "" {
		c.Inbound = "TES_INBOUND"
	}
	if c.DeadLetters == "" {
		c.DeadLetters = "TES_DEADLETTER"
	}
	if c.MaxAge <= 0 {
		c.MaxAge = 7 * 24 * time.Hour
	}
	if c.Duplicates <= 0 {
		c.Duplicates = 2 * time.Minute
	}

	// JetStream refuses a window that is longer than the age limit.
	c.Duplicates = min(c.Duplicates, c.MaxAge)
	if c.MaxDeliveries <= 0 {
		c.MaxDeliveries = 20
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.intervals.probe <= 0 {
		c.intervals.probe = 2 * time.Second
	}
	if c.intervals.replicas <= 0 {
		c.intervals.replicas = 30 * time.Second
	}
	if c.intervals.redial <= 0 {
		c.intervals.redial = 2 * time.Second
	}

	return c
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
