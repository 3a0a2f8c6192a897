package natsbus

import (
	"errors"
	"fmt"
)

// ErrClosed is what every operation returns once Close has been called.
var ErrClosed = errors.New("the bus is closed")

// ErrDisconnected says that there is no connection to the server, or that it
// was lost before the answer came: whether the message is stored is not known.
// Publish the same batch again; what is stored already is recognised.
var ErrDisconnected = errors.New("no connection to the NATS server")

// ErrMoved says that somebody else has published to the events stream since its end was
// read: nothing of the message, or batch, is stored. Read the tail and compare before
// publishing again.
var ErrMoved = errors.New("the stream does not end where it did: somebody else publishes to it")

// errNoAnswer ends a wait that nobody else ended.
var errNoAnswer = errors.New("no answer from the NATS server in time")

// TooLarge is a message that the bus can never take. Park it and publish the
// rest. It speaks through MessageID so that a relay need not know this package:
//
//	var parked interface{ MessageID() string }
//	if errors.As(err, &parked) { … }
type TooLarge struct {
	ID    string
	Size  int   // bytes of header and body, 0 where only the server knows
	Limit int64 // the server's max_payload, 0 where a stream's own limit refused it
}

// Error names the message and the limit.
func (e *TooLarge) Error() string {
	if e.Limit == 0 {
		return fmt.Sprintf("message %s is larger than its stream allows", e.ID)
	}
	return fmt.Sprintf("message %s has %d bytes and the NATS server takes %d (max_payload)", e.ID, e.Size, e.Limit)
}

// MessageID names the message to park.
func (e *TooLarge) MessageID() string { return e.ID }

// BadSubject is a message whose subject no events stream can capture. Like
// TooLarge it never heals.
type BadSubject struct {
	ID      string
	Subject string
}

// Error names the message and its subject.
func (e *BadSubject) Error() string {
	return fmt.Sprintf("message %s has subject %q, which is not a plain subject under task.", e.ID, e.Subject)
}

// MessageID names the message to park.
func (e *BadSubject) MessageID() string { return e.ID }
