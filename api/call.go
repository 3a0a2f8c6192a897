package api

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/jobs"
)

// call is the record of one request. The request's goroutine fills it; observe logs it as one line
// when the request ends. It is also the response writer, to see the status and to bound the time of
// writing.
type call struct {
	http.ResponseWriter
	id          string
	path        string
	start       time.Time
	route       string
	caller      *auth.Caller
	traceparent string     // of the request's span; the task keeps it
	span        trace.Span // nil without tracing
	body        []byte     // unchanged, checked by jsonguard.Check; read-only
	keyed       *jobs.Call // the write under an idempotency key that this request has begun; nil: none
	concluded   bool       // the operation has answered or released keyed
	unsure      bool       // the result of keyed is not final, so the request may be repeated
	task        string     // the id of the request's task, for the log
	refused     string     // why the token was refused, for the log
	err         error      // the cause of the error, for the log; clients never see it
	status      int        // 0: not set yet
	sent        bool       // the status and the headers have been sent
	asked100    bool       // the client waits for a 100 Continue before it sends its body
	rest        *arriving  // the request's body until it has been read completely; nil: no body is left
	patience    time.Duration
	begun       time.Time // when the first byte of the response was written
	written     int64     // bytes of the response's body
	cut         error     // why the response could not be written
}

// arriving is a request's body. It notes when the body has been read completely.
type arriving struct {
	io.ReadCloser
	c *call
}

// Read implements io.Reader.
func (a *arriving) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		a.c.rest = nil
	}
	return n, err
}

// expects notes whether the request has a body. r must be a copy of the server's request: net/http
// inspects the type of the body in the original.
func (c *call) expects(r *http.Request) {
	if r.ContentLength != 0 && r.Body != nil {
		c.rest = &arriving{r.Body, c}
		r.Body = c.rest
		c.asked100 = r.Header.Get("Expect") != ""
	}
}

type callKey struct{}

// callOf returns the record of a request; nil for a context without a request.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// WriteHeader keeps the status until the first Write. huma sets the status before it encodes the
// body, and a body that cannot be encoded must become a 500.
func (c *call) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
}

// Write sends the status, if it has not been sent, and the bytes.
func (c *call) Write(b []byte) (int, error) {
	c.send()
	c.hurry(len(b))
	n, err := c.ResponseWriter.Write(b)
	if err != nil && c.cut == nil {
		c.cut = err
	}
	return n, err
}

// answerTime is the default of Config.AnswerTime.
const answerTime = 5 * time.Second

// hurry sets the write deadline for the bytes written so far and n more.
func (c *call) hurry(n int) {
	if c.begun.IsZero() {
		c.begun = time.Now()
	}
	// The client gets one more unit of time for each started MiB.
	c.written += int64(n)
	until := c.begun.Add(cmp.Or(c.patience, answerTime) * time.Duration(1+(c.written+1<<20-1)>>20))
	// Not every writer has deadlines; the server's own limit holds then.
	_ = http.NewResponseController(c.ResponseWriter).SetWriteDeadline(until)
}

func (c *call) send() {
	if c.sent {
		return
	}

	c.sent = true
	if c.status == 0 {
		c.status = http.StatusOK
	}
	if c.rest != nil {
		c.leaveBody()
	}

	c.ResponseWriter.WriteHeader(c.status)
}

// How long, and for how many bytes, the server waits for a body that the response does not depend
// on.
const (
	besideTime = 50 * time.Millisecond // before the response
	afterTime  = time.Second           // after the response, so that a client that is still sending gets to read it
	mostBeside = 64 << 10
)

// leaveBody keeps the response from waiting for an unread body. net/http reads such a body to its
// end before it sends anything: an unauthenticated client that announces a body and sends none
// would hold the connection until the server's read timeout, and only then get its 401. A body that
// has already arrived is read and the connection is kept; otherwise the connection is closed after
// the response.
func (c *call) leaveBody() {
	header, control := c.Header(), http.NewResponseController(c.ResponseWriter)
	// net/http does not wait in these cases.
	if header.Get("Connection") != "close" && !c.asked100 {
		// A deadline in the past would also stop the reading of the next request: it is lifted below.
		if control.SetReadDeadline(time.Now().Add(besideTime)) != nil {
			// The writer has no connection, as in tests.
			return
		}
		_, _ = io.CopyN(io.Discard, c.rest, mostBeside)
		if c.rest == nil {
			_ = control.SetReadDeadline(time.Time{})
			return
		}
		header.Set("Connection", "close")
	}

	// net/http reads on after the response, so that a client still sending can read the response.
	_ = control.SetReadDeadline(time.Now().Add(afterTime))
}

// Unwrap is for http.ResponseController.
func (c *call) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Flush is for mounted handlers that assert http.Flusher.
func (c *call) Flush() {
	c.send()
	_ = http.NewResponseController(c.ResponseWriter).Flush()
}

// Header values of every response. Shared between responses: a header is replaced, never changed in
// place.
var (
	noSniff = []string{"nosniff"}
	noStore = []string{"no-store"}
)

// ofAnAnswer are the headers of a successful response. writeProblem removes them.
var ofAnAnswer = []string{"ETag", "Location", "Idempotency-Replayed", "Content-Length", "Content-Encoding"}

// observer is the outermost middleware.
type observer struct {
	log            *slog.Logger
	tracer         trace.Tracer // nil: no spans
	server         []string     // the Server header; nil: no such header
	requestTimeout time.Duration
	answerTime     time.Duration
	mounts         mounts
	refusals       *refusals
}

func newObserver(cfg Config, counts *refusals) *observer {
	o := &observer{
		log: cfg.Logger, tracer: cfg.Tracer, requestTimeout: cfg.RequestTimeout, answerTime: cfg.AnswerTime, mounts: cfg.Mounts, refusals: counts,
	}
	if cfg.Version != "" {
		o.server = []string{"tes/" + cfg.Version}
	}
	return o
}

// observe is the outermost middleware: request id, record, time limit, log line, and a 500 for a
// panic.
func (o *observer) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{ResponseWriter: w, id: requestID(r), path: r.URL.Path, start: time.Now(), patience: o.answerTime}
		header := w.Header()
		header["X-Request-Id"] = []string{c.id}
		header["X-Content-Type-Options"] = noSniff
		if o.server != nil {
			header["Server"] = o.server
		}
		// Mounts set their own cache headers and time limits.
		ctx := o.trace(context.WithValue(r.Context(), callKey{}, c), c, r)
		if !o.mounts.has(c.path) {
			header["Cache-Control"] = noStore
			var cancel context.CancelFunc
			limit := o.requestTimeout
			if c.path == leasesPath {
				// A dequeue may be parked.
				limit += longestWait
			}
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}

		r = r.WithContext(ctx)
		c.expects(r)
		defer o.finish(c, r)
		if !plainPath(c.path) {
			writeProblem(c, problem(http.StatusBadRequest, codeValidation, "the path contains control characters or is not UTF-8"))
			return
		}
		next.ServeHTTP(c, r)
	})
}

// finish sends what is left of the response and logs the request.
func (o *observer) finish(c *call, r *http.Request) {
	cut := false
	if v := recover(); v != nil {
		// Nothing was sent yet: the response becomes a 500 without the headers of a success.
		if cut = c.sent; !cut {
			c.status = 0
			header := c.Header()
			for _, name := range ofAnAnswer {
				header.Del(name)
			}
			writeProblem(c, problem(http.StatusInternalServerError, codeInternal, internalText))
		}

		// huma also panics when a response cannot be written. The cause is the client, so no error is
		// logged.
		if err, ok := v.(error); c.cut == nil && (!ok || !errors.Is(err, http.ErrAbortHandler)) {
			o.log.LogAttrs(r.Context(), slog.LevelError, "panic", slog.String("request_id", c.id), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
		}
	}

	if !cut && c.status != 0 {
		// A response without a body.
		c.send()
	}

	o.logCall(c, r)
	c.endSpan(r)
	if cut {
		// Aborts the connection: half a response must not look like a whole one.
		panic(http.ErrAbortHandler)
	}
}

func (o *observer) logCall(c *call, r *http.Request) {
	level := slog.LevelInfo
	// RequestTimeout ends in DeadlineExceeded; a client that disconnects causes Canceled.
	gone := c.cut != nil || errors.Is(r.Context().Err(), context.Canceled)
	slow := errors.Is(c.cut, os.ErrDeadlineExceeded)
	switch {
	case slow:
		o.refusals.slow.Add(1)
	case gone:
		o.refusals.gone.Add(1)
	}
	switch {
	case gone:
	case c.status >= http.StatusInternalServerError:
		level = slog.LevelError
	case c.route == "/livez" || c.route == "/readyz":
		level = slog.LevelDebug
	}
	// Attributes are costly, so the level is checked first.
	ctx := r.Context()
	if !o.log.Enabled(ctx, level) {
		return
	}

	attrs := make([]slog.Attr, 0, 12)
	attrs = append(attrs,
		slog.String("method", r.Method),
		slog.String("route", c.route),
		slog.Int("status", c.status),
		slog.Float64("ms", float64(time.Since(c.start).Microseconds())/1000),
		slog.String("request_id", c.id),
	)
	// The path of a known route may contain a lease token, so only unknown paths are logged.
	if c.route == "" {
		attrs = append(attrs, slog.String("path", sanitize(c.path, 200)))
	}

	if c.caller != nil {
		attrs = append(attrs, slog.String("caller", sanitize(c.caller.Name, 128)))
		if c.caller.Tenant != "" {
			attrs = append(attrs, slog.String("tenant", sanitize(c.caller.Tenant, 128)))
		}
		if c.caller.Subject != "" && c.caller.Subject != c.caller.Name {
			attrs = append(attrs, slog.String("subject", sanitize(c.caller.Subject, 128)))
		}
	}

	if c.task != "" {
		attrs = append(attrs, slog.String("task", c.task))
	}
	if gone {
		attrs = append(attrs, slog.Bool("client_gone", true))
	}

	switch {
	case slow:
		attrs = append(attrs, slog.String("cut", "the client read too slowly"), slog.Int64("bytes", c.written))
	case c.cut != nil:
		attrs = append(attrs, slog.String("cut", c.cut.Error()), slog.Int64("bytes", c.written))
	}
	if c.refused != "" {
		attrs = append(attrs, slog.String("refused", c.refused))
	}

	if c.err != nil {
		attrs = append(attrs, slog.String("error", c.err.Error()))
	}

	o.log.LogAttrs(ctx, level, "request", attrs...)
}

// writeProblem writes a problem document outside huma.
func writeProblem(w *call, p *Problem) {
	_ = p.at(w)
	header := w.Header()
	for name, values := range p.headers {
		header[name] = values
	}

	header.Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	enc := json.NewEncoder(w)
	// As huma does; escaping would make the document longer.
	enc.SetEscapeHTML(false)
	_ = enc.Encode(p)
}

// requestID is the client's X-Request-Id if it is short and printable, else a new random one. It is
// no secret, so math/rand is sufficient.
func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); id != "" && len(id) <= 64 && strings.Trim(id, idBytes) == "" {
		return id
	}

	var b [16]byte
	hi, lo := rand.Uint64(), rand.Uint64()
	for i := range 8 {
		b[i], b[8+i] = byte(hi>>(8*i)), byte(lo>>(8*i))
	}

	return hex.EncodeToString(b[:])
}

const idBytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.:"

// plainPath refuses paths that PostgreSQL could not store. An id in a path passes no other check.
func plainPath(path string) bool {
	// Bytes, not runes: control characters are single bytes in UTF-8.
	for i := 0; i < len(path); i++ {
		if path[i] < ' ' || path[i] == 0x7f {
			return false
		}
	}
	return utf8.ValidString(path)
}

// about notes the request's task, for the log.
func about(ctx context.Context, id fmt.Stringer) {
	if c := callOf(ctx); c != nil {
		c.task = id.String()
	}
}
