// Package inbox makes messages from the bus idempotent: the bus delivers at least once, and
// an event that was acted upon is not acted upon again.
//
// # Overview
//
// The memory is the table inbox: one row for each event id, with the outcome of the act. The
// database is authoritative; a process keeps nothing in memory, so that a delivery to another
// process, or after a restart, is recognised as well.
//
//	delivery ──▶ look up the event id ──▶ known ──────▶ record "repeated" ──▶ acknowledge
//	                      │
//	                      └──▶ not known ──▶ act ──▶ record the outcome ──▶ acknowledge
//	                                          │
//	                                          └──▶ error ──▶ no record; the bus redelivers
//
// The table inbound counts the outcomes of each subject for the metrics, in the same commit.
//
// Look-ups and records of deliveries that are handled at the same time share a statement
// (package batch).
//
// # Failure Handling
//
//   - The process dies between the act and the record: the event is acted upon again. So an act
//     must be harmless when it is repeated. The acts of package jobs are: each is a fenced
//     transition that a second try finds done.
//   - Two deliveries of one event are handled at the same time: neither finds a record and both
//     act. The second act finds the first one's work and returns "repeated". An outcome other
//     than "repeated" overwrites it, so that the order of the two records does not matter.
//   - The database is away: the look-up fails and nothing is acted upon. The caller returns the
//     error to the bus, which redelivers.
//   - A record fails after the act: the same as a process that dies between the two.
//   - A record is lost because the database went back in time: the event may be acted upon
//     again if the bus still has the message.
package inbox
