package jobs

import (
	"math"
	"slices"
	"time"
)

// The bounds of a wait between attempts.
const (
	defaultMaxRetryInterval = 5 * time.Minute
	longestRetryInterval    = 7 * 24 * time.Hour // what maxRetryInterval may be; a delay is never longer
)

// jitter is the share by which a delay may fall short of or exceed its policy, so
// that tasks that failed together do not come back together.
const jitter = 0.1

// RetryPolicy says whether and when a failed attempt is followed by another. Its
// zero value never retries.
type RetryPolicy struct {
	MaxRetries        int      `json:"maxRetries" required:"false" minimum:"0" maximum:"100" doc:"The number of attempts after the first. Default: 0."`
	RetryInterval     int64    `json:"retryInterval" required:"false" minimum:"0" maximum:"86400000" doc:"Milliseconds before the first retry. Default: 0, at once."`
	BackoffMultiplier float64  `json:"backoffMultiplier,omitempty" required:"false" minimum:"1" maximum:"100" doc:"The factor between one wait and the next. Default: 1."`
	MaxRetryInterval  int64    `json:"maxRetryInterval,omitempty" required:"false" minimum:"0" maximum:"604800000" doc:"The longest wait in milliseconds. Default: 300000, or retryInterval if that is longer."`
	RetryableErrors   []string `json:"retryableErrors,omitzero" required:"false" maxItems:"64" maxLength:"128" doc:"The error codes to retry. Absent: every error that is not marked as unretryable. Empty: none."` // omitzero: absent and empty differ
}

// DefaultRetryPolicy is for a definition that has none: what code or another
// system fails at is tried three times more, what a person decided stands.
func DefaultRetryPolicy(t Type) RetryPolicy {
	if t == Manual {
		return RetryPolicy{BackoffMultiplier: 1}
	}
	return RetryPolicy{MaxRetries: 3, RetryInterval: 1000, BackoffMultiplier: 2, MaxRetryInterval: 300_000}
}

// Retryable reports whether a failure of this kind may be retried at all; how
// often is MaxRetries' business. An error marked unretryable stays so, whatever
// the list says.
func (p RetryPolicy) Retryable(f *Failure) bool {
	if f != nil && f.Retryable != nil && !*f.Retryable {
		return false
	}
	if p.RetryableErrors == nil {
		return true
	}
	return f != nil && slices.Contains(p.RetryableErrors, f.Code)
}

// Delay is the wait before the n-th retry, 1 being the first. rnd, in [0,1),
// spreads it by a tenth to either side; 0.5 leaves it as the policy says. The
// answer lies between 0 and the policy's maximum for every n and every policy,
// valid or not.
func (p RetryPolicy) Delay(n int, rnd float64) time.Duration {
	longest := p.longest()
	d := min(p.backoff(n), longest)
	if !(rnd >= 0 && rnd < 1) { // NaN too
		rnd = 0.5
	}

	d *= 1 - jitter + 2*jitter*rnd
	if d > longest {
		// Mirrored, not cut: cutting would gather half of all waits on one instant.
		d = 2*longest - d
	}

	return time.Duration(d)
}

// backoff is the wait before jitter and limit, in nanoseconds; it may be +Inf.
func (p RetryPolicy) backoff(n int) float64 {
	if p.RetryInterval <= 0 {
		return 0 // and not 0 × Inf, which is no number
	}
	factor := 1.0
	if n > 1 && p.BackoffMultiplier > 1 {
		factor = math.Pow(p.BackoffMultiplier, float64(n-1))
	}
	return float64(p.RetryInterval) * float64(time.Millisecond) * factor
}

// longest is the limit in nanoseconds; small enough that a float64 is exact.
func (p RetryPolicy) longest() float64 {
	limit := float64(p.MaxRetryInterval) * float64(time.Millisecond)
	if p.MaxRetryInterval <= 0 {
		limit = max(float64(defaultMaxRetryInterval), float64(p.RetryInterval)*float64(time.Millisecond))
	}
	return min(limit, float64(longestRetryInterval))
}
