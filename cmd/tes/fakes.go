package main

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"log/slog"
	"os"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// peersCmd is tes neighbours: the fake peer services alone.
type peersCmd struct {
	HTTP string `default:"127.0.0.1:9090" help:"Address to listen on." placeholder:"HOST:PORT"`
	Key  string `type:"existingfile" help:"Private key that signs service tokens, PEM. Default: a new one." placeholder:"FILE"`
}

// Run serves until Ctrl-C. Asynchronous results are published on the bus of TES_NATS_URL, if it is
// set.
func (c *peersCmd) Run(s *cmdContext) (err error) {
	if err := checkAddress(c.HTTP); err != nil {
		return &usageError{"--http: " + err.Error()}
	}

	// With the key of an earlier run, the tokens of that run stay valid.
	var key *ecdsa.PrivateKey
	if c.Key != "" {
		text, err := os.ReadFile(c.Key)
		if err != nil {
			return fmt.Errorf("read the key: %w", err)
		}
		if key, err = peertest.ParseKey(text); err != nil {
			return fmt.Errorf("%s: %w", c.Key, err)
		}
	}

	// Without a bus, the fakes answer asynchronous calls and never publish their results.
	log := logger(s, slog.LevelInfo, "text")
	config := peertest.Config{Listen: c.HTTP, Key: key, Logger: log}
	if s.cfg.NATSURL != "" {
		bus, err := natsbus.Open(s.ctx, natsbus.Config{URL: s.cfg.NATSURL, Credentials: s.cfg.NATSCredentials, Token: s.cfg.NATSToken, Logger: log})
		if err != nil {
			return fmt.Errorf("bus: %w", err)
		}
		defer func() { err = join(err, bus.Close(context.WithoutCancel(s.ctx))) }()
		config.Respond = func(ctx context.Context, subject string, body []byte) error { return bus.Send(ctx, subject, nil, body) }
	}

	there, err := peertest.Start(config)
	if err != nil {
		return err
	}

	// Lines that can be pasted into the environment of tes serve.
	s.printf("Fakes of the peer services of tes: %s/_standin/ (Ctrl-C stops them)\n\n", there.URL())
	s.printf("  TES_NEIGHBOURS_URL=%s\n  TES_SERVICE_TOKEN=%s\n\nTokens, good for an hour:\n\n", there.URL(), there.Token("task-execution-service"))

	for _, service := range callers {
		s.printf("  %-22s %s\n", service, there.Token(service))
	}

	<-s.ctx.Done()
	return there.Close(context.WithoutCancel(s.ctx))
}
