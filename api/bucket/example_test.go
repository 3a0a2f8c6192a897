package bucket_test

import (
	"fmt"
	"time"

	"github.com/seed-3f7a0631/tes/api/bucket"
)

// A caller may make two requests at once, and one more each second.
func ExampleBuckets_Take() {
	now := time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
	callers := bucket.New[string](bucket.Limit{Rate: 1, Burst: 2}, 1000, func() time.Time { return now })

	for range 3 {
		verdict := callers.Take("workflow-orchestrator", 1, 0)
		fmt.Println(verdict.OK, verdict.Left, verdict.Wait)
	}
	now = now.Add(time.Second)
	fmt.Println(callers.Take("workflow-orchestrator", 1, 0).OK)
	// Output:
	// true 1 0s
	// true 0 0s
	// false 0 1s
	// true
}
