// Package checks holds the rules that every database of tes keeps to, each as a
// query for what breaks it: one file a rule, named after the invariant it is part
// of (x: of none), its sentence in the first comment. Each returns task and
// detail. They run by psql too:
//
//	psql "$TES_DATABASE_URL" -v grace='60 s' -f sql/checks/i16_pending_job.sql
//
// A rule that says "(at work)" is about what processes should have done by now; one
// that says "(also I2)" is part of a second invariant.
package checks

import "embed"

// Files are the rules, and in ledger what a consumer's ledger is held against.
//
//go:embed *.sql ledger/*.sql
var Files embed.FS
