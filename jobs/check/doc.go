// Package check tests a database against the sixteen invariants of the service, and, if
// a consumer has recorded the events that it received (a Ledger), the events against
// the log of events. The check only reads, in one snapshot, and takes no lock that a
// transition could wait for: it may be used while processes are working.
//
//	sql/checks/*.sql ──load──► rules (rules.go) ─┐   one query each; a row is an offence
//	                                             ├─► Report: rules by invariant, with the
//	consumer's file ──ReadLedger──► Ledger ──────┘   first twenty offences of each rule
//	                                (ledger.go)
//
// # Rules and invariants
//
// A file of sql/checks is one rule. Its name gives the invariant: i03_history_legal
// belongs to I3, x_… to no invariant. Its leading comment gives the sentence of the
// report; a line "(also I4)" assigns the rule to a second invariant; a line "(at work)"
// marks a rule about work that processes should have done by now, which is not checked
// on a database at rest.
//
// An invariant is OK only if all its rules were checked and hold. Invariants that cannot
// be seen in a database (what callers received, memory, logs) are NotChecked, with the
// reason. NotChecked is never counted as OK.
//
// # Work under way
//
// On a running system, some rows are legitimately between two states. Rules therefore
// ignore everything younger than Options.Grace. With Options.AtRest the caller asserts
// that no process is working, and the grace is zero.
//
// # Failures
//
// Each rule runs in a savepoint with a timeout. A rule that is canceled by the timeout is
// NotChecked and counts as incomplete; the snapshot and the other rules go on. A missing
// table or column ends the check with ErrSchema. Other errors end the check too.
package check
