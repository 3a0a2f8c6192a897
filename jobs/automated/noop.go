package automated

import (
	"context"
	"encoding/json"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Noop is the executor "noop": it completes at once with the empty object. Noop serves
// benchmarks, and steps that only mark a position in a workflow.
type Noop struct{}

// Execute returns the empty object, or ctx's error if ctx has ended.
func (Noop) Execute(ctx context.Context, _ jobs.Job) (jobs.Result, error) {
	if err := ctx.Err(); err != nil {
		return jobs.Result{}, err
	}
	return jobs.Result{Output: json.RawMessage(`{}`)}, nil
}
