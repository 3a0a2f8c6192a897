package pgpool

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Pooled executes statements through a pooler that assigns a session for one transaction
// at a time, such as PgBouncer in transaction mode. A Pooled relies on nothing that an
// earlier transaction left in a session:
//
//   - The settings are part of each transaction. A single statement and its settings are
//     sent in one message and answered in one message, and are one transaction.
//   - Statements have no names. Their descriptions are cached in the client, so that each
//     statement takes one round trip.
//
// Code that needs a session of its own (LISTEN, the relay's leader lock, migrations) must
// use a pool made by Open.
type Pooled struct {
	pool *pgxpool.Pool
	set  string // statement with the settings, for the beginning of a transaction
}

// OpenPooled makes a pool through a pooler, and proves that the settings are in force.
func OpenPooled(ctx context.Context, url string, cfg Config) (*Pooled, error) {
	cfg = cfg.withDefaults()
	conf, err := cfg.parse(url)
	if err != nil {
		return nil, err
	}

	// A pooler forwards these two parameters, and rejects or drops all others.
	conf.ConnConfig.RuntimeParams = map[string]string{"application_name": cfg.Name, "timezone": "UTC"}
	conf.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	pool, err := open(ctx, url, cfg, conf)
	if err != nil {
		return nil, err
	}

	p := &Pooled{pool: pool, set: local(cfg.settings())}
	if err := p.prove(ctx, cfg); err != nil {
		pool.Close()
		return nil, err
	}

	return p, nil
}

// prove checks the settings in a single statement and in a transaction.
func (p *Pooled) prove(ctx context.Context, cfg Config) error {
	if err := arrived(cfg, func(sql string) pgx.Row { return p.QueryRow(ctx, sql) }); err != nil {
		return err
	}

	tx, err := p.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	defer func() { _ = tx.Rollback(ctx) }()

	return arrived(cfg, func(sql string) pgx.Row { return tx.QueryRow(ctx, sql) })
}

// Exec executes one statement in a transaction of its own.
func (p *Pooled) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	results := p.send(ctx, sql, args)
	tag, err := results.Exec()

	// The first result belongs to the settings.
	if err == nil {
		tag, err = results.Exec()
	}

	if closed := results.Close(); err == nil {
		err = closed
	}

	return tag, err //nolint:wrapcheck // Exec behaves like the pool's Exec
}

// Query executes one statement in a transaction of its own. The transaction has committed
// when Next has returned false, or Close has returned, and Err is nil.
func (p *Pooled) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	results := p.send(ctx, sql, args)
	if _, err := results.Exec(); err != nil {
		_ = results.Close()
		return &pooledRows{err: err}, err //nolint:wrapcheck // as the pool's Query
	}

	rows, err := results.Query()
	if err != nil {
		_ = results.Close()
		return &pooledRows{err: err}, err //nolint:wrapcheck // as the pool's Query
	}

	return &pooledRows{Rows: rows, results: results}, nil
}

// QueryRow is Query for a single row.
func (p *Pooled) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := p.Query(ctx, sql, args...)
	return pooledRow{rows, err}
}

// send sends the settings and a statement as one transaction, in one round trip.
func (p *Pooled) send(ctx context.Context, sql string, args []any) pgx.BatchResults {
	var both pgx.Batch
	both.Queue(p.set)
	both.Queue(sql, args...)
	return p.pool.SendBatch(ctx, &both)
}

// Begin begins a transaction with the settings.
func (p *Pooled) Begin(ctx context.Context) (pgx.Tx, error) {
	return p.BeginTx(ctx, pgx.TxOptions{})
}

// BeginTx begins a transaction with the settings. Options other than BeginQuery are an
// error, because the settings must be part of the first message.
func (p *Pooled) BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error) {
	if o.IsoLevel != "" || o.AccessMode != "" || o.DeferrableMode != "" {
		return nil, errors.New("begin through a pooler: only the option BeginQuery is supported")
	}

	if o.BeginQuery == "" {
		o.BeginQuery = "BEGIN"
	}

	o.BeginQuery += "; " + p.set
	return p.pool.BeginTx(ctx, o) //nolint:wrapcheck // as the pool's BeginTx
}

// Ping reports whether the database answers.
func (p *Pooled) Ping(ctx context.Context) error {
	return p.pool.Ping(ctx) //nolint:wrapcheck // as the pool's Ping
}

// Reset closes the idle connections.
func (p *Pooled) Reset() { p.pool.Reset() }

// Close closes all connections.
func (p *Pooled) Close() { p.pool.Close() }

// pooledRows are rows whose end is the end of the transaction.
type pooledRows struct {
	pgx.Rows // nil if the query failed with err

	results pgx.BatchResults // nil after Close
	err     error            // of the query, or of the commit
}

func (r *pooledRows) Next() bool {
	if r.Rows != nil && r.Rows.Next() {
		return true
	}

	r.Close()
	return false
}

func (r *pooledRows) Close() {
	if r.results == nil {
		return
	}

	r.Rows.Close()
	r.err = r.results.Close()
	r.results = nil
}

func (r *pooledRows) Err() error {
	if r.Rows != nil && r.Rows.Err() != nil {
		return r.Rows.Err() //nolint:wrapcheck // as pgx.Rows
	}
	return r.err
}

type pooledRow struct {
	rows pgx.Rows
	err  error
}

func (r pooledRow) Scan(into ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()

	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err //nolint:wrapcheck // as pgx.Row
		}
		return pgx.ErrNoRows
	}

	if err := r.rows.Scan(into...); err != nil {
		return err //nolint:wrapcheck // as pgx.Row
	}

	// Closing commits; the error of the commit is the error of the row.
	r.rows.Close()
	return r.rows.Err() //nolint:wrapcheck // as pgx.Row
}
