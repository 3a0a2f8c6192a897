package natsbus

import (
	"errors"
	"fmt"
)

// ErrClosed is the error of every call after Close.
var ErrClosed = errors.New("the bus is closed")

// ErrDisconnected means that there is no connection to the server, or that the connection was lost
// before the answer: it is unknown whether the message is stored. Publish the same batch again;
// stored messages are recognised.
var ErrDisconnected = errors.New("no connection to the NATS server")

// ErrMoved means that another process has published to the events stream since its end was read. No
// message of the batch is stored. Read the tail and compare before publishing again.
var ErrMoved = errors.New("another publisher has published to the stream since its end was read")

// errNoAnswer is the cause of a request that ended after answerTimeout.
var errNoAnswer = errors.New("no answer from the NATS server in time")

// TooLarge is the error of a message that is too large for the bus. The relay finds the message by
// the method MessageID, so that it does not import this package.
type TooLarge struct {
	ID    string
	Size  int   // bytes of header and body; 0 if only the server knows
	Limit int64 // the server's max_payload; 0 if a limit of the stream refused the message
}

// Error names the message and the limit.
func (e *TooLarge) Error() string {
	if e.Limit == 0 {
		return fmt.Sprintf("message %s is larger than its stream allows", e.ID)
	}
	return fmt.Sprintf("message %s has %d bytes and the NATS server takes %d (max_payload)", e.ID, e.Size, e.Limit)
}

// MessageID returns the id of the message that cannot be stored.
func (e *TooLarge) MessageID() string { return e.ID }

// BadSubject is the error of a message on a subject that the events stream cannot capture.
type BadSubject struct {
	ID      string
	Subject string
}

// Error names the message and its subject.
func (e *BadSubject) Error() string {
	return fmt.Sprintf("message %s has subject %q, which is not a plain subject under task.", e.ID, e.Subject)
}

// MessageID returns the id of the message that cannot be stored.
func (e *BadSubject) MessageID() string { return e.ID }
