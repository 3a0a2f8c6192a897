package main

import (
	"context"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// ready says whether requests should be sent here: reads are answered by a server that is no
// standby, and moves can be written.
func (s *service) ready(reads api.Reads) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := s.tasks.Writable(ctx); err != nil {
			return err //nolint:wrapcheck // the door reads it
		}
		return pgpool.Primary(ctx, reads)
	}
}
