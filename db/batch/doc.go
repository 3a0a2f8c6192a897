// Package batch is group commit: callers add items one at a time, and a Batcher writes many
// of them with a single statement.
//
// # Overview
//
// A Batcher is a queue and up to Config.Reserve flushers. A flusher takes a batch from the
// head of the queue, calls the flush function with it, and repeats this until the queue is
// empty; then it ends. There is no timer: an idle Batcher flushes an item at once, and a busy
// Batcher collects the next batch while the last batch is in flight. So a batch grows with the
// load, and an item of an idle system does not wait.
//
//	     Add                take up to MaxItems and MaxBytes
//	───────────▶ queue ───────────────────────────────────────▶ flush(batch)
//	                                                                 │
//	                                    a row of the batch is locked │ Aside(work)
//	                                                                 ▼
//	                                                        work, outside the flushers
//
// The flush function owns the batch and must answer every item in every case: a Batcher knows
// neither results nor errors.
//
// # Promises
//
//   - Add never blocks and never drops an item.
//   - Every item is in exactly one batch.
//   - Drain returns after every item that was added before, and all work that was put aside,
//     is finished.
//
// A Batcher does not promise an order, not even for the items of one task. Two flushers may
// overtake each other, large items have a queue of their own, and an item put aside is overtaken
// by later items. A caller with a second write that builds on the first waits for the answer to
// the first. Between callers, the fence in the statement decides.
//
// A Batcher keeps items in memory only. A process that dies loses the items not written yet.
//
// # Flushers, Backlog and Reserve
//
// At most Config.Flushers run, as long as no flush takes longer than 100 ms. The first starts with
// the first item. Every further flusher starts when Config.Backlog items wait, because two
// half empty statements cost the database more than a full statement.
//
// A flush that is away for longer than 100 ms is late: as a rule, it waits for a row that
// another session has locked. When all running flushers are late, another flusher starts
// for the waiting items, up to Config.Reserve flushers in total. So one lock delays one batch and not the
// batches behind it, and a database that hangs does not use up the connection pool.
//
// # Large items
//
// With Config.Size, a batch is also bounded by MaxBytes, and a larger item is a batch of its
// own. Items of 64 KiB and more have a queue and one flusher (two, if one is late) of their
// own, so that small items do not wait until hundreds of megabytes are written.
//
// # Aside
//
// A flush function that would have to wait, say for a locked row or for a second try of half
// a batch, hands that work to Aside and returns. The flusher goes on with the next batch, and
// Drain waits for the work.
package batch
