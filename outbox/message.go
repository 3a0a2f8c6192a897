package outbox

import (
	"context"
	"time"
)

// Message is one event on its way to the bus.
type Message struct {
	ID      string            // the event's id; sent as Nats-Msg-Id, so that a redelivery is recognised
	Subject string            // such as task.created
	Header  map[string]string // CloudEvents attributes (ce-*) and traceparent
	Body    []byte            // the interface document's envelope, as JSON
}

// Delivery is one message from the bus.
type Delivery struct {
	Subject     string
	Header      map[string]string
	Body        []byte
	Redelivered int       // how often the bus has delivered the message, with this time
	At          time.Time // when the bus stored the message
}

// Handler processes one delivery. A nil error acknowledges the message. A *Poison moves the
// message to its dead-letter subject with the reason. After any other error the bus delivers the
// message again later.
type Handler func(ctx context.Context, d Delivery) error

// Poison is the error of a message that can never be processed.
type Poison struct{ Reason string }

func (p *Poison) Error() string { return "poison message: " + p.Reason }

// Refused is the error of a callback that the host answered with an error status. Final means
// that another try cannot succeed.
type Refused struct {
	Reason string
	Final  bool
}

func (r *Refused) Error() string { return r.Reason }

// Outcome is the result of a message from the bus: a word for the counters, and a detail such as
// a task id.
type Outcome struct{ Result, Detail string }

// The outcomes of messages that changed nothing. Any other word names a change.
const (
	Late      = "late"      // the message is about a task or an attempt that has ended
	Unknown   = "unknown"   // the message is about a task that does not exist
	Elsewhere = "elsewhere" // the message is for another service or process
	Repeated  = "repeated"  // the message was processed before, under the same id or another
)
