package automated

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
	"github.com/seed-3f7a0631/tes/outbox/egress"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// HTTPConfig configures the executor for HTTP tasks. The zero value is for production.
type HTTPConfig struct {
	Allow   []netip.Prefix // additional networks, on any port; default none: only the public internet, ports 80 and 443
	Timeout time.Duration  // of one call, within the deadline of the attempt; default 30 s
	MaxBody int64          // maximum bytes of a response; default 1 MiB
	Secrets Secrets        // the secrets that headers refer to; default none

	// Wrap wraps the transport, for tracing. Default: not wrapped.
	Wrap func(http.RoundTripper) http.RoundTripper
	// Logger gets the details of connection errors, which the task does not get. Default
	// slog.Default.
	Logger *slog.Logger
}

// HTTP is the executor "http": it sends the input of a task to the URL of the definition. A
// response with status 2xx completes the task. Safe for concurrent use.
//
// The URL is not trusted: package egress decides which addresses may be called.
type HTTP struct {
	client  *http.Client
	timeout time.Duration
	maxBody int64
	log     *slog.Logger
	secrets Secrets
}

// NewHTTP returns an executor with its own connections. Close closes the idle ones.
func NewHTTP(cfg HTTPConfig) *HTTP { return newHTTP(cfg, nil) }

// newHTTP is NewHTTP with a resolver, for tests; nil is the system's resolver.
func newHTTP(cfg HTTPConfig, resolver *net.Resolver) *HTTP {
	return &HTTP{
		timeout: cmp.Or(cfg.Timeout, 30*time.Second),
		maxBody: cmp.Or(cfg.MaxBody, 1<<20),
		log:     cmp.Or(cfg.Logger, slog.Default()),
		secrets: cfg.Secrets,
		client:  egress.NewClient(egress.Config{Allow: cfg.Allow, Resolver: resolver, Wrap: cfg.Wrap}),
	}
}

// Close closes idle connections. Running calls continue.
func (h *HTTP) Close() { h.client.CloseIdleConnections() }

// Execute makes one call. Retries are left to the retry policy of the task. Neither the
// output nor a failure contains a secret of the request.
func (h *HTTP) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	callCtx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()

	request, secrets, err := h.newRequest(callCtx, job)
	if err != nil {
		return jobs.Result{}, err
	}

	result, err := h.call(ctx, callCtx, job, secrets, request)

	// A server may echo the request in its response or its status text.
	if f := (*jobs.Failure)(nil); errors.As(err, &f) {
		err = secrets.failure(f)
	}

	result.Output = secrets.output(result.Output)
	return result, err
}

// call sends the request. ctx belongs to the attempt, callCtx to the request.
func (h *HTTP) call(ctx, callCtx context.Context, job jobs.Job, secrets sent, request *http.Request) (jobs.Result, error) {
	response, err := h.client.Do(request)
	if err != nil {
		return jobs.Result{}, h.callError(ctx, callCtx, job, secrets, err)
	}
	defer response.Body.Close()

	// The failure of a refusal has the status alone: the body is not read.
	if err := refusal(response); err != nil {
		return jobs.Result{}, err
	}

	// One byte more than allowed, to detect a longer body.
	body, err := io.ReadAll(io.LimitReader(response.Body, h.maxBody+1))
	switch {
	case err != nil:
		return jobs.Result{}, h.callError(ctx, callCtx, job, secrets, err)
	case int64(len(body)) > h.maxBody:
		return jobs.Result{}, permanent("HTTP_RESPONSE_TOO_LARGE", fmt.Sprintf("the response is larger than %d bytes", h.maxBody))
	}

	output, err := toOutput(response.StatusCode, body)
	return jobs.Result{Output: output}, err
}

// newRequest returns the request, and the secrets that the request contains.
func (h *HTTP) newRequest(ctx context.Context, job jobs.Job) (*http.Request, sent, error) {
	request, err := bareRequest(ctx, job)
	if err != nil {
		return nil, nil, err
	}

	secrets, err := h.setHeaders(request, job)
	if err != nil {
		return nil, nil, err
	}

	// Last, so that a definition cannot override these headers.
	request.Header.Set("Idempotency-Key", fmt.Sprintf("%s:%d", job.TaskID, job.Attempt))
	request.Header.Set("X-Tes-Task-Id", job.TaskID.String())
	request.Header.Del("X-Correlation-Id")
	if job.CorrelationID != "" && validHeader("X-Correlation-Id", job.CorrelationID) {
		request.Header.Set("X-Correlation-Id", job.CorrelationID)
	}

	return request, secrets, nil
}

// setHeaders sets the headers of the definition, with secrets in place of references.
func (h *HTTP) setHeaders(request *http.Request, job jobs.Job) (secrets sent, err error) {
	for name, value := range job.Config.HTTP.Headers {
		text := value.Text
		if value.SecretRef != "" {
			if text, err = h.secret(job, value.SecretRef); err != nil {
				return nil, err
			}
		}

		if !validHeader(name, text) {
			return nil, permanent("HTTP_REQUEST_INVALID", "a header is not valid, or may not be set by a definition")
		}

		request.Header.Set(name, text)

		// A secret by reference, or a header that is secret by its name.
		if value.SecretRef != "" || credential.MatchString(name) {
			secrets.add(text)
		}
	}

	return secrets, nil
}

// secret returns the value of a secret. A missing secret is a failure that may be retried:
// secrets are provided by another system, which may be late for this process.
func (h *HTTP) secret(job jobs.Job, name string) (string, error) {
	if job.Owner == nil {
		return "", permanent(CodeSecret, "only a registered definition may refer to a secret")
	}

	value, err := h.secrets.lookup(*job.Owner, name)
	if err != nil {
		return "", retryable(CodeSecret, fmt.Sprintf("the secret %q %v", name, err))
	}

	return value, nil
}

// CodeSecret is the failure code for a secret that is missing or cannot be read.
const CodeSecret = "SECRET_UNAVAILABLE"

// bareRequest returns the request with the headers that every request has.
func bareRequest(ctx context.Context, job jobs.Job) (*http.Request, error) {
	config := job.Config.HTTP
	if config == nil {
		return nil, permanent("HTTP_REQUEST_INVALID", "the definition has no executionConfig.http")
	}

	to, err := url.Parse(config.URL)
	if err != nil || to.Host == "" && (to.Scheme == "http" || to.Scheme == "https") {
		// Without the parser's error, which quotes the URL.
		return nil, permanent("HTTP_REQUEST_INVALID", "the URL is not valid")
	}

	if to.Scheme != "http" && to.Scheme != "https" {
		return nil, permanent("SSRF_BLOCKED", "only http and https are called")
	}
	if to.User != nil {
		return nil, permanent("SSRF_BLOCKED", "a URL with a user name or password is not called")
	}

	method := cmp.Or(strings.ToUpper(config.Method), http.MethodPost)
	var body io.Reader
	bodyless := method == http.MethodGet || method == http.MethodHead || method == http.MethodDelete
	if !bodyless {
		body = bytes.NewReader(job.Input)
	}

	request, err := http.NewRequestWithContext(ctx, method, to.String(), body)
	if err != nil {
		return nil, permanent("HTTP_REQUEST_INVALID", "the request is not valid")
	}

	if !bodyless {
		request.Header.Set("Content-Type", "application/json")
	}

	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "tes")

	return request, nil
}

// framing are the headers of the connection. A definition that sets them could smuggle a
// second request, or address another host.
var framing = []string{"Connection", "Content-Length", "Expect", "Host", "Keep-Alive", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

func validHeader(name, value string) bool {
	if name == "" || slices.Contains(framing, http.CanonicalHeaderKey(name)) {
		return false
	}

	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}

	for _, c := range []byte(value) {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}

	return true
}

// callError converts an error of the call into a failure. ctx belongs to the attempt,
// callCtx ends earlier.
//
// The author of the definition can read the failure. So the failure contains no address,
// and does not distinguish an unknown name from a name with a forbidden address. Both are
// retried, because names change. The log has the details.
func (h *HTTP) callError(ctx, callCtx context.Context, job jobs.Job, secrets sent, err error) error {
	if ended := ctx.Err(); ended != nil {
		return fmt.Errorf("http call: %w", ended)
	}

	// The text of a url.Error is the whole URL, with keys in the query.
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}

	h.log.InfoContext(ctx, "an http task got no answer", "task", job.TaskID, "attempt", job.Attempt, "error", secrets.hide(err.Error()))

	switch {
	// The author of a literal address knows the address, so the failure may give the reason.
	case errors.Is(err, egress.ErrBlocked) && literal(job.Config.HTTP.URL):
		return permanent("SSRF_BLOCKED", "the address is not one that may be called")
	case callCtx.Err() != nil:
		return retryable("TIMEOUT_ERROR", "no answer in time")
	}

	return retryable("CONNECTION_ERROR", egress.Reason(err))
}

// literal reports whether the host of a URL is an address, and not a name.
func literal(text string) bool {
	to, err := url.Parse(text)
	if err != nil {
		return false
	}

	_, err = netip.ParseAddr(to.Hostname())
	return err == nil
}

// refusal returns the failure for a status; nil for 2xx.
func refusal(response *http.Response) error {
	status := response.StatusCode
	code, message := fmt.Sprintf("HTTP_%d", status), fmt.Sprintf("the answer is %d %s", status, http.StatusText(status))
	var f *jobs.Failure

	switch {
	case status >= 200 && status < 300:
		return nil
	case status >= 300 && status < 400:
		f = permanent("HTTP_REDIRECT", message+"; redirects are not followed")
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500:
		f = retryable(code, message)
	default:
		// The other statuses blame the request, and a retry would send the same request.
		f = permanent(code, message)
	}

	f.Details = json.RawMessage(fmt.Sprintf(`{"status":%d}`, status))
	f.After = retry.After(response.Header, time.Now())

	return f
}

// retryable is a failure that a retry may repair.
func retryable(code, message string) *jobs.Failure {
	yes := true
	return &jobs.Failure{Code: code, Message: shorten(message), Retryable: &yes}
}

// toOutput returns a JSON object unchanged, and any other body as text in an object.
func toOutput(status int, body []byte) (json.RawMessage, error) {
	if trimmed := bytes.TrimSpace(body); len(trimmed) > 0 && trimmed[0] == '{' && jsonguard.Check(trimmed) == nil {
		return trimmed, nil
	}

	// jsonb accepts neither invalid UTF-8 nor NUL.
	text := strings.ReplaceAll(strings.ToValidUTF8(string(body), "�"), "\x00", "�")
	output, err := json.Marshal(struct {
		Status int    `json:"status"`
		Body   string `json:"body"`
	}{status, text})
	if err != nil {
		return nil, fmt.Errorf("http answer: %w", err)
	}

	return output, nil
}
