package main

import (
	"context"
	"errors"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/outbox/callback"
	"github.com/seed-3f7a0631/tes/outbox/webhook"
)

// checkCallback refuses every callbackUrl if there is no secret: receivers could not verify
// unsigned callbacks.
func (c Config) checkCallback(string) error {
	if len(c.secrets) == 0 {
		return errors.New("callbacks are off here: TES_CALLBACK_SECRET, which signs them, is not set")
	}
	return nil
}

// startCallbacks delivers callbacks if they can be signed.
func (s *service) startCallbacks(ctx context.Context) {
	// Made without a secret too, because the engine wakes the dispatcher. Run needs a secret.
	caller := webhook.New(webhook.Config{Secrets: s.cfg.secrets, Current: s.callbackSecrets, Allow: s.cfg.allow})
	s.onStop(func(context.Context) error { caller.Close(); return nil })
	s.calls = callback.New(s.engine, caller, callback.Config{Logger: s.log})
	if len(s.cfg.secrets) > 0 {
		s.background(s.calls.Run)
		return
	}

	// Tasks of an earlier start, with a secret, wait for their callbacks. The operator has probably
	// lost the setting.
	if owed, err := db.New(s.engine).CallbackBacklog(ctx); err == nil && owed.Waiting > 0 {
		s.log.Warn("callbacks wait: TES_CALLBACK_SECRET, which signs them, is not set", "tasks", owed.Waiting)
	}
}
