package peer_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

const key = "7d3f1c52-1f0e-4c8e-9a77-0a6c9b6f1a01:1"

func ask(method, parameters string) peer.InvokeRequest {
	return peer.InvokeRequest{
		Method:         method,
		Parameters:     json.RawMessage(parameters),
		IdempotencyKey: key,
		CorrelationID:  "corr-1",
	}
}

func TestInvokeAnswers(t *testing.T) {
	t.Parallel()

	t.Run("Success", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: quick()})
		req := ask("look_up", `{"n": 12.50, "s": "<x>"}`)
		req.Connection, req.CredentialRef = "main", "vault:xero/main"
		got, err := b.peer.Integrations.Invoke(b.ctx, "xero_main", req)
		require.NoError(t, err)
		require.JSONEq(t, `{"echo":{"n":12.50,"s":"<x>"}}`, string(got.Data))
		require.Empty(t, got.InvocationID)

		sent := b.there.Requests(peertest.Integration)
		require.Len(t, sent, 1)
		require.Equal(t, "POST", sent[0].Method)
		require.Equal(t, "/api/integrations/xero_main/invoke", sent[0].Path)
		require.Equal(t, key, sent[0].Headers["Idempotency-Key"])
		require.Equal(t, "corr-1", sent[0].Headers["X-Correlation-Id"])
		require.JSONEq(t, `{"method":"look_up","parameters":{"n":12.50,"s":"<x>"},"connection":"main","credentialRef":"vault:xero/main"}`, string(sent[0].Body))
	})

	t.Run("NoParameters", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: quick()})
		got, err := b.peer.Integrations.Invoke(b.ctx, "i", peer.InvokeRequest{Method: "ping"})
		require.NoError(t, err)
		require.JSONEq(t, `{"echo":{}}`, string(got.Data))
	})

	t.Run("Accepted", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: quick()})
		b.there.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeOK, Status: http.StatusAccepted})
		got, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("anything", `{}`))
		require.NoError(t, err)
		require.NotEmpty(t, got.InvocationID)
		require.Nil(t, got.Data)
	})

	t.Run("Rejected", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: quick()})
		_, err := b.peer.Integrations.Invoke(b.ctx, "xero_main", ask("create_invoice", `{"contact_id":"CONT-REJECTED"}`))
		failure := requireFailure(t, err, "VALIDATION_ERROR", false)
		require.Contains(t, failure.Message, "CONT-REJECTED")
		require.JSONEq(t, `{"field":"contact_id","value":"CONT-REJECTED"}`, string(failure.Details))
		require.Len(t, b.there.Requests(peertest.Integration), 1)
	})
}

// An answer, whatever it is, is one request: the task's policy decides what
// follows, not the call's.
func TestInvokeRefusals(t *testing.T) {
	t.Parallel()
	document := func(code, more string) string {
		return `{"error":{"code":"` + code + `","message":"no","details":null}` + more + `}`
	}
	for name, c := range map[string]struct {
		status    int
		body      string
		code      string
		retryable bool
	}{
		"ConnectionError":     {502, document("CONNECTION_ERROR", ""), "CONNECTION_ERROR", true},
		"TimeoutError":        {504, document("TIMEOUT_ERROR", ""), "TIMEOUT_ERROR", true},
		"RateLimitError":      {429, document("RATE_LIMIT_ERROR", ""), "RATE_LIMIT_ERROR", true},
		"ServiceUnavailable":  {503, document("SERVICE_UNAVAILABLE", ""), "SERVICE_UNAVAILABLE", true},
		"AuthenticationError": {401, document("AUTHENTICATION_ERROR", ""), "AUTHENTICATION_ERROR", false},
		"ValidationError":     {400, document("VALIDATION_ERROR", ""), "VALIDATION_ERROR", false},
		"IntegrationError":    {500, document("INTEGRATION_ERROR", ""), "INTEGRATION_ERROR", false},
		"UnknownCode":         {500, document("BAD_MOON", ""), "BAD_MOON", false},
		"SaidNotRetryable":    {503, document("SERVICE_UNAVAILABLE", `,"retryable":false`), "SERVICE_UNAVAILABLE", false},
		"SaidRetryable":       {422, document("VALIDATION_ERROR", `,"retryable":true`), "VALIDATION_ERROR", true},
		"SaidInside":          {422, `{"error":{"code":"VALIDATION_ERROR","retryable":true}}`, "VALIDATION_ERROR", true},
		"OuterWins":           {422, `{"error":{"code":"TIMEOUT_ERROR","retryable":true},"retryable":false}`, "TIMEOUT_ERROR", false},
		"DocumentWith200":     {200, document("TIMEOUT_ERROR", ""), "TIMEOUT_ERROR", true},
		"DocumentWith202":     {202, document("VALIDATION_ERROR", ""), "VALIDATION_ERROR", false},
		"FailedWith200":       {200, `{"status":"FAILED"}`, "INTEGRATION_ERROR", false},
		"EmptyObject":         {200, `{}`, "INTEGRATION_ERROR", false},
		"NotAnObject":         {200, `[1]`, "INTEGRATION_ERROR", false},
		"WrongTypes":          {200, `{"status":7}`, "INTEGRATION_ERROR", false},
		"SuccessWith201":      {201, `{"status":"SUCCESS"}`, "INTEGRATION_ERROR", false},
		"AcceptedWithoutID":   {202, `{}`, "INTEGRATION_ERROR", false},
		"NumberBomb":          {200, `{"status":"SUCCESS","data":[1e131071]}`, "INTEGRATION_ERROR", false},
		"NUL":                 {200, `{"status":"SUCCESS","data":"\u0000"}`, "INTEGRATION_ERROR", false},
		"Bare404":             {404, ``, "INTEGRATION_ERROR", false},
		"Bare429":             {429, `"slow down"`, "INTEGRATION_ERROR", false},
		"Redirect":            {307, ``, "INTEGRATION_ERROR", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, peer.Config{Policy: quick()})
			st := peertest.Steering{Mode: peertest.ModeError, Status: c.status}
			if c.body != "" {
				st.Body = json.RawMessage(c.body)
			}
			b.there.Steer(peertest.Integration, st)
			_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
			failure := requireFailure(t, err, c.code, c.retryable)
			require.Nil(t, failure.Details)
			require.Len(t, b.there.Requests(peertest.Integration), 1)
		})
	}
}

// No answer is asked for again, under the same key, six times in all.
func TestInvokeOutages(t *testing.T) {
	t.Parallel()
	for name, st := range map[string]peertest.Steering{
		"Empty503":         {Mode: peertest.ModeError},
		"Text500":          {Mode: peertest.ModeError, Status: 500, Body: json.RawMessage(`"oops"`)},
		"ErrorIsText":      {Mode: peertest.ModeError, Status: 500, Body: json.RawMessage(`{"error":"boom"}`)},
		"ErrorWithoutCode": {Mode: peertest.ModeError, Status: 502, Body: json.RawMessage(`{"error":{"message":"boom"}}`)},
		"Gone":             {Mode: peertest.ModeGone},
		"Hang":             {Mode: peertest.ModeHang},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := peer.Config{Policy: quick()}
			var keys []string // as sent: one that times out may not have been heard
			cfg.Wrap = func(next http.RoundTripper) http.RoundTripper {
				return roundTripper(func(r *http.Request) (*http.Response, error) {
					keys = append(keys, r.Header["idempotency-key"]...) //nolint:staticcheck // net/http leaves it as it was set
					return next.RoundTrip(r)
				})
			}
			if st.Mode == peertest.ModeHang {
				cfg.Timeout = 50 * time.Millisecond
			}
			b := setup(t, cfg)
			if st.Mode == peertest.ModeGone {
				// Over a connection that was used before, where net/http would
				// repeat the request by itself.
				_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
				require.NoError(t, err)
				b.there.Clear(peertest.Integration)
				keys = nil
			}
			b.there.Steer(peertest.Integration, st)
			_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
			requireOutage(t, err, "integration")

			require.Equal(t, []string{key, key, key, key, key, key}, keys)
			if st.Mode == peertest.ModeHang {
				return
			}
			sent := b.there.Requests(peertest.Integration)
			require.Len(t, sent, 6)
			for _, r := range sent {
				require.Equal(t, key, r.Headers["Idempotency-Key"])
			}
		})
	}
}

func TestInvokeRecovers(t *testing.T) {
	t.Parallel()
	b := setup(t, peer.Config{Policy: quick()})
	b.there.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeGone, Times: 2})
	_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
	require.NoError(t, err)
	require.Len(t, b.there.Requests(peertest.Integration), 3)
}

func TestInvokeSlow(t *testing.T) {
	t.Parallel()
	b := setup(t, peer.Config{Policy: quick()})
	b.there.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeSlow, DelayMs: 50})
	began := time.Now()
	_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(began), 50*time.Millisecond)
	require.Len(t, b.there.Requests(peertest.Integration), 1)
}

// What nobody answers ends when the peer service comes back, or the caller goes.
func TestInvokeHanging(t *testing.T) {
	t.Parallel()

	t.Run("UntilSteered", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: quick()})
		b.there.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeHang, Times: 1})
		done := make(chan error, 1)
		go func() {
			_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
			done <- err
		}()
		_, err := b.there.Await(b.ctx, peertest.Integration, 1)
		require.NoError(t, err)
		b.there.Steer(peertest.Integration, peertest.Steering{})
		require.NoError(t, <-done)
		require.Len(t, b.there.Requests(peertest.Integration), 1)
	})

	t.Run("UntilCancelled", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: quick()})
		b.there.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeHang})
		ctx, cancel := context.WithCancel(b.ctx)
		defer cancel()
		done := make(chan error, 1)
		go func() {
			_, err := b.peer.Integrations.Invoke(ctx, "i", ask("m", `{}`))
			done <- err
		}()
		_, err := b.there.Await(b.ctx, peertest.Integration, 1)
		require.NoError(t, err)
		cancel()
		err = <-done
		requireOutage(t, err, "integration")
		require.ErrorIs(t, err, context.Canceled)
	})

	t.Run("UntilDeadline", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: quick()})
		b.there.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeHang})
		ctx, cancel := context.WithTimeout(b.ctx, 100*time.Millisecond)
		defer cancel()
		_, err := b.peer.Integrations.Invoke(ctx, "i", ask("m", `{}`))
		requireOutage(t, err, "integration")
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// What cannot be sent is refused here, and the peer service hears nothing of it.
func TestInvokeUnsendable(t *testing.T) {
	t.Parallel()
	b := setup(t, peer.Config{Policy: quick()})

	for _, id := range []string{
		"", ".", "..", "../../admin", "%2e%2e", "a/../..", "a?b", "a#b", `a\b`, "a b", "-a", "_a", "ä", "a\n",
		strings.Repeat("a", 65),
	} {
		_, err := b.peer.Integrations.Invoke(b.ctx, id, ask("m", `{}`))
		_ = requireFailure(t, err, "VALIDATION_ERROR", false)
	}

	_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{`))
	requireFailure(t, err, "VALIDATION_ERROR", false)

	injected := ask("m", `{}`)
	injected.CorrelationID = "a\r\nX-Admin: 1"
	_, err = b.peer.Integrations.Invoke(b.ctx, "i", injected)
	requireFailure(t, err, "VALIDATION_ERROR", false)

	require.Empty(t, b.there.Requests(peertest.Integration))

	_, err = b.peer.Integrations.Invoke(b.ctx, strings.Repeat("a", 64), ask("m", `{}`))
	require.NoError(t, err)
}
