package retry

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// After is how long an answer asks its caller to wait before the next request: its
// Retry-After, in seconds or as an HTTP date. 0 where it asks for nothing, or for nothing
// that can be read. Callers bound it by their policy: it is another's word.
func After(h http.Header, now time.Time) time.Duration {
	text := strings.TrimSpace(h.Get("Retry-After"))
	if text == "" {
		return 0
	}
	if strings.Trim(text, "0123456789") == "" {
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil || seconds > int64(longestAfter/time.Second) {
			return longestAfter // more digits than a number has
		}
		return time.Duration(seconds) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	// By the clock that wrote it, where the answer says what that shows.
	if theirs, err := http.ParseTime(h.Get("Date")); err == nil {
		now = theirs
	}
	return min(max(at.Sub(now), 0), longestAfter)
}

// longestAfter keeps what is asked for within what a Duration can add up.
const longestAfter = 365 * 24 * time.Hour

// Postponed is an error of a partner that asked to be left alone for a while.
type Postponed struct {
	Err   error
	After time.Duration
}

func (p *Postponed) Error() string { return p.Err.Error() }

// Unwrap is the error itself.
func (p *Postponed) Unwrap() error { return p.Err }

// Postpone says with err that the partner asked to wait, if it did.
func Postpone(err error, after time.Duration) error {
	if after <= 0 {
		return err
	}
	return &Postponed{err, after}
}
