// Package natsbus is the event bus on NATS JetStream, and the only package that
// imports NATS. A Bus either joins a server by its URL or runs one inside this
// process; everything else is the same for both.
//
// What the bus promises: Publish returns nil only when every message of the
// batch is stored, in the order given; a message published again within the
// duplicate window is stored once. What it does not promise: an
// acknowledgement of a server that does not sync every write is evidence and
// not proof, so keep what was published and compare it with Stored and Tail
// after every reconnect.
package natsbus
