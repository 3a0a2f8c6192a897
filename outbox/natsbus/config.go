package natsbus

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"
)

// Config says which server to use and what the streams on it are called. The
// zero value runs a server inside this process that nobody else can reach.
type Config struct {
	// URL of an external server, such as nats://user:password@host:4222; several
	// are separated by commas. Default: "", which embeds a server.
	URL string
	// Credentials is the path of a .creds file for an external server.
	// Default: "", none.
	Credentials string

	// RootCAs answers whose certificates an external server may present, nil for the system's
	// authorities; Certificate answers ours. Both are asked at each connection. With either,
	// a server without TLS is refused. Default: none, and the URL and the server decide.
	RootCAs     func() (*x509.CertPool, error)
	Certificate func() (tls.Certificate, error)

	// StoreDir is where the embedded server keeps its streams. One process at a
	// time may use it. Default: tes-data/nats under the working directory.
	StoreDir string
	// MaxStore is how many bytes the embedded server may keep on disk; beyond
	// that it refuses to store and the outbox waits. Default: 16 GiB.
	MaxStore int64
	// Listen is the host:port on which the embedded server takes other
	// processes; an empty host is 127.0.0.1, port 0 is any free one.
	// Default: "", this process only.
	Listen string
	// Token is what a client of the embedded listener must present. A listener
	// is never open to the unauthenticated. Default: a random one for each Open,
	// to be had from ClientURL.
	Token string
	// NoSync lets the embedded server acknowledge before the write has reached
	// the disk. A power cut then loses what was acknowledged; it is for tests.
	// Default: false, every acknowledged write is on disk.
	NoSync bool

	// Stream keeps the events, subjects task.>. Default: TES_EVENTS.
	Stream string
	// Inbound keeps what others tell us. It is not made where another team's
	// stream has its subjects already. Default: TES_INBOUND.
	Inbound string
	// DeadLetters keeps what could not be acted on. Default: TES_DEADLETTER.
	DeadLetters string
	// MaxAge is how long a stream that is made here keeps a message; one that is there
	// keeps its own limits. Default: 7 days.
	MaxAge time.Duration
	// Duplicates is how long the events stream recognises a message id that it has
	// seen. The server keeps 125 bytes in memory for each event of this time. The
	// other streams have 15 minutes. Default: 2 minutes.
	Duplicates time.Duration
	// Replicas is how many servers of an external cluster keep each stream, 1 to 5.
	// Streams that are there are adjusted. While the cluster has too few servers for it,
	// a stream has what it has, or is made with 1, and it is tried again. Default: 0, a new
	// stream has 1 and one that is there keeps its own.
	Replicas int
	// Readers are names of durable pull consumers that are made on the events stream for
	// others, who so need no right to make any. One that is there stays as it is.
	// Default: none.
	Readers []string
	// MaxDeliveries is how often an inbound message is tried before it goes to
	// the dead letters. With the growing pauses in between, 20 is about eight
	// minutes. Default: 20.
	MaxDeliveries int

	// Logger takes warnings and errors, ours and the server's.
	// Default: slog.Default().
	Logger *slog.Logger

	rhythm rhythm // the zero value is for production; tests shorten it
}

// rhythm is how often the bus looks after itself.
type rhythm struct {
	// look is how often the events stream is looked at while nothing is published; the
	// other streams are at every fifth look. Default: 2 s.
	look time.Duration
	// grow is how often replicas are asked for that the cluster had no servers for.
	// Default: 30 s.
	grow time.Duration
	// redial is the pause between two tries to connect to a server that has been away for
	// long, or says no. Default: 2 s.
	redial time.Duration
}

// check refuses what no server can mend.
func (c Config) check() error {
	if err := checkReaders(c.Readers); err != nil {
		return err
	}
	if c.Replicas < 0 || c.Replicas > mostReplicas {
		return fmt.Errorf("a stream has 1 to %d replicas, not %d", mostReplicas, c.Replicas)
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
	// JetStream refuses a window longer than the messages live.
	c.Duplicates = min(c.Duplicates, c.MaxAge)
	if c.MaxDeliveries <= 0 {
		c.MaxDeliveries = 20
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.rhythm.look <= 0 {
		c.rhythm.look = 2 * time.Second
	}
	if c.rhythm.grow <= 0 {
		c.rhythm.grow = 30 * time.Second
	}
	if c.rhythm.redial <= 0 {
		c.rhythm.redial = 2 * time.Second
	}
	return c
}
