package jobs

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestRetryPolicyRetryable(t *testing.T) {
	t.Parallel()

	yes, no := true, false
	for name, tt := range map[string]struct {
		codes   []string
		failure *Failure
		want    bool
	}{
		"NoList":              {nil, &Failure{Code: "ANY"}, true},
		"NoListMarkedYes":     {nil, &Failure{Code: "ANY", Retryable: &yes}, true},
		"NoListMarkedNo":      {nil, &Failure{Code: "ANY", Retryable: &no}, false},
		"EmptyList":           {[]string{}, &Failure{Code: "ANY"}, false},
		"Listed":              {[]string{"TIMEOUT", "ANY"}, &Failure{Code: "ANY"}, true},
		"NotListed":           {[]string{"TIMEOUT"}, &Failure{Code: "ANY"}, false},
		"NotListedMarkedYes":  {[]string{"TIMEOUT"}, &Failure{Code: "ANY", Retryable: &yes}, false},
		"ListedMarkedNo":      {[]string{"ANY"}, &Failure{Code: "ANY", Retryable: &no}, false},
		"UnknownError":        {nil, nil, true},
		"UnknownErrorAndList": {[]string{"ANY"}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, RetryPolicy{RetryableErrors: tt.codes}.Retryable(tt.failure))
		})
	}
}

func TestRetryPolicyDelay(t *testing.T) {
	t.Parallel()

	order := RetryPolicy{MaxRetries: 3, RetryInterval: 60_000, BackoffMultiplier: 2}
	require.Equal(t, time.Minute, order.Delay(1, 0.5))
	require.Equal(t, 2*time.Minute, order.Delay(2, 0.5))
	require.Equal(t, 4*time.Minute, order.Delay(3, 0.5))
	require.Equal(t, 5*time.Minute, order.Delay(4, 0.5), "the default limit")
	require.Equal(t, 54*time.Second, order.Delay(1, 0))
	require.Equal(t, 5*time.Minute, order.Delay(math.MaxInt, 0.5))

	require.Zero(t, RetryPolicy{BackoffMultiplier: 100}.Delay(math.MaxInt, 0.9))
	require.Equal(t, time.Hour, RetryPolicy{RetryInterval: 3_600_000}.Delay(9, 0.5), "an interval over the default limit stands")
	require.Equal(t, time.Second, RetryPolicy{RetryInterval: 5000, MaxRetryInterval: 1000}.Delay(1, 0.5))
	require.Equal(t, time.Second, DefaultRetryPolicy(Automated).Delay(1, math.NaN()))
	require.Equal(t, DefaultRetryPolicy(Automated), DefaultRetryPolicy(Integration))
	require.Zero(t, DefaultRetryPolicy(Manual).MaxRetries)
}

func TestRetryPolicyDelayProperties(t *testing.T) {
	t.Parallel()

	valid := rapid.Custom(func(t *rapid.T) RetryPolicy {
		return RetryPolicy{
			RetryInterval:     rapid.Int64Range(0, 86_400_000).Draw(t, "retryInterval"),
			BackoffMultiplier: rapid.Float64Range(1, 100).Draw(t, "backoffMultiplier"),
			MaxRetryInterval:  rapid.Int64Range(0, 604_800_000).Draw(t, "maxRetryInterval"),
		}
	})
	retry := rapid.OneOf(rapid.IntRange(1, 200), rapid.Int())
	random := rapid.Float64Range(0, math.Nextafter(1, 0))

	t.Run("MonotoneBeforeJitter", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			p, n := valid.Draw(t, "policy"), rapid.IntRange(1, 1000).Draw(t, "n")
			if a, b := p.Delay(n, 0.5), p.Delay(n+1, 0.5); a > b {
				t.Fatalf("retry %d waits %v, retry %d only %v", n, a, n+1, b)
			}
		})
	})

	t.Run("WithinATenth", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			p, n, rnd := valid.Draw(t, "policy"), retry.Draw(t, "n"), random.Draw(t, "rnd")
			plain, d := p.Delay(n, 0.5), p.Delay(n, rnd)
			if off := (d - plain).Abs(); off > plain/10+1 {
				t.Fatalf("%v is %v off %v", d, off, plain)
			}
		})
	})

	t.Run("BoundedForEveryPolicy", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			p := RetryPolicy{
				RetryInterval:     rapid.Int64().Draw(t, "retryInterval"),
				BackoffMultiplier: rapid.OneOf(rapid.Float64(), rapid.Just(math.Inf(1)), rapid.Just(math.NaN())).Draw(t, "backoffMultiplier"),
				MaxRetryInterval:  rapid.Int64().Draw(t, "maxRetryInterval"),
			}
			d := p.Delay(retry.Draw(t, "n"), rapid.Float64().Draw(t, "rnd"))
			if d < 0 || d > longestRetryInterval {
				t.Fatalf("delay %v", d)
			}
			if p.MaxRetryInterval > 0 && p.MaxRetryInterval <= 604_800_000 && d > time.Duration(p.MaxRetryInterval)*time.Millisecond {
				t.Fatalf("delay %v is over the policy's maximum of %d ms", d, p.MaxRetryInterval)
			}
		})
	})
}

// An empty list means no error is retried, an absent one that all are: storing a
// policy must keep them apart.
func TestRetryPolicyJSON(t *testing.T) {
	t.Parallel()

	for _, doc := range []string{
		`{"maxRetries":0,"retryInterval":0}`,
		`{"maxRetries":3,"retryInterval":1000,"backoffMultiplier":2,"maxRetryInterval":300000,"retryableErrors":[]}`,
		`{"maxRetries":3,"retryInterval":1000,"retryableErrors":["A"]}`,
	} {
		var p RetryPolicy
		require.NoError(t, json.Unmarshal([]byte(doc), &p))
		again, err := json.Marshal(p)
		require.NoError(t, err)
		require.JSONEq(t, doc, string(again))
	}
}
