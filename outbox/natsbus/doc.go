// Package natsbus is the event bus on NATS JetStream, and the only package that imports NATS.
//
// # Overview
//
// A Bus connects to a server by its URL, or runs a server inside this process; all calls work the
// same with both. The bus has three streams:
//
//   - TES_EVENTS (task.>): published events. Publish writes it; Tail, Stored and IDs read it.
//   - TES_INBOUND (workflow.>, integration.>, system.>): messages from other services, for
//     Consume. Subjects that another team's stream captures are left to that stream.
//   - TES_DEADLETTER (deadletter.>): messages that could not be processed, with the reason.
//
// The server is authoritative for:
//   - which messages are stored, and at which sequence
//   - which subjects a stream captures
//   - how often a message was delivered
//
// The operator is authoritative for the limits of a stream. Only the settings that the promises
// below depend on are adjusted.
//
// This process is authoritative for nothing but its own connection. What it knows of a stream is
// read again from the server after each reconnect.
//
// # Where a line belongs
//
// A Bus has no work of its own: its methods, in bus.go, call the parts. Each part uses those below
// it, and none above.
//
//	┌──────────────────────┬──────────────────────┬──────────────────────┐
//	│ publisher            │ consumers            │ maintainer           │
//	│ publish.go, fence.go │ consume.go,          │ maintain.go          │
//	│                      │ deadletter.go        │                      │
//	├──────────────────────┤                      │                      │
//	│ reader               │                      │                      │
//	│ tail.go              │                      │                      │
//	├──────────────────────┴──────────────────────┴──────────────────────┤
//	│ streams: which streams there are                       streams.go  │
//	│ streamSetup: the settings and replicas of one stream   setup.go    │
//	├────────────────────────────────────────────────────────────────────┤
//	│ connection: how long a request may take, what Close waits for      │
//	│ connection.go, dial.go, tls.go; the embedded server in embed.go    │
//	├────────────────────────────────────────────────────────────────────┤
//	│ health: the last error of each kind                    health.go   │
//	└────────────────────────────────────────────────────────────────────┘
//
// Each part guards its own fields with its own mutex, and calls no part above health while the
// mutex is locked. subscribe.go has the calls of the fakes and the tests.
//
// # Promises
//
//   - Publish returns nil only if every message of the batch is stored, in order.
//   - A message that is published again within the duplicate window is stored once.
//   - A batch is not stored if another process has published since Tail was called (the fence).
//   - Consume acknowledges a message only after its handler has returned nil, or after it was
//     stored as a dead letter.
//
// The acknowledgement of a server that does not sync every write is not a promise: after a power
// cut the message may be gone. So the relay records its publications and compares them with Stored
// and Tail after every reconnect.
//
// # The states of a connection
//
//	Start ──▶ connecting ──▶ connected ──▶ streams ensured ──▶ OnReconnect, Publish, Consume
//	              ▲              ▲               │    ▲
//	              │              │ reconnect     │    │ created again, adjusted
//	              │              │               ▼    │
//	              └──────────────┴────── connection lost, stream missing,
//	                                     probe failed
//
// A single goroutine, the maintainer, repeats the work: it ensures the streams after each reconnect,
// when a call finds that a stream is missing, and when a probe of the idle stream fails. A call that
// cannot go on without its stream (Publish, Consume) also tries once itself. Open waits for the first
// time; Start does not.
//
// # Failure Handling
//
//   - The server is away: every call fails with ErrDisconnected at once, Consume waits, and the
//     client reconnects for ever. A request in flight ends with the connection, and it is unknown
//     whether its messages are stored.
//   - The server refuses the credentials or the certificates: an error in the log, once; the client
//     tries again every two seconds, because credentials are renewed.
//   - A stream was deleted: it is created again within ten seconds, empty, and OnReconnect's
//     functions are called. The batch that found the loss fails.
//   - The stream is full: Publish fails, Health says so, and events wait in the outbox.
//   - The stream has no leader (too few servers of a cluster run): the same.
//   - JetStream does not answer: after two requests the bus connects to another server of the
//     cluster.
//   - A handler fails or panics: the message is delivered again after a pause that doubles from 1 s
//     to 30 s, and becomes a dead letter after Config.MaxDeliveries.
//   - A process dies in a handler: the server delivers the message again after ackWait.
package natsbus
