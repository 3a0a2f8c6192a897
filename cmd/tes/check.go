package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/seed-3f7a0631/tes/db/pgpool"
	"github.com/seed-3f7a0631/tes/jobs/check"
)

// checkCmd checks a database against the invariants.
type checkCmd struct {
	Ledger  string        `type:"existingfile" placeholder:"FILE" help:"The deliveries that a consumer received, as lines of JSON."`
	Since   time.Time     `placeholder:"TIME" help:"When the ledger begins, such as 2026-01-31T09:00:00Z: events before TIME may be missing from it. Default: the first event."`
	Grace   time.Duration `default:"60s" help:"How long an event or a job may be under way before it counts as lost."`
	Timeout time.Duration `default:"60s" help:"How long a rule may take. A rule that takes longer counts as not checked."`
	JSON    bool          `name:"json" help:"Print JSON."`
}

// Help is the long help text of tes check.
func (checkCmd) Help() string {
	return `The check only reads, in a single snapshot, and may run beside the service. Role tes_app is
enough. Each rule reads whole tables: with many millions of rows, use a standby.

The exit code is 0 if no rule is broken, and 1 if a rule is broken or could not be checked.
A rule that needs knowledge from outside the database is listed as not checked.

The ledger has a line for each delivery, repetitions too, in the order of receipt:

  {"id": "…", "subject": "task.created", "task": "…", "seq": 1, "sha256": "…"}

id, task and seq are the headers ce-id, ce-subject and ce-sequence; sha256 is that of the
body, in hex. Stop the consumer, or copy the file, before you check.`
}

// Run checks and prints the report.
func (c *checkCmd) Run(s *cmdContext) error {
	switch {
	case c.Grace <= 0:
		return &usageError{"--grace must be more than 0"}
	case c.Timeout <= 0:
		return &usageError{"--timeout must be more than 0"}
	}

	if err := needsDatabase(s); err != nil {
		return err
	}

	// The ledger is read before the snapshot is taken, so that each delivery in the ledger is of an
	// event in the snapshot, unless the event is lost.
	o := check.Options{Grace: c.Grace, Timeout: c.Timeout, Since: c.Since}
	if c.Ledger != "" {
		var err error
		if o.Ledger, err = readLedger(c.Ledger); err != nil {
			return err
		}
	}

	// A single connection, because the rules share a snapshot. A standby will do.
	pool, err := pgpool.Open(s.ctx, s.cfg.direct(), pgpool.Config{Name: "tes check", MaxConns: 1, AnyServer: true})
	if err != nil {
		return err
	}

	defer pool.Close()
	report, err := check.Run(s.ctx, pool, o)
	if err != nil {
		return err
	}

	if c.JSON {
		err = printJSON(s, report)
	} else {
		printReport(s, report)
	}

	return join(err, verdict(report))
}

func readLedger(name string) (*check.Ledger, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}

	defer func() { _ = file.Close() }()
	ledger, err := check.ReadLedger(file)
	if err != nil {
		return nil, fmt.Errorf("read the ledger %s: %w", name, err)
	}

	return ledger, nil
}

// verdict is the error for a report with broken or unchecked rules; nil if every rule holds.
func verdict(r check.Report) error {
	var errs []error
	if r.Broken > 0 {
		errs = append(errs, fmt.Errorf("rules that are broken: %d", r.Broken))
	}
	if r.Incomplete > 0 {
		errs = append(errs, fmt.Errorf("rules that took longer than --timeout: %d", r.Incomplete))
	}
	return errors.Join(errs...)
}

// printReport prints a line for each rule, and the violations of a broken one.
func printReport(s *cmdContext, r check.Report) {
	s.printf("At %s, with a grace of %s.\n\n", r.At.UTC().Format(time.RFC3339), r.Grace)

	// The reader must see that an unchecked invariant was not found to hold.
	blind := 0
	for _, one := range r.Invariants {
		if one.Verdict == check.NotChecked {
			blind++
		}
		s.printf("%-11s  %-3s  %s%s\n", one.Verdict, one.ID, one.Sentence, because(one.Why))
		printRules(s, one.Rules)
	}

	s.printf("\nOther rules:\n")
	printRules(s, r.More)
	s.printf("\nBroken rules: %d. Invariants that were not checked, or in part: %d of %d.\n", r.Broken, blind, len(r.Invariants))
}

func printRules(s *cmdContext, rules []check.Rule) {
	for _, rule := range rules {
		s.printf("%-11s       %s: %s%s\n", rule.Verdict, rule.ID, rule.Sentence, because(rule.Why))
		for _, one := range rule.First {
			s.printf("                   %s\n", row(one))
		}
		if more := rule.Count - len(rule.First); more > 0 {
			s.printf("                   and %d more\n", more)
		}
	}
}

func row(one check.Offence) string {
	if one.Task == "" {
		return one.Detail
	}
	return one.Task + "  " + one.Detail
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return " (" + why + ")"
}
