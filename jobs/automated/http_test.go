package automated

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
	"github.com/seed-3f7a0631/tes/outbox/egress"
	"github.com/seed-3f7a0631/tes/outbox/egress/egresstest"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// httpBundle is a server that counts its visits and an executor that may call it.
type httpBundle struct {
	*httptest.Server
	visits atomic.Int64
	open   *HTTP // may call loopback
	shut   *HTTP // as in production
}

func setupHTTP(t *testing.T, cfg HTTPConfig, handler http.HandlerFunc) *httpBundle {
	t.Helper()
	b := &httpBundle{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.visits.Add(1)
		handler(w, r)
	}))
	t.Cleanup(b.Close)
	b.shut = NewHTTP(cfg)
	cfg.Allow = loopback
	b.open = NewHTTP(cfg)
	t.Cleanup(b.open.Close)
	t.Cleanup(b.shut.Close)
	return b
}

func httpJob(call jobs.HTTPCall) jobs.Job {
	return jobs.Job{
		TaskID: uuid.MustParse("6f1f0d5e-0d8e-4d0e-9a77-0a6c9b6f1a01"), Attempt: 2, CorrelationID: "corr-1",
		Input: json.RawMessage(`{"a":1}`), Config: jobs.ExecutionConfig{HTTP: &call},
	}
}

// plain are headers with texts.
func plain(texts map[string]string) map[string]jobs.HeaderValue {
	headers := make(map[string]jobs.HeaderValue, len(texts))
	for name, text := range texts {
		headers[name] = jobs.HeaderValue{Text: text}
	}
	return headers
}

func requireFailure(t *testing.T, err error, code string, retryable bool) {
	t.Helper()
	var f *jobs.Failure
	require.ErrorAs(t, err, &f)
	require.Equal(t, code, f.Code, f.Message)
	require.NotNil(t, f.Retryable)
	require.Equal(t, retryable, *f.Retryable)
	require.LessOrEqual(t, len([]rune(f.Message)), maxMessage)
	require.NotContains(t, f.Message, "s3cret")
}

func TestHTTPRequest(t *testing.T) {
	t.Parallel()

	type seen struct {
		method, body string
		header       http.Header
	}
	requests := make(chan seen, 1)
	b := setupHTTP(t, HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- seen{r.Method, string(body), r.Header}
		fmt.Fprint(w, ` {"ok": true} `)
	})

	for method, body := range map[string]string{"": `{"a":1}`, "POST": `{"a":1}`, "PUT": `{"a":1}`, "PATCH": `{"a":1}`, "GET": "", "DELETE": ""} {
		result, err := b.open.Execute(t.Context(), httpJob(jobs.HTTPCall{Method: method, URL: b.URL, Headers: plain(map[string]string{
			"X-Own": "value", "Content-Type": "application/merge-patch+json", "idempotency-key": "forged", "x-correlation-id": "forged",
		})}))
		require.NoError(t, err)
		require.Equal(t, `{"ok": true}`, string(result.Output))
		got := <-requests
		if method == "" {
			method = "POST"
		}
		require.Equal(t, method, got.method)
		require.Equal(t, body, got.body)
		require.Equal(t, []string{"6f1f0d5e-0d8e-4d0e-9a77-0a6c9b6f1a01:2"}, got.header["Idempotency-Key"])
		require.Equal(t, []string{"corr-1"}, got.header["X-Correlation-Id"])
		require.Equal(t, "6f1f0d5e-0d8e-4d0e-9a77-0a6c9b6f1a01", got.header.Get("X-Tes-Task-Id"))
		require.Equal(t, "value", got.header.Get("X-Own"))
		require.Equal(t, "application/merge-patch+json", got.header.Get("Content-Type"))
	}

	visits := b.visits.Load()
	for _, headers := range []map[string]string{
		{"Host": "other"}, {"content-length": "5"}, {"Transfer-Encoding": "chunked"}, {"X-A": "a\r\nX-B: b"}, {"X A": "a"}, {"": "a"}, {"X-A": "a\x00"}, {"Proxy-Authorization": "x"},
	} {
		_, err := b.open.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: b.URL, Headers: plain(headers)}))
		requireFailure(t, err, "HTTP_REQUEST_INVALID", false)
	}
	for _, u := range []string{"", "http://", "http:///path", "http://[::1", "http://a b/", "%zz"} {
		_, err := b.open.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: u}))
		require.Error(t, err)
	}
	_, err := b.open.Execute(t.Context(), jobs.Job{})
	requireFailure(t, err, "HTTP_REQUEST_INVALID", false)
	require.Equal(t, visits, b.visits.Load())
}

func TestHTTPResponse(t *testing.T) {
	t.Parallel()

	for name, tt := range map[string]struct {
		status    int
		body      string
		output    string
		code      string
		retryable bool
	}{
		"Object":       {200, `{"b":1,"a":[2]}`, `{"b":1,"a":[2]}`, "", false},
		"Created":      {201, `{}`, `{}`, "", false},
		"Array":        {200, `[1]`, `{"status":200,"body":"[1]"}`, "", false},
		"Text":         {202, "héllo\x00\xff", `{"status":202,"body":"héllo��"}`, "", false},
		"Empty":        {204, "", `{"status":204,"body":""}`, "", false},
		"NumberBomb":   {200, `{"a":1e131071}`, `{"status":200,"body":"{\"a\":1e131071}"}`, "", false},
		"TooLarge":     {200, `{"s3cret":"` + strings.Repeat("x", 2000) + `"}`, "", "HTTP_RESPONSE_TOO_LARGE", false},
		"BadRequest":   {400, "s3cret", "", "HTTP_400", false},
		"Unauthorized": {401, "s3cret", "", "HTTP_401", false},
		"NotFound":     {404, "s3cret", "", "HTTP_404", false},
		"Timeout":      {408, "s3cret", "", "HTTP_408", true},
		"TooMany":      {429, "s3cret", "", "HTTP_429", true},
		"Broken":       {500, "s3cret", "", "HTTP_500", true},
		"Unavailable":  {503, "s3cret", "", "HTTP_503", true},
		"Redirect":     {302, "", "", "HTTP_REDIRECT", false},
		"Permanent":    {308, "", "", "HTTP_REDIRECT", false},
		"NotModified":  {304, "", "", "HTTP_REDIRECT", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupHTTP(t, HTTPConfig{MaxBody: 1000}, func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "/elsewhere")
				w.Header().Set("Retry-After", "6")
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})
			result, err := b.open.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: b.URL + "/?key=s3cret"}))
			require.Equal(t, int64(1), b.visits.Load(), "a redirect is not followed")
			if tt.code != "" {
				requireFailure(t, err, tt.code, tt.retryable)
				if f := (*jobs.Failure)(nil); errors.As(err, &f) && tt.retryable {
					require.Equal(t, 6*time.Second, f.After)
				}
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.output, string(result.Output))
			require.NoError(t, jsonguard.Check(result.Output))
		})
	}
}

func TestHTTPNoAnswer(t *testing.T) {
	t.Parallel()

	t.Run("Refused", func(t *testing.T) {
		t.Parallel()
		b := setupHTTP(t, HTTPConfig{}, func(http.ResponseWriter, *http.Request) {})
		b.Close()
		_, err := b.open.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: b.URL + "/?key=s3cret"}))
		requireFailure(t, err, "CONNECTION_ERROR", true)
	})

	hangUp := func(w http.ResponseWriter, start string) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_, _ = io.WriteString(conn, start)
			_ = conn.Close()
		}
	}
	for name, start := range map[string]string{
		"HungUp":       "",
		"CutShort":     "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
		"NotHTTP":      "s" + strings.Repeat("y", 5000) + "\r\n\r\n",
		"HugeHeaders":  "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 100_000) + "\r\n\r\n",
		"OnlyInterims": strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 50),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupHTTP(t, HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) { hangUp(w, start) })
			_, err := b.open.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: b.URL + "/?key=s3cret"}))
			requireFailure(t, err, "CONNECTION_ERROR", true)
		})
	}

	t.Run("OwnTimeout", func(t *testing.T) {
		t.Parallel()
		b := setupHTTP(t, HTTPConfig{Timeout: 20 * time.Millisecond}, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		})
		_, err := b.open.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: b.URL}))
		requireFailure(t, err, "TIMEOUT_ERROR", true)
	})

	t.Run("AttemptEnds", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		b := setupHTTP(t, HTTPConfig{}, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			cancel() // while the body is being read
			<-r.Context().Done()
		})
		_, err := b.open.Execute(ctx, httpJob(jobs.HTTPCall{URL: b.URL}))
		require.ErrorIs(t, err, context.Canceled)
		var f *jobs.Failure
		require.False(t, errors.As(err, &f))
	})
}

// The forms in which a URL can point inside. None is reached.
func TestHTTPSSRF(t *testing.T) {
	t.Parallel()

	b := setupHTTP(t, HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) })
	_, port, err := net.SplitHostPort(b.Listener.Addr().String())
	require.NoError(t, err)

	for name, host := range map[string]string{
		"Loopback": "127.0.0.1", "LoopbackOther": "127.9.9.9", "LoopbackShort": "127.1", "LoopbackDecimal": "2130706433", "LoopbackHex": "0x7f000001", "LoopbackOctal": "0177.0.0.1",
		"LoopbackName": "localhost", "LoopbackNameDot": "localhost.", "Loopback6": "[::1]", "Loopback6Long": "[0:0:0:0:0:0:0:1]", "Unspecified": "0.0.0.0", "Unspecified6": "[::]",
		"Metadata": "169.254.169.254", "Metadata6": "[fd00:ec2::254]", "UniqueLocal": "[fd00::1]", "LinkLocal6": "[fe80::1]", "NAT64": "[64:ff9b::7f00:1]", "NAT64Metadata": "[64:ff9b::a9fe:a9fe]",
		"Mapped": "[::ffff:127.0.0.1]", "MappedHex": "[::ffff:7f00:1]", "MappedMetadata": "[::ffff:169.254.169.254]", "Compatible": "[::127.0.0.1]", "SixToFour": "[2002:7f00:1::]",
		"CarrierGrade": "100.64.0.1", "PrivateA": "10.0.0.1", "PrivateB": "172.16.0.1", "PrivateC": "192.168.1.1", "Broadcast": "255.255.255.255", "Multicast": "224.0.0.1", "Benchmark": "198.18.0.1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, p := range []string{"80", "443", port} {
				_, err := b.shut.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: "http://" + host + ":" + p + "/?key=s3cret"}))
				var f *jobs.Failure
				require.ErrorAs(t, err, &f)
				// Names that are no names, and IPv6 where there is none, end before the guard.
				require.Contains(t, []string{"SSRF_BLOCKED", "CONNECTION_ERROR"}, f.Code)
				if ip, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil && ip.Is4() {
					require.Equal(t, "SSRF_BLOCKED", f.Code)
				}
			}
		})
	}

	for name, u := range map[string]string{
		"File": "file:///etc/passwd", "Gopher": "gopher://127.0.0.1:" + port + "/_GET", "FTP": "ftp://127.0.0.1/", "NoScheme": "127.0.0.1", "Userinfo": "http://example.com@127.0.0.1:" + port + "/",
		"Password": "http://user:s3cret@example.com/", "Unix": "unix:///var/run/docker.sock", "Port": "http://93.184.216.34:22/", "DatabasePort": "http://93.184.216.34:5432/",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := b.shut.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: u}))
			requireFailure(t, err, "SSRF_BLOCKED", false)
		})
	}
	t.Cleanup(func() { require.Zero(t, b.visits.Load()) })
}

// A name that belongs to somebody else and points at us, at first or at the
// second look.
func TestHTTPRebinding(t *testing.T) {
	t.Parallel()

	b := setupHTTP(t, HTTPConfig{}, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) })
	var asked atomic.Int64
	resolver := egresstest.Resolver(t, func() netip.Addr {
		if asked.Add(1)%2 == 1 {
			return netip.MustParseAddr("127.0.0.1")
		}
		return netip.MustParseAddr("169.254.169.254")
	})
	h := newHTTP(HTTPConfig{}, resolver)
	t.Cleanup(h.Close)
	for range 4 {
		_, err := h.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: "http://rebind.example.com./"}))
		requireFailure(t, err, "CONNECTION_ERROR", true) // as for a name that is not known
	}
	require.NotZero(t, asked.Load())
	require.Zero(t, b.visits.Load())

	allowed := newHTTP(HTTPConfig{Allow: loopback}, egresstest.Resolver(t, func() netip.Addr { return netip.MustParseAddr("127.0.0.1") }))
	t.Cleanup(allowed.Close)
	_, port, err := net.SplitHostPort(b.Listener.Addr().String())
	require.NoError(t, err)
	_, err = allowed.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: "http://inside.example.com.:" + port + "/"}))
	require.NoError(t, err)
}

// Whoever may write a definition cannot find out which names exist inside, nor where our
// name server is: a name that leads inside and one that is unknown fail alike. The log
// tells them apart.
func TestHTTPSaysNothingOfNames(t *testing.T) {
	t.Parallel()

	fail := func(u string, answer netip.Addr) (jobs.Failure, string) {
		var log bytes.Buffer
		h := newHTTP(HTTPConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))}, egresstest.Resolver(t, func() netip.Addr { return answer }))
		t.Cleanup(h.Close)
		_, err := h.Execute(t.Context(), httpJob(jobs.HTTPCall{URL: u}))
		var f *jobs.Failure
		require.ErrorAs(t, err, &f)
		return *f, log.String()
	}
	unknown, log := fail("http://vault.inside.example./?key=s3cret", netip.Addr{})
	require.Equal(t, "CONNECTION_ERROR", unknown.Code)
	require.Equal(t, egress.Unknown, unknown.Message)
	require.True(t, *unknown.Retryable, "names come and go")
	require.Contains(t, log, "no such host")
	require.NotContains(t, log, "s3cret")

	for _, inside := range []string{"127.0.0.1", "10.9.8.7", "169.254.169.254", "168.63.129.16", "100.100.100.200"} {
		refused, log := fail("http://vault.inside.example./?key=s3cret", netip.MustParseAddr(inside))
		require.Equal(t, unknown, refused, inside)
		require.Contains(t, log, inside)
		require.NotContains(t, log, "s3cret")
	}
}
