package retry

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "6": 6 * time.Second, " 6 ": 6 * time.Second, "0": 0, "-1": 0, "1.5": 0, "soon": 0, "6 s": 0,
		"999999999999999999999999": longestAfter, "99999999999": longestAfter,
		"Sun, 29 Nov 2026 12:00:30 GMT":    30 * time.Second,
		"Sunday, 29-Nov-26 12:00:30 GMT":   30 * time.Second,
		"Sun Nov 29 12:00:30 2026":         30 * time.Second,
		"Sun, 29 Nov 2026 11:00:00 GMT":    0,
		"Sun, 29 Nov 9999 11:00:00 GMT":    longestAfter,
		"Sun, 29 Nov 2026 12:00:30 +0000 ": 0,
	} {
		require.Equal(t, want, After(http.Header{"Retry-After": {text}}, now), text)
	}
	// A date is read by the clock that wrote it.
	h := http.Header{"Retry-After": {"Sun, 29 Nov 2026 13:00:06 GMT"}, "Date": {"Sun, 29 Nov 2026 13:00:00 GMT"}}
	require.Equal(t, 6*time.Second, After(h, now))
}

func FuzzAfter(f *testing.F) {
	f.Add("6", "Sun, 29 Nov 2026 13:00:00 GMT")
	f.Add("Sun, 29 Nov 2026 13:00:06 GMT", "")
	f.Fuzz(func(t *testing.T, after, date string) {
		got := After(http.Header{"Retry-After": {after}, "Date": {date}}, time.Unix(0, 0))
		require.GreaterOrEqual(t, got, time.Duration(0))
		require.LessOrEqual(t, got, longestAfter)
	})
}

// What a partner asks for lengthens the pause, up to the longest of the policy.
func TestPostponedLengthensThePause(t *testing.T) {
	t.Parallel()
	cause := errors.New("the answer is 429")
	p := Policy{Backoff: 200 * time.Millisecond, MaxBackoff: time.Minute}
	require.Equal(t, 6*time.Second, p.after(200*time.Millisecond, Postpone(cause, 6*time.Second)))
	require.Equal(t, 200*time.Millisecond, p.after(200*time.Millisecond, Postpone(cause, time.Millisecond)))
	require.Equal(t, time.Minute, p.after(200*time.Millisecond, Postpone(cause, time.Hour)))
	require.Equal(t, 200*time.Millisecond, p.after(200*time.Millisecond, cause))
	require.Equal(t, cause, Postpone(cause, 0))
	require.ErrorIs(t, Postpone(cause, time.Second), cause)
}
