// Package relay publishes committed events: a relay reads the table outbox, makes an envelope of
// each event, and publishes the messages to the bus, at least once and in order for each task.
//
// # Overview
//
// Every process runs a Relay. The leader publishes; the other processes stand by and take over
// when the leader is gone. The engine (package jobs) commits an event together with the
// reported transition, and for each flush an outbox row with the range of event ids: an outbox
// range.
//
// The database is authoritative for:
//   - which process leads, and under which term (table relay_leader)
//   - which events must be published (outbox) and which were, up to which stream sequence
//     (outbox_published, for a day)
//   - which stream was published to, by the time of its creation (outbox_stream)
//
// The stream is authoritative for which messages are stored. When the two disagree,
// reconciliation makes the outbox agree with the stream, and never removes a message.
//
// # A batch
//
// Two goroutines of a leader session share the work. The reader owns the database session
// and reads the next batch while the publisher has a batch in flight. At most one batch is in
// flight, so that no event overtakes an older event of the same task.
//
//	             batches                      Publish
//	reader ────────────────────▶ publisher ───────────────▶ bus
//	  ▲                              │
//	  └──────────────────────────────┘
//	               acks
//
// The reader marks a batch with the same statement that reads the next ranges
// (OutboxAdvance), and so moves the ranges of the batch from outbox to outbox_published, with
// the stream sequence of the batch's last message. A range without messages (transitions for
// the audit trail alone) has the sequence 0.
//
// An event that can never be published (an envelope cannot be encoded, the bus refuses the message
// for good, or the id is taken) is quarantined in the table outbox_parked with the reason; later
// events are published.
//
// # A leader session
//
//	           ┌──────────────────────────────────────────────┐
//	┌─────────▶│                 standing by                  │
//	│          │   asks for the lead every ElectInterval      │
//	│          └──────────────────────┬───────────────────────┘
//	│                                 │ RelayTake: no leader, its session is gone,
//	│                                 │ or its heartbeat is older than HeartbeatTimeout
//	│                                 ▼
//	│          ┌──────────────────────────────────────────────┐
//	│          │                  taking over                 │──▶ a program from before
//	│          │   ends the predecessor's database session    │    relay_leader leads
//	│          └──────────────────────┬───────────────────────┘
//	│                                 ▼
//	│          ┌──────────────────────────────────────────────┐
//	│          │                 reconciling                  │◀─┐ the bus was reconnected
//	│          │   compares stream and outbox_published       │  │ (Recheck)
//	│          └──────────────────────┬───────────────────────┘  │
//	│                                 ▼                          │
//	│          ┌──────────────────────────────────────────────┐  │
//	│          │                   publishing                 │──┘
//	│          │   heartbeats five times in HeartbeatTimeout  │
//	│          └──────────────────────┬───────────────────────┘
//	│   another term, an error,       │ asked to stop: publishes what is committed,
//	└─────────────────────────────────┤ for at most drainTimeout
//	                                  ▼
//	                               stopped: the lead is free
//
// Every write of a leader names its term and has no effect once another process has taken
// the lead under the next one. The bus refuses a batch of a superseded leader: package
// natsbus publishes with the last sequence the leader knows. A leader that was
// stopped for longer than HeartbeatTimeout (SIGSTOP, a paused virtual machine) confirms the
// lead with a heartbeat before the next batch.
//
// A locked leader row is no reason to stop: without the row no other process can take
// the lead either.
//
// # Failure Handling
//
//   - The process dies between publish and mark. The stream has messages behind the last
//     sequence in outbox_published, of at most two batches (one acknowledged but not marked, and
//     one in flight), and their ranges are still in outbox. The next leader reads the ids behind the last sequence, marks the events the stream
//     has, and publishes the rest. In this case the stream stores no event twice, even if the next
//     leader comes days later; the stream's own deduplication would end after two minutes.
//   - The bus is away. Publish fails, the session ends, and the next one begins after a pause
//     that grows to 30 s (retry.EventPublishing). After ten failures in a row, or when half of
//     the batches fail, the breaker opens and one batch every 30 s tries the bus. A reconnect
//     ends the pause. Events wait in the outbox and are never dropped.
//   - The database is away. The session ends, and the connection with the session. Acknowledged batches
//     that could not be marked are recognised as above.
//   - The database went back in time (an asynchronous standby was promoted, a backup was
//     restored). The stream has events behind the last known publication that no outbox range
//     holds. Lost events are recorded in event_unknown with an error in the log. A surviving task
//     may produce another event with the id of a lost event: the new event is quarantined, so
//     that no consumer sees an id with two contents.
//   - The stream lost its end (a power cut before fsync). The last sequence, or the id there,
//     differs from outbox_published. The ranges behind the last intact batch go back into
//     the outbox, oldest first, before anything new is published. Consumers see some events
//     again, under the same ids and equal to the byte.
//   - The stream was deleted or recreated. The time of creation differs: the publications of
//     the last day go back into the outbox.
//   - The stream loses its end without a reconnect (a server of a cluster fails). An
//     acknowledged batch then has a sequence of an older batch. The older batches with these
//     sequences are looked up in the stream before the new batch is marked, and missing batches
//     go back into the outbox.
package relay
