package pgpool

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Pooled makes statements through a pooler that hands out sessions by the transaction, as
// PgBouncer does in transaction mode. Nothing of it depends on what an earlier transaction
// has left in a session:
//
//   - Our settings come with each transaction. A single statement and its settings are sent
//     together and answered together, and are one transaction to the server.
//   - Statements have no names. Their descriptions are remembered here, so that each is one
//     round trip as well.
//
// What needs a session of its own (LISTEN, the lead of the relay, migrations) is not for it.
type Pooled struct {
	pool *pgxpool.Pool
	set  string // makes the settings, within a transaction
}

// OpenPooled makes a pool through a pooler and proves that its settings arrive.
func OpenPooled(ctx context.Context, url string, cfg Config) (*Pooled, error) {
	cfg = cfg.withDefaults()
	conf, err := cfg.parse(url)
	if err != nil {
		return nil, err
	}
	// A pooler hands these two on. Any other parameter it refuses, or swallows.
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

// prove makes a statement by itself and one in a transaction, and looks whether our settings
// are there in both.
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

// Exec makes one statement, in a transaction of its own.
func (p *Pooled) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	results := p.send(ctx, sql, args)
	tag, err := results.Exec()
	if err == nil {
		tag, err = results.Exec()
	}
	if closed := results.Close(); err == nil {
		err = closed
	}
	return tag, err //nolint:wrapcheck // it stands for the pool
}

// Query makes one statement, in a transaction of its own, which has committed when Next has
// returned false, or Close has returned, and Err is nil.
func (p *Pooled) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	results := p.send(ctx, sql, args)
	if _, err := results.Exec(); err != nil {
		_ = results.Close()
		return &pooledRows{err: err}, err //nolint:wrapcheck // it stands for the pool
	}
	rows, err := results.Query()
	if err != nil {
		_ = results.Close()
		return &pooledRows{err: err}, err //nolint:wrapcheck // it stands for the pool
	}
	return &pooledRows{Rows: rows, results: results}, nil
}

// QueryRow is Query for one row.
func (p *Pooled) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := p.Query(ctx, sql, args...)
	return pooledRow{rows, err}
}

// send sends the settings and a statement as one transaction.
func (p *Pooled) send(ctx context.Context, sql string, args []any) pgx.BatchResults {
	var both pgx.Batch
	both.Queue(p.set)
	both.Queue(sql, args...)
	return p.pool.SendBatch(ctx, &both)
}

// Begin begins a transaction with our settings.
func (p *Pooled) Begin(ctx context.Context) (pgx.Tx, error) {
	return p.BeginTx(ctx, pgx.TxOptions{})
}

// BeginTx is Begin with another query than BEGIN, if the options have one. It takes no
// other option.
func (p *Pooled) BeginTx(ctx context.Context, o pgx.TxOptions) (pgx.Tx, error) {
	if o.IsoLevel != "" || o.AccessMode != "" || o.DeferrableMode != "" {
		return nil, errors.New("begin through a pooler: say it in BeginQuery")
	}
	if o.BeginQuery == "" {
		o.BeginQuery = "BEGIN"
	}
	o.BeginQuery += "; " + p.set
	return p.pool.BeginTx(ctx, o) //nolint:wrapcheck // it stands for the pool
}

// Ping says whether the database answers.
func (p *Pooled) Ping(ctx context.Context) error {
	return p.pool.Ping(ctx) //nolint:wrapcheck // it stands for the pool
}

// Reset closes what is idle.
func (p *Pooled) Reset() { p.pool.Reset() }

// Close closes every connection.
func (p *Pooled) Close() { p.pool.Close() }

// pooledRows ends the transaction with the rows.
type pooledRows struct {
	pgx.Rows // nil if there are none, for err

	results pgx.BatchResults // nil once they are closed
	err     error            // of the end
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
		return r.Rows.Err() //nolint:wrapcheck // it stands for the rows
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
			return err //nolint:wrapcheck // it stands for the row
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(into...); err != nil {
		return err //nolint:wrapcheck // it stands for the row
	}
	r.rows.Close()
	return r.rows.Err() //nolint:wrapcheck // it stands for the row
}
