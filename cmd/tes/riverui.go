package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"riverqueue.com/riverui"
)

// viewerStyle hides River UI's controls from callers without the right to act: the buttons Retry,
// Cancel and Delete of jobs by their common class, Pause and Resume of queues by their titles. River
// UI has no read-only mode. TestRiverUIHasTheHooks fails for a version of River UI with other
// classes or titles.
const viewerStyle = `button[class~="first:rounded-l-md"][class~="last:rounded-r-md"],` +
	`button[title="Pause"],button[title="Resume"]{display:none!important}`

// riverUI returns River's page of the queues. The page can cancel, retry and delete jobs and has no
// login: package api adds the login, and refuses requests from pages of other origins.
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
