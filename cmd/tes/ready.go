package main

import (
	"context"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// ready is the readiness check: transitions can be written, and reads reach a primary server.
func (s *service) ready(reads api.Reads) func(context.Context) error {
	return func(ctx context.Context) error {
		// A process that can only read would accept tasks and fail every create.
		if err := s.tasks.Writable(ctx); err != nil {
			return err // /readyz classifies the error itself
		}
		return pgpool.Primary(ctx, reads)
	}
}
