package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/automated"
	"github.com/seed-3f7a0631/tes/jobs/integration"
	"github.com/seed-3f7a0631/tes/jobs/manual"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// executors makes the executors. A new executor is a line here.
func (s *service) executors() (map[string]jobs.Registration, error) {
	integrations, err := s.newPeers("integration", s.cfg.IntegrationURL)
	if err != nil {
		return nil, err
	}

	users, err := s.newPeers("user", s.cfg.UserURL)
	if err != nil {
		return nil, err
	}

	// /metrics and /readyz report the breakers of every peer service.
	s.breakers = append(s.breakers, integrations.Integrations.Breaker(), users.Users.Breaker())
	s.integrations = integrations.Integrations

	// Definitions name the addresses, so the egress guard decides which may be called.
	web := automated.NewHTTP(automated.HTTPConfig{
		Allow: s.cfg.allow, Wrap: s.spans.Transport("task"), Logger: s.log,
		Secrets: automated.Secrets{Dir: s.cfg.SecretsDir, Env: s.cfg.headerSecrets},
	})
	s.onStop(func(context.Context) error { web.Close(); return nil })
	handlers := &automated.Handlers{}
	return map[string]jobs.Registration{
		"noop":        {Executor: automated.Noop{}, Pure: true},
		"expression":  {Executor: automated.NewExpression(), Pure: true},
		"http":        {Executor: web},
		"go":          {Executor: handlers, Handlers: handlers.Names},
		"integration": {Executor: integration.New(integrations.integration()), Ready: readiness(integrations.Integrations.Breaker())},
		"manual":      {Executor: manual.New(users.directory(), s.tasks.Worklist), Assigns: true},
	}, nil
}

// checkDefinition lets the executors validate a definition.
func checkDefinition(c jobs.ExecutionConfig) error {
	if c.Integration != nil {
		if err := integration.Check(*c.Integration); err != nil {
			return err
		}
	}

	switch c.Executor {
	case "expression":
		return automated.CheckExpression(c.Expression)
	case "manual":
		return manual.CheckRules(c.AssignmentRules)
	}

	return nil
}

// resources returns the allocator of the Resource Service. Without an address of that service the
// allocator grants what a task requires.
func (s *service) resources() (allocator, error) {
	if s.cfg.orElse(s.cfg.ResourceURL) == "" {
		return allocator{}, nil
	}

	n, err := s.newPeers("resource", s.cfg.ResourceURL)
	if err != nil {
		return allocator{}, err
	}

	s.breakers = append(s.breakers, n.Resources.Breaker())
	return allocator{n.Resources}, nil
}

// notices notify people of their tasks. Without a Notification Service nothing is sent.
func (s *service) notices() (*jobs.Notices, error) {
	if s.cfg.orElse(s.cfg.NotificationURL) == "" {
		return jobs.NewNotices(s.tasks, nil), nil
	}

	n, err := s.newPeers("notification", s.cfg.NotificationURL)
	if err != nil {
		return nil, err
	}

	s.breakers = append(s.breakers, n.Notifications.Breakers()...)
	return jobs.NewNotices(s.tasks, n.notifier()), nil
}

// newPeers makes the clients of the peer services at url.
func (s *service) newPeers(name, url string) (peers, error) {
	n, err := peer.New(peer.Config{
		BaseURL: s.cfg.orElse(url), Wrap: s.spans.Transport(name),
		Token: s.serviceToken, TLS: s.files.peersTLS(),
		OnBreaker: s.changed,
	})
	if err != nil {
		return peers{}, fmt.Errorf("peer service: %w", err)
	}

	s.onStop(func(context.Context) error { n.Close(); return nil })
	return peers{n}, nil
}

// states are the circuit breakers of this process, sorted by name.
func (s *service) states() []retry.Status {
	all := make([]retry.Status, len(s.breakers))
	for i, b := range s.breakers {
		all[i] = b.Status()
	}

	if s.integrations != nil {
		all = append(all, s.integrations.Resting()...)
	}

	slices.SortFunc(all, func(a, b retry.Status) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// changed logs a change of a circuit breaker.
func (s *service) changed(b retry.Status) {
	if b.State == retry.Open {
		s.log.Warn("a breaker is open: what needs it waits, or goes on with its fallback", "breaker", b.Name)
		return
	}
	s.log.Info("a breaker changed", "breaker", b.Name, "state", b.State)
}
