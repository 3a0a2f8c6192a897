package check

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-3f7a0631/tes/sql/checks"
)

// invariants are the sixteen. An invariant without rules has the reason.
var invariants = []Invariant{
	{ID: "I1", Sentence: "Acknowledged creates exist.", Verdict: NotChecked, Why: "only the callers know which creates were acknowledged"},
	{ID: "I2", Sentence: "Every task that has not ended has a live lease, a future schedule or an assignee."},
	{ID: "I3", Sentence: "A history is a legal path with contiguous seq."},
	{ID: "I4", Sentence: "Each transition has exactly one event."},
	{ID: "I5", Sentence: "Consumers received exactly the events of the log."},
	{ID: "I6", Sentence: "First deliveries are in order for each task."},
	{ID: "I7", Sentence: "Duplicates are byte-identical."},
	{ID: "I8", Sentence: "No event is published for a transition that was rolled back."},
	{ID: "I9", Sentence: "Each idempotency key has at least one side effect, and at most one for each attempt.", Verdict: NotChecked, Why: "only the called services know how often they were called"},
	{ID: "I10", Sentence: "No write of a superseded attempt is accepted."},
	{ID: "I11", Sentence: "There is exactly one terminal event."},
	{ID: "I12", Sentence: "There is one task for each request key."},
	{ID: "I13", Sentence: "Canary secrets appear in no output.", Verdict: NotChecked, Why: "needs a canary secret and all outputs"},
	{ID: "I14", Sentence: "Goroutines, connections and memory return to their baseline.", Verdict: NotChecked, Why: "concerns processes, not rows"},
	{ID: "I15", Sentence: "Clients see only 2xx, 4xx, or 503 with Retry-After.", Verdict: NotChecked, Why: "only the callers know the responses"},
	{ID: "I16", Sentence: "River and the tasks agree."},
}

// query is a rule in sql/checks.
type query struct {
	invariants []string // usually one; empty: not one of the sixteen
	id         string
	sentence   string
	atWork     bool // about work that processes should have done by now
	sql        string
}

var queries = load()

// load reads the rules, which are part of the program: a malformed file panics in every
// test.
func load() []query {
	files, err := fs.Glob(checks.Files, "*.sql")
	if err != nil {
		panic(err)
	}

	var all []query
	for _, file := range files {
		id := strings.TrimSuffix(file, ".sql")
		q := query{id: id, sql: read(file)}

		// i03_… belongs to I3, x_… to no invariant.
		if number, _, _ := strings.Cut(id, "_"); number != "x" {
			q.invariants = []string{"I" + strings.TrimLeft(number[1:], "0")}
		}

		// The leading comment, up to the first blank line.
		head, _, _ := strings.Cut(q.sql, "\n\n")
		for line := range strings.Lines(head) {
			text, comment := strings.CutPrefix(strings.TrimSpace(line), "-- ")
			if !comment {
				break
			}

			also, found := strings.CutPrefix(text, "(also ")
			switch {
			case found:
				q.invariants = append(q.invariants, strings.TrimSuffix(also, ")"))
			case text == "(at work)":
				q.atWork = true
			default:
				q.sentence = strings.TrimSpace(q.sentence + " " + text)
			}
		}

		all = append(all, q)
	}

	return all
}

func read(file string) string {
	text, err := checks.Files.ReadFile(path.Clean(file))
	if err != nil {
		panic(err)
	}

	return strings.TrimSuffix(strings.TrimSpace(string(text)), ";")
}

// psqlGrace is the files' only parameter, in the syntax of psql: operators run the files by hand.
const psqlGrace = ":'grace'"

// bind replaces the parameter of a query by the grace, if the query has the parameter.
func bind(sql string, grace time.Duration) (string, []any) {
	if !strings.Contains(sql, psqlGrace) {
		return sql, nil
	}
	return strings.ReplaceAll(sql, psqlGrace, "$1::text"), []any{fmt.Sprintf("%f seconds", grace.Seconds())}
}

func (q query) check(ctx context.Context, tx pgx.Tx, o Options) (Rule, error) {
	rule := Rule{ID: q.id, Sentence: q.sentence, Verdict: OK}

	// Without processes, nothing is done in time.
	if q.atWork && o.AtRest {
		rule.Verdict, rule.Why = NotChecked, "no process is at work"
		return rule, nil
	}

	sql, args := bind(q.sql, o.Grace)

	// The window function counts all offences, the LIMIT bounds the rows that are read.
	sql = fmt.Sprintf("SELECT b.task, b.detail, count(*) OVER () FROM (\n%s\n) b LIMIT %d", sql, shown)
	late, err := attempt(ctx, tx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, sql, append([]any{pgx.QueryExecModeExec}, args...)...)
		if err != nil {
			return err
		}

		rule.First, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (found Offence, err error) {
			return found, row.Scan(&found.Task, &found.Detail, &rule.Count)
		})

		return err
	})

	switch {
	case err != nil:
		return rule, fmt.Errorf("check %s: %w", q.id, err)
	case late:
		return Rule{ID: q.id, Sentence: q.sentence, Verdict: NotChecked, Why: tooLong(o), tooLong: true}, nil
	case rule.Count > 0:
		rule.Verdict = Broken
	}

	return rule, nil
}

func tooLong(o Options) string { return fmt.Sprintf("took longer than %v", o.Timeout) }
