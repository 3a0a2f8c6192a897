package main

import (
	"context"
	"fmt"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"riverqueue.com/riverui"
)

// viewerStyle hides River UI's controls that act from who may only look: the buttons Retry,
// Cancel and Delete of jobs, which share a class, and Pause and Resume of queues, which are
// told by their titles. River UI has no mode for reading alone. TestRiverUIHasTheHooks fails
// when a new version of it has other marks.
const viewerStyle = `button[class~="first:rounded-l-md"][class~="last:rounded-r-md"],` +
	`button[title="Pause"],button[title="Resume"]{display:none!important}`

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
