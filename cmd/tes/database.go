package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/db/pgpool"
)

// direct is the URL of the server itself, without a pooler.
func (c Config) direct() string {
	if c.DatabaseDirectURL != "" {
		return c.DatabaseDirectURL
	}
	return c.DatabaseURL
}

// connect opens the pools. With TES_DATABASE_DIRECT_URL, TES_DATABASE_URL may lead through a pooler
// in transaction mode: transitions and reads use the pooler, and sessions that listen, publish and
// lead connect directly.
func (s *service) connect(ctx context.Context) (reads api.Reads, own *pgxpool.Pool, err error) {
	if s.cfg.DatabaseDirectURL == "" {
		reads, err = s.connectStraight(ctx)
	} else {
		reads, err = s.connectPooled(ctx)
	}

	if errors.Is(err, pgpool.ErrPooler) {
		return nil, nil, fmt.Errorf("%w. Set TES_DATABASE_DIRECT_URL to the address of the PostgreSQL server itself: migrations, "+
			"LISTEN and the publisher need sessions of their own. TES_DATABASE_URL may then lead through a pooler in transaction mode", err)
	}

	if err != nil {
		return nil, nil, err
	}

	// River's client needs sessions, to listen and to elect a leader. With a pool of its own, the
	// engine's connections stay free for transitions.
	own, err = s.open(ctx, s.cfg.direct(), pgpool.Config{Name: "tes river", MaxConns: 4, Custom: true})
	return reads, own, err
}

var (
	engineConfig = pgpool.Config{Name: "tes engine", MaxConns: 16, Engine: true}
	readsConfig  = pgpool.Config{Name: "tes reads", MaxConns: 8, StatementTimeout: 5 * time.Second}
)

func (s *service) connectStraight(ctx context.Context) (api.Reads, error) {
	engine, err := s.open(ctx, s.cfg.DatabaseURL, engineConfig)
	if err != nil {
		return nil, err
	}

	// A pooler in transaction mode would lose LISTEN and advisory locks without an error: refuse the
	// start.
	if err := pgpool.Sessions(ctx, engine, engineConfig); err != nil {
		return nil, err
	}

	s.engine, s.sessions = engine, engine
	return s.open(ctx, s.cfg.DatabaseURL, readsConfig)
}

func (s *service) connectPooled(ctx context.Context) (api.Reads, error) {
	cfg := pgpool.Config{Name: "tes sessions", MaxConns: 4, Engine: true}
	var err error
	if s.sessions, err = s.open(ctx, s.cfg.DatabaseDirectURL, cfg); err != nil {
		return nil, fmt.Errorf("TES_DATABASE_DIRECT_URL: %w", err)
	}

	if err := pgpool.Sessions(ctx, s.sessions, cfg); err != nil {
		return nil, fmt.Errorf("TES_DATABASE_DIRECT_URL: %w", err)
	}

	// Transitions use the pooler: there are many at once, and each takes a single transaction.
	pooled, err := s.openPooled(ctx, engineConfig)
	if err != nil {
		return nil, err
	}

	if err := sameDatabase(ctx, s.sessions, pooled); err != nil {
		return nil, err
	}

	s.engine = pooled
	return s.openPooled(ctx, readsConfig)
}

func (s *service) open(ctx context.Context, url string, cfg pgpool.Config) (*pgxpool.Pool, error) {
	pool, err := pgpool.Open(ctx, url, cfg)
	if err != nil {
		return nil, err
	}
	s.onStop(func(context.Context) error { pool.Close(); return nil })
	return pool, nil
}

func (s *service) openPooled(ctx context.Context, cfg pgpool.Config) (*pgpool.Pooled, error) {
	pool, err := pgpool.OpenPooled(ctx, s.cfg.DatabaseURL, cfg)
	if err != nil {
		return nil, fmt.Errorf("TES_DATABASE_URL, which leads through a pooler if TES_DATABASE_DIRECT_URL is set: %w", err)
	}
	s.onStop(func(context.Context) error { pool.Close(); return nil })
	return pool, nil
}

// sameDatabase returns an error if the URLs lead to two databases: rows written through one would
// not be found through the other.
func sameDatabase(ctx context.Context, direct *pgxpool.Pool, pooled *pgpool.Pooled) error {
	type queryer interface {
		QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	}

	// The time of the server's start tells two servers apart, even a primary and a copy of it with
	// the same database name.
	var identities [2]string
	for i, pool := range []queryer{direct, pooled} {
		const ask = "SELECT current_database() || ' of the server that was started at ' || pg_postmaster_start_time()"
		if err := pool.QueryRow(ctx, ask).Scan(&identities[i]); err != nil {
			return fmt.Errorf("compare the two databases: %w", err)
		}
	}

	if identities[0] != identities[1] {
		return fmt.Errorf("TES_DATABASE_DIRECT_URL and TES_DATABASE_URL lead to two databases: %s, and %s", identities[0], identities[1])
	}

	return nil
}
