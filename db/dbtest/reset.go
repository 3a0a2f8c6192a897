package dbtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// maxSize is the maximum size of the tables, in bytes, of a database that is used again.
// Deleted rows stay in the files, and every later reset would read them.
const maxSize = 32 << 20

// never are the tables that a reset neither compares nor empties: the records of the
// migration tools. A test that changes these tables must use New.
var never = []string{"goose_db_version", "river_migration"}

// image describes a fresh copy of the template. Copies have the same object ids as their
// template, so object ids are compared too.
type image struct {
	schema string // the result of schemaSQL
	seeds  []seed
	reset  string // statement that deletes from all tables except seeds
}

// seed is a table with rows of the migrations.
type seed struct {
	table   string // quoted
	columns string // quoted; without generated columns
	rows    string // JSON
	sum     string
}

// ours is the condition on pg_namespace n for objects made by migrations.
const ours = `n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\_%'`

// schemaSQL returns different texts after most kinds of DDL. It reads only system tables,
// which are in memory; comparing everything would take longer than a copy.
const schemaSQL = `
WITH class AS (
	SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE ` + ours + `
)
SELECT concat_ws(' ',
	(SELECT count(*) || '/' || sum(oid::bigint) FROM class),
	(SELECT count(*) || '/' || count(*) FILTER (WHERE attnotnull) || '/' || count(*) FILTER (WHERE atthasdef)
		FROM pg_attribute WHERE NOT attisdropped AND attrelid IN (SELECT oid FROM class)),
	(SELECT count(*) || '/' || sum(oid::bigint) FROM pg_constraint WHERE conrelid IN (SELECT oid FROM class)),
	(SELECT string_agg(tgenabled::text, '' ORDER BY oid) FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM class)),
	(SELECT count(*) || '/' || sum(p.oid::bigint) || '/' || sum(hashtext(p.prosrc)::bigint)
		FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE ` + ours + `),
	(SELECT count(*) FROM pg_enum))`

const tablesSQL = `
SELECT format('%I.%I', n.nspname, c.relname)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r'
	AND ` + ours + `
	AND NOT (c.relname = ANY ($1))
ORDER BY 1`

// reset restores the state before the test, or returns an error if that is not possible.
func (d *database) reset(ctx context.Context) error {
	s := d.server

	// The session stays open for the next reset.
	if d.keeper == nil {
		conn, err := pgx.Connect(ctx, s.dsn(d.name))
		if err != nil {
			return fmt.Errorf("connect to reset: %w", err)
		}
		d.keeper = conn
	}

	s.learning.Do(func() { s.image, s.imageErr = s.learn(ctx) })
	if s.imageErr != nil {
		return s.imageErr
	}

	return pgx.BeginFunc(ctx, d.keeper, func(tx pgx.Tx) error {
		// Without triggers and foreign keys the order of the tables does not matter.
		if _, err := tx.Exec(ctx, "SET LOCAL session_replication_role = replica"); err != nil {
			return fmt.Errorf("switch triggers off: %w", err)
		}

		if _, err := tx.Exec(ctx, s.image.reset); err != nil {
			return fmt.Errorf("empty the tables: %w", err)
		}

		if err := s.image.restoreSeeds(ctx, tx); err != nil {
			return err
		}

		var schema string
		if err := tx.QueryRow(ctx, schemaSQL).Scan(&schema); err != nil {
			return fmt.Errorf("compare the schema: %w", err)
		}

		if schema != s.image.schema {
			return errors.New("the test has changed its schema (it should use New)")
		}

		var size int64
		err := tx.QueryRow(ctx, `
			SELECT coalesce(sum(pg_relation_size(c.oid)), 0)::bigint
			FROM pg_class c
			JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind = 'r' AND `+ours).Scan(&size)
		if err != nil {
			return fmt.Errorf("measure the tables: %w", err)
		}

		if size > maxSize {
			return fmt.Errorf("its tables have grown to %d MB", size>>20)
		}

		return nil
	})
}

// learn describes a fresh copy. The template itself accepts no connections.
func (s *server) learn(ctx context.Context) (*image, error) {
	fresh, err := s.create(ctx)
	if err != nil {
		return nil, err
	}

	conn, err := pgx.Connect(ctx, s.dsn(fresh.name))
	if err != nil {
		return nil, fmt.Errorf("look at the template: %w", err)
	}

	// From now on the copy is an ordinary database.
	fresh.keeper = conn

	im := &image{}
	if err := conn.QueryRow(ctx, schemaSQL).Scan(&im.schema); err != nil {
		return nil, fmt.Errorf("look at the template's schema: %w", err)
	}

	rows, err := conn.Query(ctx, tablesSQL, never)
	if err != nil {
		return nil, fmt.Errorf("list the template's tables: %w", err)
	}

	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("list the template's tables: %w", err)
	}

	var seeded []string
	for _, table := range tables {
		one, err := learnSeed(ctx, conn, table)
		if err != nil {
			return nil, fmt.Errorf("look at %s of the template: %w", table, err)
		}

		if one != nil {
			im.seeds = append(im.seeds, *one)
			seeded = append(seeded, table)
		}
	}

	// Seeds are restored and not emptied.
	tables = slices.DeleteFunc(tables, func(table string) bool { return slices.Contains(seeded, table) })
	im.reset = resetSQL(tables)

	s.mu.Lock()
	defer s.mu.Unlock()

	s.idle = append(s.idle, fresh)

	return im, nil
}

// learnSeed returns nil for an empty table.
func learnSeed(ctx context.Context, conn *pgx.Conn, table string) (*seed, error) {
	one := &seed{table: table}
	var n int
	err := conn.QueryRow(ctx, "SELECT count(*), coalesce(json_agg(t), '[]')::text, coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text)), '') FROM "+table+" t").
		Scan(&n, &one.rows, &one.sum)
	if err != nil || n == 0 {
		return nil, err
	}

	err = conn.QueryRow(ctx, `
		SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
		FROM pg_attribute
		WHERE attrelid = $1::text::regclass
			AND attnum > 0
			AND NOT attisdropped
			AND attgenerated = ''`, table).Scan(&one.columns)
	return one, err
}

// resetSQL deletes only from tables with rows: a DELETE from an empty table takes longer than
// the check, and TRUNCATE makes new files. Tables without a file, or with an empty file, are
// not even checked.
func resetSQL(tables []string) string {
	quoted := make([]string, len(tables))
	for i, table := range tables {
		quoted[i] = "'" + strings.ReplaceAll(table, "'", "''") + "'"
	}

	return `
DO $reset$
DECLARE
	it regclass;
	found boolean;
BEGIN
	FOREACH it IN ARRAY ARRAY[` + strings.Join(quoted, ", ") + `]::regclass[] LOOP
		CONTINUE WHEN pg_relation_size(it) = 0;
		EXECUTE format('SELECT EXISTS (SELECT FROM %s)', it) INTO found;
		IF found THEN
			EXECUTE format('DELETE FROM %s', it);
		END IF;
	END LOOP;
END
$reset$`
}

// restoreSeeds restores the rows of the migrations in tables that a test has changed.
func (im *image) restoreSeeds(ctx context.Context, tx pgx.Tx) error {
	var sums []string
	for i, one := range im.seeds {
		sums = append(sums, fmt.Sprintf("SELECT %d AS i, coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text)), '') AS sum FROM %s t", i, one.table))
	}

	if len(sums) == 0 {
		return nil
	}

	rows, err := tx.Query(ctx, strings.Join(sums, " UNION ALL ")+" ORDER BY i")
	if err != nil {
		return fmt.Errorf("compare the seeds: %w", err)
	}

	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (sum string, err error) {
		var i int
		return sum, row.Scan(&i, &sum)
	})
	if err != nil {
		return fmt.Errorf("compare the seeds: %w", err)
	}

	for i, one := range im.seeds {
		if found[i] == one.sum {
			continue
		}

		if _, err := tx.Exec(ctx, "DELETE FROM "+one.table); err != nil {
			return fmt.Errorf("restore %s: %w", one.table, err)
		}

		if _, err := tx.Exec(ctx, fmt.Sprintf(
			"INSERT INTO %[1]s (%[2]s) OVERRIDING SYSTEM VALUE SELECT %[2]s FROM json_populate_recordset(NULL::%[1]s, $1::text::json)",
			one.table, one.columns), one.rows); err != nil {
			return fmt.Errorf("restore %s: %w", one.table, err)
		}
	}

	return nil
}
