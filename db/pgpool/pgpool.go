// Package pgpool opens connections to PostgreSQL. No other package configures a pool.
//
// Open makes a pool of direct connections, each of them a session of the server with
// the settings of Config. OpenPooled makes a Pooled, which works through a pooler such
// as PgBouncer in transaction mode: the settings are part of every transaction. Both
// prove before they return that the server accepts writes; Sessions, and OpenPooled
// itself, prove that the settings are in force.
package pgpool

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// replanEvery is the maximum age of a connection's generic plans.
const replanEvery = time.Second

// Replan discards the plans of a connection, at most once in replanEvery. PostgreSQL makes
// a generic plan for the size of the tables at the time of planning: a plan made while a
// table was empty scans the whole table for every batch, until autovacuum analyzes the
// table. Connections of an Engine pool are replanned when they are acquired. A caller that
// keeps a connection for long must call Replan now and then.
func Replan(ctx context.Context, conn *pgx.Conn) error {
	const key = "tes planned at"
	data := conn.PgConn().CustomData()
	if at, ok := data[key].(time.Time); ok && time.Since(at) < replanEvery {
		return nil
	}

	// Before the statement: if DISCARD fails, the connection is broken anyway.
	data[key] = time.Now()
	if _, err := conn.Exec(ctx, "DISCARD PLANS"); err != nil {
		return fmt.Errorf("replan: %w", err)
	}

	return nil
}

// Config describes a pool by its use. The zero value is a pool for reading.
type Config struct {
	// Name is the application_name in pg_stat_activity; default "tes".
	Name string
	// MaxConns is the maximum number of connections; default 8.
	MaxConns int32
	// Engine marks the pool for transitions of tasks. Its statements take arrays of any
	// length and must keep one plan that uses the indexes: with a custom plan for five
	// hundred ids, or with statistics of an empty table, the planner chooses scans that
	// grow with the table. The trigger that guards the table task accepts writes from
	// these connections only. Default false.
	Engine bool
	// Custom plans every statement at each call, for the given values: for few statements,
	// whose partial indexes name a value. Default false.
	Custom bool
	// StatementTimeout ends a statement that hangs; default 30 s, of an Engine pool 15 s.
	// Callers wait 20 s for a statement of the engine: the server must end the statement
	// first, because a statement that the server ended has written nothing, and the
	// outcome of a statement that a caller abandoned is unknown.
	StatementTimeout time.Duration
	// LockTimeout ends a statement that waits for a lock; default none, of an Engine pool
	// 1 s. A statement of the engine writes for many callers, and one locked row would
	// delay all of them. 1 s is deadlock_timeout: a statement that waits longer does not
	// wait for another statement of the engine.
	LockTimeout time.Duration
	// AnyServer accepts a server without writes: a standby, or a login with read access
	// only. Default false: each connection proves that the server accepts writes.
	AnyServer bool
}

// Open makes a pool and proves that the database answers. ErrPooler: a pooler answered,
// and rejected the settings.
func Open(ctx context.Context, url string, cfg Config) (*pgxpool.Pool, error) {
	cfg = cfg.withDefaults()
	conf, err := cfg.parse(url)
	if err != nil {
		return nil, err
	}

	params := conf.ConnConfig.RuntimeParams
	params["application_name"] = cfg.Name
	params["timezone"] = "UTC"

	for _, one := range cfg.settings() {
		params[one.name] = one.value
	}

	// The server notices within a minute that a client host has vanished, and releases the
	// locks of its sessions, the lock of the relay's leader among them. Linux would wait for
	// two hours.
	params["tcp_keepalives_idle"] = "20"
	params["tcp_keepalives_interval"] = "10"
	params["tcp_keepalives_count"] = "3"
	if cfg.Engine {
		conf.PrepareConn = prepare
	}

	pool, err := open(ctx, url, cfg, conf)
	if unsupported(err) {
		return nil, fmt.Errorf("%w: %w", ErrPooler, err)
	}

	if err != nil {
		return nil, err
	}

	return pool, nil
}

func (cfg Config) withDefaults() Config {
	if cfg.Name == "" {
		cfg.Name = "tes"
	}
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 8
	}

	if cfg.StatementTimeout == 0 {
		cfg.StatementTimeout = 30 * time.Second
		if cfg.Engine {
			cfg.StatementTimeout = 15 * time.Second
		}
	}

	if cfg.LockTimeout == 0 && cfg.Engine {
		cfg.LockTimeout = time.Second
	}

	return cfg
}

// parse returns the configuration that all pools have in common.
func (cfg Config) parse(url string) (*pgxpool.Config, error) {
	conf, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("database url: %w", err)
	}

	conf.MaxConns = cfg.MaxConns
	conf.MaxConnIdleTime = 5 * time.Minute
	conf.ConnConfig.ConnectTimeout = 5 * time.Second
	conf.ConnConfig.DialFunc = dialer().DialContext
	renewTLS(url, conf)
	conf.AfterConnect = func(_ context.Context, conn *pgx.Conn) error {
		registerUUID(conn.TypeMap())
		return nil
	}

	return conf, nil
}

func open(ctx context.Context, url string, cfg Config, conf *pgxpool.Config) (*pgxpool.Pool, error) {
	var made atomic.Pointer[pgxpool.Pool]
	if !cfg.AnyServer {
		demandWrites(url, conf, &made)
	}

	pool, err := pgxpool.NewWithConfig(ctx, conf)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}

	// demandWrites resets the pool through made, on errors of later connections.
	made.Store(pool)
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("reach database: %w", err)
	}

	return pool, nil
}

// prepare replans a connection that is being acquired. A connection that broke meanwhile,
// because the server closed the connection or the caller's context ended, must not go back
// into the pool: the next caller would get a closed connection.
func prepare(ctx context.Context, conn *pgx.Conn) (bool, error) {
	err := Replan(ctx, conn)
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, err
	}

	// The pool discards the connection and acquires another one.
	return false, nil
}
