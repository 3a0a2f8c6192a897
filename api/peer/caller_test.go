package peer_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// hostile answers in ways that the fake peer services do not know.
func hostile(t *testing.T, cfg peer.Config, answer http.HandlerFunc) (*peer.Services, *atomic.Int64) {
	t.Helper()
	var calls atomic.Int64
	there := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		answer(w, r)
	}))
	cfg.BaseURL = there.URL
	peers, err := peer.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		peers.Close()
		there.CloseClientConnections()
		there.Close()
	})
	return peers, &calls
}

func TestHostileAnswers(t *testing.T) {
	t.Parallel()

	t.Run("TooLong", func(t *testing.T) {
		t.Parallel()
		chunk := bytes.Repeat([]byte(" "), 1<<20)
		there, calls := hostile(t, peer.Config{Policy: quick()}, func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		})
		_, err := there.Integrations.Invoke(t.Context(), "i", ask("m", `{}`))
		failure := requireFailure(t, err, "INTEGRATION_ERROR", false)
		require.Contains(t, failure.Message, "longer than")
		require.EqualValues(t, 1, calls.Load())
	})

	t.Run("CutInTheMiddle", func(t *testing.T) {
		t.Parallel()
		there, calls := hostile(t, peer.Config{Policy: quick()}, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"status":"SUCCESS"`))
			panic(http.ErrAbortHandler)
		})
		_, err := there.Integrations.Invoke(t.Context(), "i", ask("m", `{}`))
		requireOutage(t, err, "integration")
		require.EqualValues(t, 6, calls.Load())
	})

	t.Run("Dripping", func(t *testing.T) {
		t.Parallel()
		there, _ := hostile(t, peer.Config{Timeout: 50 * time.Millisecond, Policy: once()}, func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write([]byte(`{"status":`))
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		})
		_, err := there.Integrations.Invoke(t.Context(), "i", ask("m", `{}`))
		requireOutage(t, err, "integration")
	})

	t.Run("Redirect", func(t *testing.T) {
		t.Parallel()
		there, calls := hostile(t, peer.Config{Policy: quick()}, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		})
		_, err := there.Integrations.Invoke(t.Context(), "i", ask("m", `{}`))
		_ = requireFailure(t, err, "INTEGRATION_ERROR", false)
		require.EqualValues(t, 1, calls.Load())
	})

	t.Run("LongMessage", func(t *testing.T) {
		t.Parallel()
		words := bytes.Repeat([]byte("é"), 10_000)
		there, _ := hostile(t, peer.Config{Policy: quick()}, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"error":{"code":"VALIDATION_ERROR","message":"x` + string(words) + `"}}`))
		})
		_, err := there.Integrations.Invoke(t.Context(), "i", ask("m", `{}`))
		failure := requireFailure(t, err, "VALIDATION_ERROR", false)
		require.Len(t, failure.Message, 4095) // a whole number of characters
	})
}

func TestRefusedConnection(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	there, err := peer.New(peer.Config{BaseURL: "http://" + listener.Addr().String(), Policy: quick()})
	require.NoError(t, err)
	_, err = there.Integrations.Invoke(t.Context(), "i", ask("m", `{}`))
	requireOutage(t, err, "integration")
}

func TestOwnToken(t *testing.T) {
	t.Parallel()

	t.Run("IsSent", func(t *testing.T) {
		t.Parallel()
		sent := make(chan string, 1)
		there, _ := hostile(t, peer.Config{
			Policy: quick(),
			Token:  func(context.Context) (string, error) { return "s3cret", nil },
		}, func(w http.ResponseWriter, r *http.Request) {
			sent <- r.Header.Get("Authorization")
			_, _ = w.Write([]byte(`{"status":"SUCCESS"}`))
		})
		got, err := there.Integrations.Invoke(t.Context(), "i", ask("m", `{}`))
		require.NoError(t, err)
		require.Nil(t, got.Data)
		require.Equal(t, "Bearer s3cret", <-sent)
	})

	t.Run("IsMissing", func(t *testing.T) {
		t.Parallel()
		missing := errors.New("no token today")
		b := setup(t, peer.Config{Policy: quick(), Token: func(context.Context) (string, error) { return "", missing }})
		_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
		requireOutage(t, err, "integration")
		require.ErrorIs(t, err, missing)
		require.Empty(t, b.there.Requests(peertest.Integration))
	})
}

func TestWrap(t *testing.T) {
	t.Parallel()
	b := setup(t, peer.Config{Policy: quick(), Wrap: func(next http.RoundTripper) http.RoundTripper {
		return roundTripper(func(r *http.Request) (*http.Response, error) {
			r = r.Clone(r.Context())
			r.Header.Set("Traceparent", "00-1-1-01")
			return next.RoundTrip(r)
		})
	}})
	_, err := b.peer.Integrations.Invoke(b.ctx, "i", ask("m", `{}`))
	require.NoError(t, err)
	require.Equal(t, "00-1-1-01", b.there.Requests(peertest.Integration)[0].Headers["Traceparent"])
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestBaseURL(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"http://gateway:8080", "https://platform.example/", "http://[::1]:80/prefix"} {
		_, err := peer.New(peer.Config{BaseURL: good})
		require.NoError(t, err, good)
	}
	for _, bad := range []string{"", "gateway:8080", "ftp://gateway", "http://", "http://u:hunter2@gateway", "http://gateway?x=1", "http://gateway#x", "http://%zz"} {
		_, err := peer.New(peer.Config{BaseURL: bad})
		require.Error(t, err, bad)
		require.NotContains(t, err.Error(), "hunter2")
	}
}
