package peer

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// told is an Auth Service that says what it is told to.
type told struct {
	asked  int
	answer string // empty: it is away
}

func (a *told) RoundTrip(r *http.Request) (*http.Response, error) {
	a.asked++
	if a.answer == "" {
		return nil, errors.New("refused")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || !strings.Contains(string(body), `"token":"`) {
		return nil, errors.New("no token was asked about")
	}
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(a.answer)), Request: r}, nil
}

// "Auth Service: /api/auth/validate-token validates user tokens for task operations":
// how long an answer is gone by, on a clock that moves only when everybody waits.
func TestUserTokensAreRemembered(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		lives time.Duration // 0: not said
		valid bool
		kept  time.Duration
	}{
		"a good token, a minute":           {time.Hour, true, time.Minute},
		"no longer than it lives":          {20 * time.Second, true, 20 * time.Second},
		"a good token that does not say":   {0, true, time.Minute},
		"a bad one, hardly":                {0, false, 3 * time.Second},
		"one that has expired, not at all": {-time.Second, true, 0},
		"one that expires now, not at all": {time.Nanosecond, true, time.Nanosecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				service := &told{answer: `{"valid": false}`}
				if tc.valid {
					service.answer = `{"valid": true, "subject": "jane"}`
					if tc.lives != 0 {
						service.answer = `{"valid": true, "subject": "jane", "expiresAt": "` + time.Now().Add(tc.lives).UTC().Format(time.RFC3339Nano) + `"}`
					}
				}
				peers, err := New(Config{BaseURL: "http://auth", Policy: retry.Policy{Retries: -1}, Wrap: func(http.RoundTripper) http.RoundTripper { return service }})
				require.NoError(t, err)
				ask := func(token string) {
					t.Helper()
					claims, err := peers.Auth.ValidateToken(t.Context(), token)
					require.NoError(t, err)
					require.Equal(t, tc.valid, claims.Valid)
					require.Equal(t, tc.valid, claims.Subject == "jane")
				}
				ask("a")
				require.Equal(t, 1, service.asked)
				if tc.kept > 0 {
					<-time.After(tc.kept - 1) // the bubble's clock
					ask("a")
					require.Equal(t, 1, service.asked)
					ask("b")
					require.Equal(t, 2, service.asked, "another token is another question")
					<-time.After(1)
				}
				before := service.asked
				ask("a")
				require.Equal(t, before+1, service.asked)

				// An outage is not bridged beyond that, and is not remembered itself.
				<-time.After(2 * time.Minute)
				answer := service.answer
				service.answer = ""
				_, err = peers.Auth.ValidateToken(t.Context(), "a")
				require.Error(t, err)
				service.answer = answer
				ask("a")
			})
		})
	}
}
