package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"riverqueue.com/riverui"
)

// riverUI is River's own page over the lanes. It may cancel, retry and delete
// jobs, and knows no login: package api has one, and keeps pages of other origins
// from it.
func (s *service) riverUI(ctx context.Context, client *river.Client[pgx.Tx]) (http.Handler, error) {
	handler, err := riverui.NewHandler(&riverui.HandlerOpts{
		Endpoints: riverui.NewEndpoints(client, nil), Prefix: "/riverui", Logger: s.log, JobListHideArgsByDefault: true,
	})
	if err != nil {
		return nil, fmt.Errorf("river ui: %w", err)
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.onStop(func(context.Context) error { cancel(); return nil })
	if err := handler.Start(running); err != nil {
		return nil, fmt.Errorf("start river ui: %w", err)
	}
	return handler, nil
}
