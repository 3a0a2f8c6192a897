package outbox

import (
	"context"
	"time"
)

// Message is one event on its way to the bus.
type Message struct {
	ID      string            // the event's id; sent as Nats-Msg-Id, so a redelivery is recognised
	Subject string            // such as task.created
	Header  map[string]string // CloudEvents attributes (ce-*) and traceparent
	Body    []byte            // the interface document's envelope, as JSON
}

// Delivery is one message heard on the bus. Redelivered counts from 1.
type Delivery struct {
	Subject     string
	Header      map[string]string
	Body        []byte
	Redelivered int
	At          time.Time // when the bus stored it
}

// Handler acts on one delivery. Nil acknowledges it; a *Poison ends it on the
// dead-letter subject with its reason; any other error asks for it again later.
type Handler func(ctx context.Context, d Delivery) error

// Poison says that a delivery can never succeed, and why.
type Poison struct{ Reason string }

func (p *Poison) Error() string { return "poison message: " + p.Reason }

// Refused says that an address answered a callback, and not with a yes. Final: asking again
// is of no use.
type Refused struct {
	Reason string
	Final  bool
}

func (r *Refused) Error() string { return r.Reason }

// Outcome is what became of a bus message: a word, and what else there is to know.
type Outcome struct{ Word, Detail string }

// Words for what changed nothing. Any other word is an act.
const (
	Late      = "late"      // it was about something that is over
	Unknown   = "unknown"   // it was about something that we do not have
	Elsewhere = "elsewhere" // it was for others
	Repeated  = "repeated"  // it was acted upon before, under this id or another
)
