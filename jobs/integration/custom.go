package integration

import (
	"encoding/json"

	"github.com/seed-3f7a0631/tes/jobs"
)

// CUSTOM "sends custom parameters, receives custom responses": the definition and the
// integration agree on the format.
func customRequest(_ jobs.IntegrationCall, input json.RawMessage) (json.RawMessage, error) {
	return input, nil
}

func customAnswer(_ jobs.IntegrationCall, data json.RawMessage) (json.RawMessage, error) {
	return jobs.OutputOf(data), nil
}
