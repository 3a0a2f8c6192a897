package automated

import (
	"context"
	"encoding/json"

	"github.com/seed-3f7a0631/tes/jobs"
)

// Noop is the executor "noop": it completes at once with the empty object. It is
// there for benchmarks and for steps that only mark a place in a workflow.
type Noop struct{}

// Execute does nothing, unless ctx has ended.
func (Noop) Execute(ctx context.Context, _ jobs.Job) (jobs.Result, error) {
	if err := ctx.Err(); err != nil {
		return jobs.Result{}, err
	}
	return jobs.Result{Output: json.RawMessage(`{}`)}, nil
}
