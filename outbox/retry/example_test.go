package retry_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-3f7a0631/tes/outbox/retry"
)

func ExamplePolicy_Pause() {
	for n := range 5 {
		fmt.Print(retry.ServiceCalls.Pause(n+1), " ")
	}
	// Output: 200ms 400ms 800ms 1.6s 3.2s
}

func ExampleNew() {
	calls := retry.New[string](retry.Policy{Retries: 3, Backoff: time.Millisecond, FailureRate: -1}, retry.Options{})

	tries := 0
	answer, err := calls.Do(context.Background(), func(context.Context) (string, error) {
		if tries++; tries < 3 {
			return "", errors.New("away")
		}
		return "here", nil
	})
	fmt.Println(answer, err, tries)
	// Output: here <nil> 3
}
