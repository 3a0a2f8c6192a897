package retry

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// longestAfter bounds the result of After, so that a caller can add it to a time.
const longestAfter = 365 * 24 * time.Hour

// After returns how long an answer asks its caller to wait before the next request: the header
// Retry-After, in seconds or as an HTTP date. The result is 0 without the header, or if it
// cannot be read. A caller should bound the result by its own policy.
func After(h http.Header, now time.Time) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if text == "" {
		return 0
	}

	if strings.Trim(text, "0123456789") == "" {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil || seconds > int64(longestAfter/time.Second) {
			return longestAfter // err: the number does not fit
		}
		return time.Duration(seconds) * time.Second
	}

	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}

	// The partner's clock wrote the date, and the header Date shows how far it is off.
	if partner, err := http.ParseTime(h.Get("Date")); err == nil {
		now = partner
	}
	return min(max(at.Sub(now), 0), longestAfter)
}

// Postponed is the error of a partner that asked not to be called for a while.
type Postponed struct {
	Err   error
	After time.Duration
}

func (p *Postponed) Error() string { return p.Err.Error() }

// Unwrap returns the error without the request to wait.
func (p *Postponed) Unwrap() error { return p.Err }

// Postpone returns err as a *Postponed if after is positive, else err.
func Postpone(err error, after time.Duration) error {
	if after <= 0 {
		return err
	}
	return &Postponed{err, after}
}
