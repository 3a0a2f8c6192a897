// Package callback posts status updates to the callbackUrl of tasks, at least once and in order
// for each task, with the same id and the same bytes at every repetition.
//
// # Overview
//
// Table callback has one row for each task with updates to deliver: the number of the last
// delivered event (told), and the number of the newest one (upto). The engine writes the row in
// the commit of the transition; events and task are read when the update is sent.
//
// Every process runs a Dispatcher, and several share the work. A dispatcher claims due rows for
// three times Config.Timeout, posts the updates of each claimed task in order, and settles the
// rows: the new told, or the time of the next try. The database is authoritative; the memory of
// a dispatcher (claims in flight, breakers of hosts) may be lost at any time.
//
//	          claim                   post, in order               settle
//	waiting ──────────▶ in flight ─────────────────────▶ back ──────────────▶ told = upto: done
//	   ▲                    │                                 │
//	   │                    │ process died:                   ├──▶ told < upto: due now
//	   │                    │ the claim runs out              ├──▶ no answer or refused: due later
//	   └────────────────────┴─────────────────────────────────┤
//	                                                          └──▶ final, or too old: abandoned
//
// A single goroutine, the loop of Run, owns all state and writes all rows. Each delivery is a
// goroutine of its own and returns to the loop. A task has one delivery at a time, because the
// claim is fenced: settling under an older claim has no effect.
//
// # Hosts
//
// A slow host must not hold up the others, so a host has at most Config.SlotsPerHost of the
// Config.Slots deliveries. A host that fails has a breaker (retry.ServiceCalls): after 30 %
// failures only one delivery at a time tries the host, once in Config.OpenFor.
//
// # Failure Handling
//
//   - The process dies between the post and the settling: the claim runs out, and another
//     process posts the same update again, under the same id and with the same body.
//   - A process wakes up after the claim has run out: its settling names an older claim and
//     has no effect.
//   - The host is away, or answers 5xx, 408 or 429: the update is posted again after a pause
//     that doubles up to Config.BackoffMax, or after the time that the host asked for.
//   - The host answers another error: the pause doubles up to Config.RefusedMax, and the breaker
//     stays closed.
//   - The answer is 410, or the address may not be called: the update is abandoned at once.
//     Later updates of the task are posted.
//   - The update is older than Config.AbandonAfter when a post fails: the update is abandoned. If
//     the host is away, the dispatcher also abandons every other update of that host older than
//     AbandonAfter. Abandoned updates are in table callback_given_up.
//   - The database is away: deliveries in flight go on, and their results wait in memory. If the
//     process dies meanwhile, the updates are posted again.
//   - Another session has a row locked: the delivery waits apart and is settled when the lock is
//     gone, without another post. All other deliveries are settled meanwhile.
package callback
