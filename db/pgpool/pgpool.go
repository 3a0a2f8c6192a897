// Package pgpool is the only place where a pool of connections is configured.
package pgpool

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// replanEvery is how old a generic plan may grow.
const replanEvery = time.Second

// Replan makes a connection plan its statements anew, at most once in replanEvery.
// A generic plan is made for the size its tables have at that moment: one made
// while a table was empty reads the whole of it for every batch, for ever, or until
// autovacuum happens by. Connections of an Engine pool are replanned when they are
// acquired; who keeps one for long calls it now and then.
func Replan(ctx context.Context, conn *pgx.Conn) error {
	const key = "tes planned at"
	data := conn.PgConn().CustomData()
	if at, ok := data[key].(time.Time); ok && time.Since(at) < replanEvery {
		return nil
	}
	data[key] = time.Now()
	if _, err := conn.Exec(ctx, "DISCARD PLANS"); err != nil {
		return fmt.Errorf("replan: %w", err)
	}
	return nil
}

// Config says what a pool is for. The zero value is a pool for reading.
type Config struct {
	// Name shows in pg_stat_activity; default "tes".
	Name string
	// MaxConns bounds the pool; default 8.
	MaxConns int32
	// Engine marks the pool that makes the moves. Its statements take arrays of
	// any length and must be planned once, by the indexes: with a custom plan for
	// five hundred ids, or statistics taken while a table was empty, the planner
	// turns to scans that grow with the table. The guard on the table task lets
	// these connections through. Default false.
	Engine bool
	// Custom plans every statement for the values that it is given, at each call: for few
	// statements, whose partial indexes name a value. Default false.
	Custom bool
	// StatementTimeout ends a statement that hangs; default 30 s, of an Engine pool
	// 15 s: its callers give a statement 20 s, and what the server ended did nothing,
	// while nobody knows what became of a statement that was hung up on.
	StatementTimeout time.Duration
	// LockTimeout ends a statement that waits for a lock of somebody else; default none,
	// of an Engine pool 1 s. Its statements write for many callers at a time, and one
	// locked row would keep them all waiting. It is as long as deadlock_timeout: a
	// statement that waits for longer waits for no statement of ours.
	LockTimeout time.Duration
	// AnyServer takes a server that takes no writes: a standby, or the login of somebody
	// who may only read. Default: each connection proves that it may write.
	AnyServer bool
}

// Open makes a pool and proves that the database answers. ErrPooler says that something else
// did.
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
	// A host that vanishes takes its locks with it within a minute, and not within the
	// two hours of Linux: one of them is the lead of the relay.
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

// parse reads what any pool of ours has in common.
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
	made.Store(pool)
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("reach database: %w", err)
	}
	return pool, nil
}

// prepare replans a connection that is being acquired. One that breaks over it,
// for the server ended it or the caller's context did, must not go back into the
// pool: the next caller would be told that it is closed.
func prepare(ctx context.Context, conn *pgx.Conn) (bool, error) {
	err := Replan(ctx, conn)
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, err
	}
	return false, nil // the caller gets another
}
