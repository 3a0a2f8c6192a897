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

// HTTPConfig is where HTTP tasks may go and how long they may take. The zero
// value is for production.
type HTTPConfig struct {
	Allow   []netip.Prefix // networks that may be called, on any port; default none but the public internet, on 80 and 443
	Timeout time.Duration  // of one call, within the attempt's own deadline; default 30 s
	MaxBody int64          // bytes read of a response; default 1 MiB
	Secrets Secrets        // what headers refer to; default none

	// Wrap goes round the transport, for tracing. Default nothing does.
	Wrap func(http.RoundTripper) http.RoundTripper
	// Logger is told why there was no answer, which the task is not. Default slog.Default.
	Logger *slog.Logger
}

// HTTP is the executor "http": it sends a task's input to the URL that its
// definition names. What answers 2xx completes the task. Safe for concurrent use.
//
// The URL is another's word: package egress judges where it leads.
type HTTP struct {
	client  *http.Client
	timeout time.Duration
	maxBody int64
	log     *slog.Logger
	secrets Secrets
}

// NewHTTP returns an executor with connections of its own. Close drops the idle
// ones.
func NewHTTP(cfg HTTPConfig) *HTTP { return newHTTP(cfg, nil) }

// newHTTP takes the resolver that a test plays; nil is the system's.
func newHTTP(cfg HTTPConfig, resolver *net.Resolver) *HTTP {
	return &HTTP{
		timeout: cmp.Or(cfg.Timeout, 30*time.Second),
		maxBody: cmp.Or(cfg.MaxBody, 1<<20),
		log:     cmp.Or(cfg.Logger, slog.Default()),
		secrets: cfg.Secrets,
		client:  egress.NewClient(egress.Config{Allow: cfg.Allow, Resolver: resolver, Wrap: cfg.Wrap}),
	}
}

// Close drops idle connections. Calls that run go on.
func (h *HTTP) Close() { h.client.CloseIdleConnections() }

// Execute makes one call. It retries nothing: that is the task's policy. Neither the output
// nor a failure repeats a secret that was sent.
func (h *HTTP) Execute(ctx context.Context, job jobs.Job) (jobs.Result, error) {
	callCtx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	request, secrets, err := h.newRequest(callCtx, job)
	if err != nil {
		return jobs.Result{}, err
	}
	result, err := h.call(ctx, callCtx, job, secrets, request)
	if f := (*jobs.Failure)(nil); errors.As(err, &f) {
		err = secrets.failure(f)
	}
	result.Output = secrets.output(result.Output)
	return result, err
}

// call makes the request. ctx is the attempt's, callCtx the request's.
func (h *HTTP) call(ctx, callCtx context.Context, job jobs.Job, secrets sent, request *http.Request) (jobs.Result, error) {
	response, err := h.client.Do(request)
	if err != nil {
		return jobs.Result{}, h.callError(ctx, callCtx, job, secrets, err)
	}
	defer response.Body.Close()
	if err := refusal(response); err != nil {
		return jobs.Result{}, err
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, h.maxBody+1))
	switch {
	case err != nil:
		return jobs.Result{}, h.callError(ctx, callCtx, job, secrets, err)
	case int64(len(body)) > h.maxBody:
		return jobs.Result{}, final("HTTP_RESPONSE_TOO_LARGE", fmt.Sprintf("the response is larger than %d bytes", h.maxBody))
	}
	output, err := toOutput(response.StatusCode, body)
	return jobs.Result{Output: output}, err
}

// newRequest makes the request, and says which secrets are in it.
func (h *HTTP) newRequest(ctx context.Context, job jobs.Job) (*http.Request, sent, error) {
	request, err := bareRequest(ctx, job)
	if err != nil {
		return nil, nil, err
	}
	secrets, err := h.setHeaders(request, job)
	if err != nil {
		return nil, nil, err
	}
	// Ours come last: a definition does not choose them.
	request.Header.Set("Idempotency-Key", fmt.Sprintf("%s:%d", job.TaskID, job.Attempt))
	request.Header.Set("X-Tes-Task-Id", job.TaskID.String())
	request.Header.Del("X-Correlation-Id")
	if job.CorrelationID != "" && validHeader("X-Correlation-Id", job.CorrelationID) {
		request.Header.Set("X-Correlation-Id", job.CorrelationID)
	}
	return request, secrets, nil
}

// setHeaders sets the definition's headers, with their secrets looked up.
func (h *HTTP) setHeaders(request *http.Request, job jobs.Job) (secrets sent, err error) {
	for name, value := range job.Config.HTTP.Headers {
		text := value.Text
		if value.SecretRef != "" {
			if text, err = h.secret(job, value.SecretRef); err != nil {
				return nil, err
			}
		}
		if !validHeader(name, text) {
			return nil, final("HTTP_REQUEST_INVALID", "a header is not valid or not the definition's to set")
		}
		request.Header.Set(name, text)
		if value.SecretRef != "" || credential.MatchString(name) {
			secrets.add(text)
		}
	}
	return secrets, nil
}

// secret looks a secret up for the attempt. Where there is none the attempt fails, and may
// be tried again: secrets are brought by others, and may come late to one process.
func (h *HTTP) secret(job jobs.Job, name string) (string, error) {
	if job.Owner == nil {
		return "", final(CodeSecret, "only a registered definition may refer to a secret")
	}
	value, err := h.secrets.lookup(*job.Owner, name)
	if err != nil {
		return "", again(CodeSecret, fmt.Sprintf("the secret %q %v", name, err))
	}
	return value, nil
}

// CodeSecret is the code of an attempt whose secret was not there or could not be read.
const CodeSecret = "SECRET_UNAVAILABLE"

// bareRequest has the headers that every request has.
func bareRequest(ctx context.Context, job jobs.Job) (*http.Request, error) {
	config := job.Config.HTTP
	if config == nil {
		return nil, final("HTTP_REQUEST_INVALID", "the definition has no executionConfig.http")
	}
	to, err := url.Parse(config.URL)
	if err != nil || to.Host == "" && (to.Scheme == "http" || to.Scheme == "https") {
		return nil, final("HTTP_REQUEST_INVALID", "the URL is not valid") // the parser's error quotes it
	}
	if to.Scheme != "http" && to.Scheme != "https" {
		return nil, final("SSRF_BLOCKED", "only http and https are called")
	}
	if to.User != nil {
		return nil, final("SSRF_BLOCKED", "a URL with a user name or password is not called")
	}
	method := cmp.Or(strings.ToUpper(config.Method), http.MethodPost)
	var body io.Reader
	bodyless := method == http.MethodGet || method == http.MethodHead || method == http.MethodDelete
	if !bodyless {
		body = bytes.NewReader(job.Input)
	}
	request, err := http.NewRequestWithContext(ctx, method, to.String(), body)
	if err != nil {
		return nil, final("HTTP_REQUEST_INVALID", "the request is not valid")
	}
	if !bodyless {
		request.Header.Set("Content-Type", "application/json")
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("User-Agent", "tes")
	return request, nil
}

// framing headers belong to the connection; a definition that sets them would
// smuggle a second request or speak to another host.
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

// callError tells apart why there is no answer. ctx is the attempt's, callCtx
// ends earlier.
//
// Whoever writes a definition reads what it says here. So it tells no address, and does
// not tell a name that is unknown from one that leads where it may not: both may be tried
// again, for names come and go. The log has the rest.
func (h *HTTP) callError(ctx, callCtx context.Context, job jobs.Job, secrets sent, err error) error {
	if ended := ctx.Err(); ended != nil {
		return fmt.Errorf("http call: %w", ended)
	}
	var wrapped *url.Error // quotes the whole URL, and with it keys in its query
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	h.log.InfoContext(ctx, "an http task got no answer", "task", job.TaskID, "attempt", job.Attempt, "error", secrets.hide(err.Error()))
	switch {
	case errors.Is(err, egress.ErrBlocked) && literal(job.Config.HTTP.URL):
		return final("SSRF_BLOCKED", "the address is not one that may be called")
	case callCtx.Err() != nil:
		return again("TIMEOUT_ERROR", "no answer in time")
	}
	return again("CONNECTION_ERROR", egress.Reason(err))
}

// literal says whether a URL has an address for a host, and no name.
func literal(text string) bool {
	to, err := url.Parse(text)
	if err != nil {
		return false
	}
	_, err = netip.ParseAddr(to.Hostname())
	return err == nil
}

// refusal is the failure that a status means; nil for 2xx.
func refusal(response *http.Response) error {
	status := response.StatusCode
	code, message := fmt.Sprintf("HTTP_%d", status), fmt.Sprintf("the answer is %d %s", status, http.StatusText(status))
	var f *jobs.Failure
	switch {
	case status >= 200 && status < 300:
		return nil
	case status >= 300 && status < 400:
		f = final("HTTP_REDIRECT", message+"; redirects are not followed")
	case status == http.StatusRequestTimeout, status == http.StatusTooManyRequests, status >= 500:
		f = again(code, message)
	default:
		f = final(code, message)
	}
	f.Details = json.RawMessage(fmt.Sprintf(`{"status":%d}`, status))
	f.After = retry.After(response.Header, time.Now())
	return f
}

// again is a failure that may pass.
func again(code, message string) *jobs.Failure {
	yes := true
	return &jobs.Failure{Code: code, Message: shorten(message), Retryable: &yes}
}

// toOutput is a JSON object as it came, and anything else as text inside one.
func toOutput(status int, body []byte) (json.RawMessage, error) {
	if trimmed := bytes.TrimSpace(body); len(trimmed) > 0 && trimmed[0] == '{' && jsonguard.Check(trimmed) == nil {
		return trimmed, nil
	}
	text := strings.ReplaceAll(strings.ToValidUTF8(string(body), "�"), "\x00", "�") // jsonb holds neither
	output, err := json.Marshal(struct {
		Status int    `json:"status"`
		Body   string `json:"body"`
	}{status, text})
	if err != nil {
		return nil, fmt.Errorf("http answer: %w", err)
	}
	return output, nil
}
