package webhook

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/egress/egresstest"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// testBundle is an address that counts its visits, and a caller that may call it.
type testBundle struct {
	*httptest.Server
	visits atomic.Int64
	open   *Caller // may call loopback
	shut   *Caller // as in production
}

func setup(t *testing.T, handler http.HandlerFunc) *testBundle {
	t.Helper()
	b := &testBundle{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.visits.Add(1)
		handler(w, r)
	}))
	t.Cleanup(b.Close)
	secrets := parse(t, NewSecret())
	b.open, b.shut = New(Config{Secrets: secrets, Allow: loopback}), New(Config{Secrets: secrets})
	t.Cleanup(b.open.Close)
	t.Cleanup(b.shut.Close)
	return b
}

func parse(t *testing.T, text string) Secrets {
	t.Helper()
	secrets, err := ParseSecrets(text)
	require.NoError(t, err)
	return secrets
}

// Whoever has one of the secrets can tell that a callback is ours, by the library
// that everybody uses.
func TestSignature(t *testing.T) {
	t.Parallel()
	type seen struct {
		header http.Header
		body   []byte
	}
	requests := make(chan seen, 1)
	b := setup(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- seen{r.Header, body}
	})
	previous, current := NewSecret(), NewSecret()
	caller := New(Config{Secrets: parse(t, current+" "+previous), Allow: loopback})
	t.Cleanup(caller.Close)
	body := []byte(`{"taskId":"t","status":"RUNNING"}`)
	require.NoError(t, caller.Call(t.Context(), b.URL+"/callbacks?key=1", "event-1", body))
	got := <-requests
	require.Equal(t, body, got.body)
	require.Equal(t, "event-1", got.header.Get("webhook-id"))
	require.Equal(t, "application/json", got.header.Get("Content-Type"))
	for _, secret := range []string{previous, current} {
		taker, err := standardwebhooks.NewWebhook(secret)
		require.NoError(t, err)
		require.NoError(t, taker.Verify(got.body, got.header))
		require.Error(t, taker.Verify(append(got.body, ' '), got.header))
		other := got.header.Clone()
		other.Set("webhook-id", "event-2")
		require.Error(t, taker.Verify(got.body, other))
	}
	stranger, err := standardwebhooks.NewWebhook(NewSecret())
	require.NoError(t, err)
	require.ErrorIs(t, stranger.Verify(got.body, got.header), standardwebhooks.ErrNoMatchingSignature)
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{
		200: "taken", 201: "taken", 202: "taken", 204: "taken",
		300: "refused", 301: "refused", 302: "refused", 307: "refused", 308: "refused", 304: "refused",
		400: "refused", 401: "refused", 403: "refused", 404: "refused", 409: "refused", 422: "refused",
		410: "final", 408: "away", 429: "away", 500: "away", 502: "away", 503: "away", 504: "away",
	} {
		b := setup(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.Header().Set("Retry-After", "6")
			w.WriteHeader(status)
		})
		err := b.open.Call(t.Context(), b.URL+"/?key=s3cret", "id", []byte("{}"))
		require.Equal(t, int64(1), b.visits.Load(), "neither a redirect nor another try")
		var refused *outbox.Refused
		switch {
		case err == nil:
			require.Equal(t, "taken", want, status)
		case !errors.As(err, &refused):
			require.Equal(t, "away", want, status)
		case refused.Final:
			require.Equal(t, "final", want, status)
		default:
			require.Equal(t, "refused", want, status)
		}
		if err != nil {
			var asked *retry.Postponed
			require.ErrorAs(t, err, &asked)
			require.Equal(t, 6*time.Second, asked.After)
			require.NotContains(t, err.Error(), "s3cret")
		}
	}
}

func TestNoAnswer(t *testing.T) {
	t.Parallel()
	requireAway := func(t *testing.T, err error) {
		t.Helper()
		require.Error(t, err)
		var refused *outbox.Refused
		require.False(t, errors.As(err, &refused))
		require.NotContains(t, err.Error(), "s3cret")
	}
	t.Run("Gone", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(http.ResponseWriter, *http.Request) {})
		b.Close()
		requireAway(t, b.open.Call(t.Context(), b.URL+"/?key=s3cret", "id", []byte("{}")))
	})
	t.Run("HungUp", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				_ = conn.Close()
			}
		})
		requireAway(t, b.open.Call(t.Context(), b.URL+"/?key=s3cret", "id", []byte("{}")))
		require.Equal(t, int64(1), b.visits.Load(), "the transport repeats nothing by itself")
	})
	t.Run("Late", func(t *testing.T) {
		t.Parallel()
		b := setup(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		err := b.open.Call(ctx, b.URL, "id", []byte("{}"))
		requireAway(t, err)
		require.Equal(t, "no answer in time", err.Error())
	})
}

// The forms in which an address can point inside. None is reached, and none is tried
// again.
func TestSSRF(t *testing.T) {
	t.Parallel()
	b := setup(t, func(http.ResponseWriter, *http.Request) {})
	_, port, err := net.SplitHostPort(b.Listener.Addr().String())
	require.NoError(t, err)
	for _, host := range []string{
		"127.0.0.1", "127.9.9.9", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "localhost.", "[::1]", "[0:0:0:0:0:0:0:1]",
		"0.0.0.0", "[::]", "169.254.169.254", "[fd00:ec2::254]", "[fd00::1]", "[fe80::1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]",
		"[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:169.254.169.254]", "[::127.0.0.1]", "[2002:7f00:1::]", "100.64.0.1", "10.0.0.1",
		"172.16.0.1", "192.168.1.1", "255.255.255.255", "224.0.0.1", "198.18.0.1",
	} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			err := b.shut.Call(t.Context(), "http://"+host+":"+port+"/?key=s3cret", "id", []byte("{}"))
			require.Error(t, err)
			require.NotContains(t, err.Error(), "s3cret")
			if ip, bad := netip.ParseAddr(host); bad == nil && ip.Is4() {
				requireFinal(t, err)
				require.NotContains(t, err.Error(), host, "which one it was would map our network")
			}
		})
	}
	for _, address := range []string{
		"file:///etc/passwd", "gopher://127.0.0.1:" + port + "/", "127.0.0.1", "", "http://", "http:///x", "%zz",
		"http://example.com@127.0.0.1:" + port + "/", "http://user:s3cret@example.com/", "http://93.184.216.34:22/",
	} {
		requireFinal(t, b.shut.Call(t.Context(), address, "id", []byte("{}")))
	}
	requireFinal(t, b.open.Call(t.Context(), "http://user:s3cret@"+b.Listener.Addr().String(), "id", []byte("{}")))
	t.Cleanup(func() { require.Zero(t, b.visits.Load()) })
}

func requireFinal(t *testing.T, err error) {
	t.Helper()
	var refused *outbox.Refused
	require.ErrorAs(t, err, &refused)
	require.True(t, refused.Final)
	require.NotContains(t, err.Error(), "s3cret")
}

// A name that belongs to somebody else and points at us, at first or at the second
// look.
func TestRebinding(t *testing.T) {
	t.Parallel()
	b := setup(t, func(http.ResponseWriter, *http.Request) {})
	var asked atomic.Int64
	caller := newCaller(Config{}, egresstest.Resolver(t, func() netip.Addr {
		if asked.Add(1)%2 == 1 {
			return netip.MustParseAddr("127.0.0.1")
		}
		return netip.MustParseAddr("169.254.169.254")
	}))
	t.Cleanup(caller.Close)
	for range 4 {
		requireFinal(t, caller.Call(t.Context(), "http://rebind.example.com./", "id", []byte("{}")))
	}
	require.NotZero(t, asked.Load())
	require.Zero(t, b.visits.Load())
}

func TestParseSecrets(t *testing.T) {
	t.Parallel()
	of := func(n int) string {
		return "whsec_" + base64.StdEncoding.EncodeToString([]byte(strings.Repeat("s3cret", 20)[:n]))
	}
	for text, want := range map[string]int{
		"": 0, "  ": 0, NewSecret(): 1, NewSecret() + "  " + NewSecret(): 2, of(24): 1, of(64): 1,
		of(23): -1, of(65): -1, "whsec_": -1, "whsec_s3cret!": -1, strings.TrimPrefix(of(32), "whsec_"): -1, of(32) + " s3cret": -1,
	} {
		secrets, err := ParseSecrets(text)
		if want < 0 {
			require.Error(t, err)
			require.NotContains(t, err.Error(), "s3cret")
			continue
		}
		require.NoError(t, err)
		require.Len(t, secrets, want)
	}
	require.NotEqual(t, NewSecret(), NewSecret())
}

func FuzzParseSecrets(f *testing.F) {
	f.Add("whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0")
	f.Add("whsec_ whsec_=")
	f.Fuzz(func(t *testing.T, text string) {
		secrets, err := ParseSecrets(text)
		if err != nil {
			if secret := strings.TrimSpace(text); len(secret) > len(err.Error()) {
				require.NotContains(t, err.Error(), secret)
			}
			return
		}
		require.Len(t, secrets, len(strings.Fields(text)))
		header := http.Header{}
		require.NoError(t, secrets.sign(header, "id", []byte("body")))
		for _, one := range secrets {
			require.NoError(t, one.Verify([]byte("body"), header))
		}
	})
}

// An address is somebody else's text: whatever it is, it is called as it stands or
// not at all.
func FuzzAddress(f *testing.F) {
	for _, address := range []string{"https://example.org/x?y", "http://a@b/", "http://[::1", "http://a\r\nb/", "HTTP://x", "http:/x", "//x"} {
		f.Add(address)
	}
	f.Fuzz(func(t *testing.T, address string) {
		request, err := newRequest(t.Context(), address, nil)
		if err != nil {
			requireFinal(t, err)
			return
		}
		require.Contains(t, []string{"http", "https"}, request.URL.Scheme)
		require.NotEmpty(t, request.URL.Host)
		require.Nil(t, request.URL.User)
	})
}
