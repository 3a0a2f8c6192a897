package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Options configure a check. The zero value is for a database that processes work on.
type Options struct {
	// Grace is the time for which a row may be between two states before the row counts as
	// lost; default a minute.
	Grace time.Duration
	// AtRest asserts that no process is working, so that no row is between two states;
	// Grace is ignored. Default false.
	AtRest bool
	// Timeout limits each rule; default a minute. A rule that takes longer is NotChecked.
	Timeout time.Duration
	// Ledger is the record of a consumer, complete before Run is called: events published
	// after the snapshot would be unknown to the log. Default none.
	Ledger *Ledger
	// Since is the beginning of the ledger: older events need not be recorded. Default
	// the beginning of the log.
	Since time.Time
}

// Verdict is the result of a rule or an invariant.
type Verdict string

// The verdicts.
const (
	OK         Verdict = "ok"
	Broken     Verdict = "broken"
	NotChecked Verdict = "not checked"
)

// Report is the result of a check.
type Report struct {
	At         time.Time   `json:"at"` // time of the snapshot
	Grace      string      `json:"grace"`
	Broken     int         `json:"broken"`     // number of broken rules
	Incomplete int         `json:"incomplete"` // number of rules that reached the timeout
	Invariants []Invariant `json:"invariants"`
	More       []Rule      `json:"more"` // rules beyond the sixteen
}

// Invariant is one of the sixteen. An invariant is OK if its rules were checked and hold.
type Invariant struct {
	ID       string  `json:"id"`
	Sentence string  `json:"sentence"`
	Verdict  Verdict `json:"verdict"`
	Why      string  `json:"why,omitempty"` // reason for NotChecked
	Rules    []Rule  `json:"rules,omitempty"`
}

// Rule is a way in which an invariant can be broken.
type Rule struct {
	ID       string    `json:"id"`
	Sentence string    `json:"sentence"`
	Verdict  Verdict   `json:"verdict"`
	Why      string    `json:"why,omitempty"` // reason for NotChecked
	Count    int       `json:"count,omitempty"`
	First    []Offence `json:"first,omitempty"` // at most twenty

	tooLong bool
}

// Offence is a row that breaks a rule.
type Offence struct {
	Task   string `json:"task,omitempty"`
	Detail string `json:"detail"`
}

// shown is the maximum number of offences in a Rule; Count counts every offence.
const shown = 20

func (r *Rule) offend(task, format string, args ...any) {
	r.Verdict = Broken
	if r.Count++; len(r.First) < shown {
		r.First = append(r.First, Offence{task, fmt.Sprintf(format, args...)})
	}
}

// ErrSchema reports that the tables do not match this program.
var ErrSchema = errors.New("the database is not at this program's schema: run tes migrate up")

// Run checks every invariant that can be checked in a database. An error is a check that could
// not be completed; broken rules are in the report.
func Run(ctx context.Context, pool *pgxpool.Pool, o Options) (Report, error) {
	if o.Grace == 0 {
		o.Grace = time.Minute
	}
	if o.AtRest {
		o.Grace = 0
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}

	// A single snapshot for the rules, so that the rules do not contradict each other.
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return Report{}, fmt.Errorf("open a snapshot: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()

	if err := configureSession(ctx, tx, o.Timeout); err != nil {
		return Report{}, err
	}

	report := Report{Grace: o.Grace.String()}
	var mayRead bool
	if err := tx.QueryRow(ctx, "SELECT now(), has_schema_privilege('public', 'USAGE')").Scan(&report.At, &mayRead); err != nil {
		return Report{}, fmt.Errorf("open a snapshot: %w", err)
	}
	// Without the right, PostgreSQL reports missing tables, which attempt takes for ErrSchema.
	if !mayRead {
		return Report{}, errors.New("the login may not read the tables of tes: check needs one that is in the role tes_app; tes_report, for readers, has the views of the schema report alone")
	}

	found := map[string][]Rule{}
	for _, one := range queries {
		rule, err := one.check(ctx, tx, o)
		if err != nil {
			return Report{}, err
		}

		// A rule may belong to two invariants: see rules.
		for _, invariant := range one.invariants {
			found[invariant] = append(found[invariant], rule)
		}

		if len(one.invariants) == 0 {
			report.More = append(report.More, rule)
		}
	}

	heard, err := o.Ledger.check(ctx, tx, o)
	if err != nil {
		return Report{}, err
	}

	for invariant, rule := range heard {
		found[invariant] = append(found[invariant], rule)
	}

	report.fill(found)
	return report, nil
}

// configureSession sets the planner's options for queries that read whole tables once: hash
// and merge joins, which the sessions of the engine switch off.
func configureSession(ctx context.Context, tx pgx.Tx, timeout time.Duration) error {
	// Several statements at once need the simple protocol.
	_, err := tx.Exec(ctx, fmt.Sprintf(`
		SET LOCAL statement_timeout = %d;
		SET LOCAL lock_timeout = '5s';
		SET LOCAL enable_seqscan = on;
		SET LOCAL enable_hashjoin = on;
		SET LOCAL enable_mergejoin = on;
		SET LOCAL max_parallel_workers_per_gather = 0;
		SET LOCAL jit = off`, timeout.Milliseconds()), pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return fmt.Errorf("prepare the session: %w", err)
	}

	return nil
}

// attempt runs do in a savepoint, so that the snapshot survives an error. late reports a
// timeout.
func attempt(ctx context.Context, tx pgx.Tx, do func(pgx.Tx) error) (late bool, err error) {
	part, err := tx.Begin(ctx)
	if err != nil {
		return false, fmt.Errorf("begin a part: %w", err)
	}
	defer func() { _ = part.Rollback(ctx) }()

	err = do(part)
	var refused *pgconn.PgError
	if err == nil || !errors.As(err, &refused) || ctx.Err() != nil {
		return false, err
	}

	// An error of the statement, inside the savepoint.
	switch refused.Code {
	case "57014", "55P03": // query_canceled, lock_not_available
		return true, nil
	case "42P01", "42703", "42883", "42704", "3F000": // undefined table, column, function, type; no such schema
		return false, fmt.Errorf("%w (%s)", ErrSchema, refused.Message)
	}

	return false, err
}

// fill assigns the rules to the invariants, and counts.
func (r *Report) fill(found map[string][]Rule) {
	for _, one := range invariants {
		one.Rules = found[one.ID]
		if len(one.Rules) > 0 {
			one.Verdict, one.Why = sum(one.Rules)
		}
		r.Invariants = append(r.Invariants, one)
	}

	for _, rule := range r.rules() {
		if rule.Verdict == Broken {
			r.Broken++
		}
		if rule.tooLong {
			r.Incomplete++
		}
	}
}

// sum returns the worst verdict of the rules.
func sum(rules []Rule) (verdict Verdict, why string) {
	verdict = OK
	for _, rule := range rules {
		switch {
		case rule.Verdict == Broken:
			return Broken, ""
		case rule.Verdict == NotChecked && verdict == OK:
			verdict, why = NotChecked, rule.Why

			// The rest of the invariant's rules may have been checked.
			if len(rules) > 1 {
				why = "in part: " + why
			}
		}
	}

	return verdict, why
}

// rules returns every rule once, even if a rule belongs to two invariants.
func (r Report) rules() []Rule {
	var all []Rule
	seen := map[string]bool{}
	for _, one := range append(slices.Clone(r.Invariants), Invariant{Rules: r.More}) {
		for _, rule := range one.Rules {
			if !seen[rule.ID] {
				all = append(all, rule)
			}
			seen[rule.ID] = true
		}
	}

	return all
}

// Offending returns the broken rules.
func (r Report) Offending() []Rule {
	return slices.DeleteFunc(r.rules(), func(rule Rule) bool { return rule.Verdict != Broken })
}
