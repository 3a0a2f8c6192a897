// Package check holds a database, and what a consumer wrote down, against the
// sixteen invariants of the service. It reads, in one snapshot, and takes no lock
// that a move could wait for, so it may be used on a system at work.
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

// Options say how strictly to look. The zero value is for a database at work.
type Options struct {
	// Grace is how long something may be under way before it counts as lost;
	// default one minute.
	Grace time.Duration
	// AtRest says that no process is at work: nothing is under way, and nothing
	// can be late. Grace is not used then. Default false.
	AtRest bool
	// Timeout bounds each rule; default one minute. A rule that takes longer is not
	// checked.
	Timeout time.Duration
	// Ledger is what a consumer wrote down, read before Run is called: what was
	// told after the snapshot would be unknown to it. Default nothing.
	Ledger *Ledger
	// Since is when the ledger begins: older events need not be in it. Default the
	// beginning of the log.
	Since time.Time
}

// Verdict is what came of a rule or an invariant.
type Verdict string

// Verdicts. What was not checked is never OK.
const (
	OK         Verdict = "ok"
	Broken     Verdict = "broken"
	NotChecked Verdict = "not checked"
)

// Report is what was found.
type Report struct {
	At         time.Time   `json:"at"` // the moment of the snapshot
	Grace      string      `json:"grace"`
	Broken     int         `json:"broken"`     // rules
	Incomplete int         `json:"incomplete"` // rules that could not be checked in time
	Invariants []Invariant `json:"invariants"`
	More       []Rule      `json:"more"` // rules beyond the sixteen
}

// Invariant is one of the sixteen. It is OK if all its rules were checked and hold.
type Invariant struct {
	ID       string  `json:"id"`
	Sentence string  `json:"sentence"`
	Verdict  Verdict `json:"verdict"`
	Why      string  `json:"why,omitempty"` // it was not checked
	Rules    []Rule  `json:"rules,omitempty"`
}

// Rule is one way in which an invariant can be broken.
type Rule struct {
	ID       string    `json:"id"`
	Sentence string    `json:"sentence"`
	Verdict  Verdict   `json:"verdict"`
	Why      string    `json:"why,omitempty"` // it was not checked
	Count    int       `json:"count,omitempty"`
	First    []Offence `json:"first,omitempty"` // at most twenty

	tooLong bool
}

// Offence is one thing that breaks a rule.
type Offence struct {
	Task   string `json:"task,omitempty"`
	Detail string `json:"detail"`
}

// shown is how many offences of a rule are kept; the others are counted.
const shown = 20

func (r *Rule) offend(task, format string, args ...any) {
	r.Verdict = Broken
	if r.Count++; len(r.First) < shown {
		r.First = append(r.First, Offence{task, fmt.Sprintf(format, args...)})
	}
}

// ErrSchema says that the tables are not those of this program.
var ErrSchema = errors.New("the database is not at this program's schema: run tes migrate up")

// Run checks everything that can be checked. The error says that it could not
// look; what it saw is in the report.
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
	tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return Report{}, fmt.Errorf("open a snapshot: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := settle(ctx, tx, o.Timeout); err != nil {
		return Report{}, err
	}
	report := Report{Grace: o.Grace.String()}
	if err := tx.QueryRow(ctx, "SELECT now()").Scan(&report.At); err != nil {
		return Report{}, fmt.Errorf("open a snapshot: %w", err)
	}
	found := map[string][]Rule{}
	for _, one := range queries {
		rule, err := one.check(ctx, tx, o)
		if err != nil {
			return Report{}, err
		}
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

// settle makes the session what this needs: each query reads whole tables once, so
// joins by hash and merge, which the engine's sessions do without, are wanted.
func settle(ctx context.Context, tx pgx.Tx, timeout time.Duration) error {
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

// attempt runs a part of the check so that the snapshot outlives its failure. late
// says that it took too long.
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
	switch refused.Code {
	case "57014", "55P03": // query_canceled, lock_not_available
		return true, nil
	case "42P01", "42703", "42883", "42704", "3F000": // undefined table, column, function, type; no such schema
		return false, fmt.Errorf("%w (%s)", ErrSchema, refused.Message)
	}
	return false, err
}

// fill sorts the rules into the invariants.
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

// sum is the worst of the rules' verdicts.
func sum(rules []Rule) (verdict Verdict, why string) {
	verdict = OK
	for _, rule := range rules {
		switch {
		case rule.Verdict == Broken:
			return Broken, ""
		case rule.Verdict == NotChecked && verdict == OK:
			verdict, why = NotChecked, rule.Why
			if len(rules) > 1 {
				why = "in part: " + why
			}
		}
	}
	return verdict, why
}

// rules are all of them, each once, though it may be part of two invariants.
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

// Offending lists every broken rule.
func (r Report) Offending() []Rule {
	return slices.DeleteFunc(r.rules(), func(rule Rule) bool { return rule.Verdict != Broken })
}
