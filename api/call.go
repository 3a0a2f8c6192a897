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

// call is what we know of one request. It is written by whoever learns something,
// one goroutine, and read when the request ends: one line in the log holds it all.
// It is the response writer too, to see what became of the request.
type call struct {
	http.ResponseWriter
	id          string
	path        string
	start       time.Time
	route       string
	caller      *auth.Caller
	traceparent string     // what a task that it makes remembers of it
	span        trace.Span // nil without tracing
	body        []byte     // as it was sent; guarded, and not to be changed
	keyed       *jobs.Call // the write under an idempotency key that has its turn; nil: none
	concluded   bool       // keyed was answered or released by the operation
	unsure      bool       // what keyed came to is not final: the same may be asked again
	task        string     // the id of the task it was about
	refused     string     // why a token was not good enough
	err         error      // what we do not tell the client
	status      int        // 0: nobody has said it yet
	sent        bool       // the status and the header are on their way
	asked100    bool       // the client sends its body when it is told to
	rest        *arriving  // the request's body, until it has been read to its end; nil: there is none
	patience    time.Duration
	begun       time.Time // when the answer's first byte was handed on
	written     int64     // bytes of it
	cut         error     // why the answer could not be written
}

// arriving is a request's body. It notes when all of it has come.
type arriving struct {
	io.ReadCloser
	c *call
}

// Read is io.Reader's.
func (a *arriving) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		a.c.rest = nil
	}
	return n, err
}

// expects notes whether the request has a body. The request must not be the server's own:
// net/http looks at the type of that one's body.
func (c *call) expects(r *http.Request) {
	if r.ContentLength != 0 && r.Body != nil {
		c.rest = &arriving{r.Body, c}
		r.Body = c.rest
		c.asked100 = r.Header.Get("Expect") != ""
	}
}

type callKey struct{}

// callOf is the request's record; nil for a context of no request.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// WriteHeader remembers the status. It is sent with the first of the body: huma says it
// before it knows whether there is one, and an answer that cannot be written is a 500.
func (c *call) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
}

// Write sends what it is given, and before it the status.
func (c *call) Write(b []byte) (int, error) {
	c.send()
	c.hurry(len(b))
	n, err := c.ResponseWriter.Write(b)
	if err != nil && c.cut == nil {
		c.cut = err
	}
	return n, err //nolint:wrapcheck // an io.Writer's error is its own
}

// answerTime is how long a client may take to read an answer, unless Config.AnswerTime
// says otherwise.
const answerTime = 5 * time.Second

// hurry gives the client its time to read what is written so far, and n bytes more.
func (c *call) hurry(n int) {
	if c.begun.IsZero() {
		c.begun = time.Now()
	}
	c.written += int64(n)
	until := c.begun.Add(cmp.Or(c.patience, answerTime) * time.Duration(1+(c.written+1<<20-1)>>20))
	_ = http.NewResponseController(c.ResponseWriter).SetWriteDeadline(until) // not every writer can; the server's own limit holds then
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

// How long, and for how much, a body is waited for that no answer depends on.
const (
	besideTime = 50 * time.Millisecond // before the answer
	afterTime  = time.Second           // after it, so that a client still sending gets to read it
	mostBeside = 64 << 10
)

// leaveBody keeps an answer from waiting for a body that nobody has read. net/http would
// read the body to its end before it sends anything: a stranger who announces one and
// sends none would hold the connection until the server's read timeout, and hear the 401
// only then. A body that is there already is taken, and the connection used again; else
// it is closed after the answer.
func (c *call) leaveBody() {
	header, control := c.Header(), http.NewResponseController(c.ResponseWriter)
	if header.Get("Connection") != "close" && !c.asked100 { // else net/http does not wait
		if control.SetReadDeadline(time.Now().Add(besideTime)) != nil {
			return // no connection of ours
		}
		_, _ = io.CopyN(io.Discard, c.rest, mostBeside)
		if c.rest == nil {
			_ = control.SetReadDeadline(time.Time{})
			return
		}
		header.Set("Connection", "close")
	}
	_ = control.SetReadDeadline(time.Now().Add(afterTime))
}

// Unwrap is for http.ResponseController.
func (c *call) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Flush is for mounted handlers that ask for it by type.
func (c *call) Flush() {
	c.send()
	_ = http.NewResponseController(c.ResponseWriter).Flush()
}

// Header values that every response has. Shared: a header is replaced, not changed.
var (
	noSniff = []string{"nosniff"}
	noStore = []string{"no-store"}
)

// ofAnAnswer are headers that go with an answer which turns out not to be one.
var ofAnAnswer = []string{"ETag", "Location", "Idempotency-Replayed", "Content-Length", "Content-Encoding"}

// observe is outermost: it gives the request its id, its record, its time limit,
// its line in the log, and an answer where a handler panics.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{ResponseWriter: w, id: requestID(r), path: r.URL.Path, start: time.Now(), patience: a.cfg.AnswerTime}
		header := w.Header()
		header["X-Request-Id"] = []string{c.id}
		header["X-Content-Type-Options"] = noSniff
		if a.server != nil {
			header["Server"] = a.server
		}
		ctx := a.trace(context.WithValue(r.Context(), callKey{}, c), c, r)
		if !a.mounted(c.path) {
			header["Cache-Control"] = noStore
			var cancel context.CancelFunc
			limit := a.cfg.RequestTimeout
			if c.path == leasesPath {
				limit += longestWait // it may be parked
			}
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		r = r.WithContext(ctx)
		c.expects(r)
		defer a.finish(c, r)
		if !plainPath(c.path) {
			writeProblem(c, problem(http.StatusBadRequest, codeValidation, "the path holds what no id may: control characters, or no UTF-8"))
			return
		}
		next.ServeHTTP(c, r)
	})
}

// finish ends a request, whatever became of it.
func (a *API) finish(c *call, r *http.Request) {
	cut := false
	if v := recover(); v != nil {
		if cut = c.sent; !cut {
			c.status = 0
			header := c.Header()
			for _, name := range ofAnAnswer {
				header.Del(name)
			}
			writeProblem(c, problem(http.StatusInternalServerError, codeInternal, internalText))
		}
		// huma panics too when an answer cannot be written, which is the client's doing.
		if err, ok := v.(error); c.cut == nil && (!ok || !errors.Is(err, http.ErrAbortHandler)) {
			a.log.LogAttrs(r.Context(), slog.LevelError, "panic", slog.String("request_id", c.id), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
		}
	}
	if !cut && c.status != 0 {
		c.send() // an answer without a body
	}
	a.logCall(c, r)
	c.endSpan(r)
	if cut {
		panic(http.ErrAbortHandler) // or half an answer would look like a whole one
	}
}

func (a *API) logCall(c *call, r *http.Request) {
	level := slog.LevelInfo
	// Our own limit is a deadline; cancelled is what a client does that goes away.
	gone := c.cut != nil || errors.Is(r.Context().Err(), context.Canceled)
	slow := errors.Is(c.cut, os.ErrDeadlineExceeded)
	switch {
	case slow:
		a.limits.slow.Add(1)
	case gone:
		a.limits.gone.Add(1)
	}
	switch {
	case gone:
	case c.status >= http.StatusInternalServerError:
		level = slog.LevelError
	case c.route == "/livez" || c.route == "/readyz":
		level = slog.LevelDebug
	}
	ctx := r.Context()
	if !a.log.Enabled(ctx, level) {
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
	a.log.LogAttrs(ctx, level, "request", attrs...)
}

// writeProblem answers where huma does not.
func writeProblem(w *call, p *Problem) {
	_ = p.at(w)
	header := w.Header()
	for name, values := range p.headers {
		header[name] = values
	}
	header.Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false) // as huma does: it would make the document longer
	_ = enc.Encode(p)
}

// requestID is the client's, where it is one that may stand in a log, else a new
// one. It is no secret, so it need not be hard to guess.
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

// plainPath refuses what the database would: an id in a path has no other guard.
func plainPath(path string) bool {
	for i := 0; i < len(path); i++ {
		if path[i] < ' ' || path[i] == 0x7f {
			return false
		}
	}
	return utf8.ValidString(path)
}

// about notes which task a request was about.
func about(ctx context.Context, id fmt.Stringer) {
	if c := callOf(ctx); c != nil {
		c.task = id.String()
	}
}
