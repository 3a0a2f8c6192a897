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

// jitter is the largest deviation of a delay from its policy, as a share of the delay. Tasks that
// failed together do not come back together.
const jitter = 0.1

// RetryPolicy decides about another attempt after a failed attempt, and about its delay. The zero value
// never retries.
type RetryPolicy struct {
	MaxRetries        int      `json:"maxRetries" required:"false" minimum:"0" maximum:"100" doc:"The number of attempts after the first. Default: 0."`
	RetryInterval     int64    `json:"retryInterval" required:"false" minimum:"0" maximum:"86400000" doc:"Milliseconds before the first retry. Default: 0, at once."`
	BackoffMultiplier float64  `json:"backoffMultiplier,omitempty" required:"false" minimum:"1" maximum:"100" doc:"The factor between one wait and the next. Default: 1."`
	MaxRetryInterval  int64    `json:"maxRetryInterval,omitempty" required:"false" minimum:"0" maximum:"604800000" doc:"The longest wait in milliseconds. Default: 300000, or retryInterval if that is longer."`
	RetryableErrors   []string `json:"retryableErrors,omitzero" required:"false" maxItems:"64" maxLength:"128" doc:"The error codes to retry. Absent: every error that is not marked as unretryable. Empty: none."` // omitzero: absent and empty differ
}

// DefaultRetryPolicy is the policy of a definition without a policy: three retries for code and for
// other systems, no retry after the decision of a person.
func DefaultRetryPolicy(t Type) RetryPolicy {
	if t == Manual {
		return RetryPolicy{BackoffMultiplier: 1}
	}
	return RetryPolicy{MaxRetries: 3, RetryInterval: 1000, BackoffMultiplier: 2, MaxRetryInterval: 300_000}
}

// Retryable reports whether the policy allows a retry of a failure at all; MaxRetries bounds the
// number. A failure marked as unretryable stays so, even if RetryableErrors has its code.
func (p RetryPolicy) Retryable(f *Failure) bool {
	if f != nil && f.Retryable != nil && !*f.Retryable {
		return false
	}
	if p.RetryableErrors == nil {
		return true
	}
	return f != nil && slices.Contains(p.RetryableErrors, f.Code)
}

// Delay returns the wait before the n-th retry, 1 being the first. rnd, in [0,1), spreads the wait by a
// tenth to either side; 0.5 leaves the wait of the policy. The result lies between 0 and the maximum of
// the policy, for every n and every policy, valid or not.
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

// backoff returns the wait before jitter and limit, in nanoseconds; the result may be +Inf.
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
		// A policy without a limit of its own keeps its first interval, also beyond the default limit.
		limit = max(float64(defaultMaxRetryInterval), float64(p.RetryInterval)*float64(time.Millisecond))
	}
	return min(limit, float64(longestRetryInterval))
}
