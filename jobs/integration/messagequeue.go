package integration

import (
	"encoding/json"

	"github.com/seed-3f7a0631/tes/jobs"
)

// MESSAGE_QUEUE "sends messages, receives acknowledgments".
type messageInput struct {
	Destination string            `json:"destination"` // a queue or a topic
	Message     json.RawMessage   `json:"message"`
	Headers     map[string]string `json:"headers,omitempty"`
}

func messageRequest(_ jobs.IntegrationCall, input json.RawMessage) (json.RawMessage, error) {
	var in messageInput
	if err := strictly("the message", input, &in); err != nil {
		return nil, err
	}

	if in.Destination == "" || !given(in.Message) {
		return nil, refuse("a message needs a destination and a message")
	}

	if err := headers(in.Headers); err != nil {
		return nil, err
	}

	return parameters(in)
}

// messageAnswer accepts {acknowledged: true, messageId?}; other members are kept. A message
// that was not acknowledged was not accepted by the queue, and may be sent again.
func messageAnswer(_ jobs.IntegrationCall, data json.RawMessage) (json.RawMessage, error) {
	var ack struct {
		Acknowledged *bool  `json:"acknowledged"`
		MessageID    string `json:"messageId"`
	}

	if err := loosely("the acknowledgement", data, &ack); err != nil {
		return nil, err
	}

	if ack.Acknowledged == nil {
		return nil, refuse("the acknowledgement does not say whether the message was acknowledged")
	}
	if !*ack.Acknowledged {
		yes := true
		return nil, &jobs.Failure{Code: "INTEGRATION_ERROR", Message: "the message was not acknowledged", Retryable: &yes}
	}

	return data, nil
}
