// Package relay publishes committed events: it reads the table outbox, puts each event into
// its envelope, and publishes the messages to the bus, at least once and in order for each
// task.
//
// # Overview
//
// Every process runs a Relay. One of them leads and publishes; the others stand by and take
// over when the leader is gone. The engine (package jobs) commits an event together with the
// transition that it reports, and one outbox row with the range of the event ids of its
// flush: an outbox range.
//
// The database is authoritative for:
//   - which process leads, and under which term (table relay_leader)
//   - which events must be published (outbox) and which were, up to which stream sequence
//     (outbox_published, for a day)
//   - which stream was published to, by the time of its creation (outbox_stream)
//
// The stream is authoritative for which messages are stored. When the two disagree,
// reconciliation makes the outbox agree with the stream; it never removes a message.
//
// # A batch
//
// Two goroutines of a leader session share the work. The reader owns the database session: it
// reads the next batch while the publisher has one in flight. At most one batch is in flight,
// so that no event overtakes an older one of its task.
//
//	             batches                      Publish
//	reader ────────────────────▶ publisher ───────────────▶ bus
//	  ▲                              │
//	  └──────────────────────────────┘
//	               acks
//
// The reader marks a batch with the same statement that reads the next ranges
// (OutboxAdvance): it moves the ranges of the batch from outbox to outbox_published, with
// the stream sequence of the batch's last message. A range without messages (transitions for
// the audit trail alone) has the sequence 0.
//
// An event that can never be published (no envelope can be made of it, the bus refuses its
// message for good, or its id is taken) is quarantined in the table outbox_parked with the
// reason; the events behind it are published.
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
//	                               stopped: the lead is given back
//
// Every write of a leader names its term and changes nothing once another process has taken
// the lead under the next one. The bus refuses a batch of a superseded leader: package
// natsbus publishes with the last sequence that the leader knows of. A leader that was
// stopped for longer than HeartbeatTimeout (SIGSTOP, a paused virtual machine) confirms the
// lead with a heartbeat before it publishes.
//
// A locked leader row is no reason to stop: without the row nobody else can take the lead
// either.
//
// # Failure Handling
//
//   - The process dies between publish and mark. The stream has messages behind the last
//     sequence in outbox_published, of two batches at most, and their ranges are still in
//     outbox. The next leader reads the ids behind that sequence, marks the events that the
//     stream has, and publishes the others. Nothing is published twice, however much later;
//     the stream's own deduplication would end after two minutes.
//   - The bus is away. Publish fails, the session ends, and the next one begins after a pause
//     that grows to 30 s (retry.EventPublishing). After ten failures in a row, or when half of
//     the batches fail, the breaker opens and one batch every 30 s tries the bus. A reconnect
//     ends the pause. Events wait in the outbox; none is dropped.
//   - The database is away. The session ends, and its connection with it. Acknowledged batches
//     that could not be marked are recognised as above.
//   - The database went back in time (an asynchronous standby was promoted, a backup was
//     restored). The stream has events behind the last known publication that no outbox range
//     holds. They are recorded in event_unknown with an error in the log. A task that survived
//     may produce another event with the id of a lost one: that event is quarantined, so that
//     no consumer sees one id with two contents.
//   - The stream lost its end (a power cut before fsync). Its last sequence, or the id there,
//     is not what outbox_published says. The ranges behind the last intact batch go back into
//     the outbox, oldest first, before anything new is published. Consumers see some events
//     again, under the same ids and equal to the byte.
//   - The stream was deleted or recreated. It has another time of creation: all publications
//     of the last day go back into the outbox.
//   - The stream loses its end without a reconnect (a server of a cluster fails). An
//     acknowledged batch then has a sequence that was given out before. The batches that had
//     these sequences are looked up in the stream before the new one is marked, and go back
//     into the outbox if they are not there.
package relay
