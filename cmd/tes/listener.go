package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/seed-3f7a0631/tes/api"
)

func listen(address string) (net.Listener, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot serve on %s: %w (choose another with --http or TES_HTTP; port 0 takes any free one)", address, err)
	}
	return listener, nil
}

// listen starts the HTTP server. Its handler answers "starting" until serve replaces it.
func (s *service) listen(listener net.Listener) {
	starting := api.Starting()
	s.handler.Store(&starting)

	// Limits against slow clients. Package api sets shorter ones for each response.
	s.http = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*s.handler.Load()).ServeHTTP(w, r) }),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		WriteTimeout:   2 * time.Minute, // longer than a dequeue may wait; package api gives each response less
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}

	s.onStop(func(context.Context) error { return s.http.Close() })

	go func() {
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("the HTTP server stopped", "error", err)
		}
	}()
}

// serve lets handler answer from here on, and drains the HTTP server at stop.
func (s *service) serve(handler http.Handler) {
	s.handler.Store(&handler)

	// Shutdown waits for open requests, and a waiting dequeue would delay it for up to a minute.
	s.http.RegisterOnShutdown(s.tasks.Leases.StartDraining)
	s.onStop(func(ctx context.Context) error {
		soon, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return s.http.Shutdown(soon)
	})
}
