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
