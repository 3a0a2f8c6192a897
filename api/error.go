package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

// The codes of errors. Clients branch on them, so a code never changes.
const (
	codeValidation   = "VALIDATION_ERROR"
	codeNotFound     = "NOT_FOUND"
	codeUnauthorized = "UNAUTHORIZED"
	codeForbidden    = "FORBIDDEN"
	codeConflict     = "CONFLICT"
	codeLeaseLost    = "LEASE_LOST"
	codeTerminal     = "TASK_TERMINAL"
	codePrecondition = "PRECONDITION_FAILED"
	codeTooLarge     = "PAYLOAD_TOO_LARGE"
	codeMediaType    = "UNSUPPORTED_MEDIA_TYPE"
	codeMethod       = "METHOD_NOT_ALLOWED"
	codeRateLimited  = "RATE_LIMITED"
	codeUnavailable  = "UNAVAILABLE"
	codeInternal     = "INTERNAL_ERROR"
)

// Problem is the body of every error: an RFC 9457 problem document with the platform's {error:
// {code, message, details}} beside it, for clients of either convention. It is at most 4 KiB long
// and repeats nothing of the request but the names of members.
type Problem struct {
	Type     string           `json:"type" doc:"urn:tes:error: followed by the code." example:"urn:tes:error:CONFLICT"`
	Title    string           `json:"title" doc:"The text of the HTTP status." example:"Conflict"`
	Status   int              `json:"status" doc:"The HTTP status." example:"409"`
	Detail   string           `json:"detail" doc:"A description of the error, for people."`
	Instance string           `json:"instance,omitempty" doc:"The path of the request."`
	Code     string           `json:"code" enum:"VALIDATION_ERROR,NOT_FOUND,UNAUTHORIZED,FORBIDDEN,CONFLICT,LEASE_LOST,TASK_TERMINAL,PRECONDITION_FAILED,PAYLOAD_TOO_LARGE,UNSUPPORTED_MEDIA_TYPE,METHOD_NOT_ALLOWED,RATE_LIMITED,UNAVAILABLE,INTERNAL_ERROR" doc:"A stable code of the error, for programs."`
	TraceID  string           `json:"traceId" doc:"The request id, also in the header X-Request-Id and in the service's logs."`
	Errors   []FieldViolation `json:"errors,omitempty" maxItems:"16" doc:"The invalid places of the request."`
	TransitionInfo
	Err ErrorBody `json:"error" doc:"The same error in the platform's own form."`

	headers http.Header
	cause   error // for the log; clients never see it
}

// The reasons of a conflict. Clients branch on them, so a reason never changes.
const (
	reasonState    = "STATE"                       // the request contradicts the current state
	reasonReused   = "IDEMPOTENCY_KEY_REUSED"      // an earlier request with the key had a different body
	reasonProgress = "IDEMPOTENCY_KEY_IN_PROGRESS" // the first call with the key has not ended
)

// TransitionInfo is the reason of a conflict and, for a transition that the task's status does not
// allow, the current status and the allowed ones.
type TransitionInfo struct {
	Reason        string        `json:"reason,omitempty" enum:"STATE,IDEMPOTENCY_KEY_REUSED,IDEMPOTENCY_KEY_IN_PROGRESS" doc:"The reason for a CONFLICT. STATE: the request contradicts the current state. IDEMPOTENCY_KEY_REUSED: an earlier request with the key had a different body or path. IDEMPOTENCY_KEY_IN_PROGRESS: the first request with the key has not ended; send the request again after Retry-After."`
	CurrentStatus jobs.Status   `json:"currentStatus,omitempty" doc:"The task's current status."`
	Legal         []jobs.Status `json:"legal,omitzero" doc:"The statuses that the task can change to; empty for a task that has ended."`
}

// FieldViolation is one invalid place of the request.
type FieldViolation struct {
	Location string `json:"location" example:"body.input.items[0].price" doc:"body, path, query or header, followed by the path to the invalid value."`
	Message  string `json:"message" example:"must be number, is string"`
}

// ErrorBody is the error in the platform's own form.
type ErrorBody struct {
	Code    string        `json:"code"`
	Message string        `json:"message"`
	Details *ErrorDetails `json:"details,omitempty"`
}

// ErrorDetails are further facts for programs.
type ErrorDetails struct {
	Errors []FieldViolation `json:"errors,omitempty"`
	TransitionInfo
}

// Error returns Detail.
func (p *Problem) Error() string { return p.Detail }

// Unwrap returns the internal cause.
func (p *Problem) Unwrap() error { return p.cause }

// GetStatus is part of huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// GetHeaders is part of huma.HeadersError.
func (p *Problem) GetHeaders() http.Header { return p.headers }

// ContentType is part of huma.ContentTypeFilter: application/problem+json instead of
// application/json.
func (p *Problem) ContentType(ct string) string {
	if ct == "application/json" {
		return "application/problem+json"
	}
	return ct
}

// huma creates its own errors through two package variables and has no other hook. Its default
// errors would repeat the client's values and internal errors. The variables are set once, before
// anything runs, so that parallel tests see the same value. The other settings format bounds as
// 2592000000 instead of 2.592e+09, make member names case-sensitive, and forbid null for arrays.
func init() {
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		return newProblem(nil, status, msg, errs...)
	}

	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		return newProblem(callOf(ctx.Context()), status, msg, errs...)
	}

	huma.ErrorFormatter = func(format string, args ...any) string {
		for i, arg := range args {
			if n, ok := arg.(float64); ok {
				args[i] = strconv.FormatFloat(n, 'f', -1, 64)
			}
		}

		return fmt.Sprintf(format, args...)
	}

	huma.ValidateStrictCasing = true
	huma.DefaultArrayNullable = false
}

// newProblem converts an error of huma: an invalid request, or a failure to write a response.
func newProblem(c *call, status int, msg string, errs ...error) *Problem {
	p := problem(status, codeOf(status), msg)
	// The texts of internal errors go to the log only.
	if status >= http.StatusInternalServerError {
		p.Detail, p.cause = internalText, errors.Join(append([]error{errors.New(msg)}, errs...)...)
		return p.at(c)
	}

	for _, err := range errs {
		var detail *huma.ErrorDetail
		if !errors.As(err, &detail) {
			continue
		}
		// readJSON's errors carry their location in the text: see misplaced.
		if parts := strings.Split(detail.Message, misplacedMark); len(parts) == 3 {
			detail = &huma.ErrorDetail{Location: detail.Location + parts[1], Message: parts[2]}
		}
		// The text after a colon comes from a parser and may quote the value.
		message, _, _ := strings.Cut(detail.Message, ": ")
		if strings.HasPrefix(detail.Message, "json:") || strings.HasPrefix(detail.Message, "parsing time") {
			message = anotherType
		}
		if filter, _, many := strings.Cut(detail.Location, "["); many && (filter == "query.status" || filter == "query.type") {
			// The parameter's name alone does not say which of its values is invalid.
			detail.Location = filter
		}
		if p.misses(detail.Location) && strings.HasPrefix(message, "expected string to match pattern") {
			// The length of the value was already reported: one violation per mistake.
			continue
		}
		if !p.addViolation(detail.Location, message) {
			break
		}
	}

	if msg == invalidText {
		p.Detail = "the request is not valid"
	}

	return p.at(c)
}

// invalidText is huma's message for a request that violates a schema.
const invalidText = "validation failed"

const internalText = "internal error; the service's log has the cause under the trace id"

func problem(status int, code, detail string) *Problem {
	return &Problem{
		Type: "urn:tes:error:" + code, Title: http.StatusText(status), Status: status, Code: code, Detail: sanitize(detail, 300),
	}
}

// at completes a problem with the request's id and path, and with its second form.
func (p *Problem) at(c *call) *Problem {
	if c != nil {
		p.TraceID = c.id
		if len(c.path) <= 256 {
			p.Instance = c.path
		}
		if p.cause != nil && c.err == nil {
			c.err = p.cause
		}
	}

	p.Err = ErrorBody{Code: p.Code, Message: p.Detail}
	if len(p.Errors) > 0 || p.CurrentStatus != "" || p.Reason != "" {
		p.Err.Details = &ErrorDetails{Errors: p.Errors, TransitionInfo: p.TransitionInfo}
	}

	return p
}

// with sets a header of the response.
func (p *Problem) with(name, value string) *Problem {
	if p.headers == nil {
		p.headers = http.Header{}
	}
	p.headers.Set(name, value)
	return p
}

// reason sets the reason of a conflict.
func (p *Problem) reason(why string) *Problem {
	p.Reason = why
	return p
}

// because sets the internal cause, for the log.
func (p *Problem) because(err error) *Problem {
	p.cause = err
	return p
}

// The bounds of a problem's violations. Both forms together stay below 4 KiB, whatever the request
// was.
const (
	maxViolations      = 16
	maxViolationPlace  = 160  // bytes of a location
	maxViolationText   = 480  // bytes of a message
	maxViolationsTotal = 1400 // bytes
)

// misses returns whether the last violation is of this location.
func (p *Problem) misses(location string) bool {
	return len(p.Errors) > 0 && p.Errors[len(p.Errors)-1].Location == sanitize(location, maxViolationPlace)
}

// addViolation adds a violation; false: the problem is full.
func (p *Problem) addViolation(location, message string) bool {
	if len(p.Errors) == maxViolations {
		return false
	}

	f := FieldViolation{Location: sanitize(location, maxViolationPlace), Message: sanitize(message, maxViolationText)}
	// The document contains every violation twice, in both forms: hence the low total.
	total := 0
	for _, other := range append(p.Errors, f) {
		total += len(other.Location) + len(other.Message) + len(`{"location":"","message":""},`)
	}

	if total > maxViolationsTotal {
		return false
	}

	p.Errors = append(p.Errors, f)
	return true
}

// sanitize makes text fit for a response: short, printable, and without characters that JSON would
// escape.
func sanitize(s string, longest int) string {
	// Almost every text is plain already, and is returned without a copy.
	plain := len(s) <= longest
	for i := 0; plain && i < len(s); i++ {
		plain = s[i] >= ' ' && s[i] < 0x7f && s[i] != '"' && s[i] != '\\'
	}

	if plain {
		return s
	}

	var b strings.Builder
	for _, r := range s {
		switch {
		case b.Len() >= longest-len("…"):
			// The ellipsis counts too: longest bounds bytes of the result.
			return b.String() + "…"
		case r == '"':
			r = '\''
		case r == '\\' || r == unicode.ReplacementChar || !unicode.IsPrint(r):
			r = '?'
		}
		b.WriteRune(r)
	}

	return b.String()
}

func codeOf(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return codeUnauthorized
	case http.StatusForbidden:
		return codeForbidden
	case http.StatusNotFound:
		return codeNotFound
	case http.StatusMethodNotAllowed:
		return codeMethod
	case http.StatusConflict:
		return codeConflict
	case http.StatusPreconditionFailed:
		return codePrecondition
	case http.StatusRequestEntityTooLarge:
		return codeTooLarge
	case http.StatusUnsupportedMediaType:
		return codeMediaType
	case http.StatusTooManyRequests:
		return codeRateLimited
	case http.StatusServiceUnavailable:
		return codeUnavailable
	}
	if status >= http.StatusInternalServerError {
		return codeInternal
	}

	return codeValidation
}

// problemOf maps errors to HTTP. It is the only such table. An error that is not listed is a bug of
// the service: the response is a 500, and the text goes to the log only.
func problemOf(ctx context.Context, err error) *Problem {
	return meaning(err).at(callOf(ctx))
}

func meaning(err error) *Problem {
	// errors.As, not a type switch: package jobs wraps its errors at each step up.
	var ready *Problem
	var invalid *jobs.Invalid
	var illegal *jobs.IllegalTransition
	var conflict *jobs.Conflict
	var guard *jsonguard.Error
	var ended *jobs.TaskEnded
	var underWay *jobs.CallUnderWay
	switch {
	case errors.As(err, &ready):
		return ready
	case errors.As(err, &invalid):
		p := problem(http.StatusUnprocessableEntity, codeValidation, invalid.Message)
		for _, v := range invalid.Violations {
			if !p.addViolation("body"+dotted(v.Path), v.Message) {
				break
			}
		}

		return p
	case errors.As(err, &guard):
		p := problem(http.StatusBadRequest, codeValidation, fmt.Sprintf("the body is not accepted as JSON, at byte %d: %s", guard.Offset, guard.Reason))
		p.addViolation("body"+dotted(guard.Path), guard.Reason)
		return p
	case errors.As(err, &illegal):
		p := problem(http.StatusConflict, codeConflict, illegal.Error())
		p.TransitionInfo = TransitionInfo{Reason: reasonState, CurrentStatus: illegal.From, Legal: append([]jobs.Status{}, illegal.Legal...)}
		return p
	case errors.As(err, &conflict):
		return problem(http.StatusConflict, codeConflict, conflict.Message).reason(reasonState)
	case errors.As(err, &underWay):
		return problem(http.StatusConflict, codeConflict, "the first request with this idempotency key has not ended: send the request again later").
			reason(reasonProgress).with("Retry-After", seconds(max(underWay.Wait, 1)))
	case errors.Is(err, jobs.ErrNotFound):
		return problem(http.StatusNotFound, codeNotFound, "there is no resource with this id in the caller's tenant")
	case errors.Is(err, jobs.ErrStale):
		return problem(http.StatusPreconditionFailed, codePrecondition, "the current version is not the one in If-Match: read the resource again")
	case errors.Is(err, jobs.ErrForbidden):
		return problem(http.StatusForbidden, codeForbidden, "the user is not the task's assignee or candidate, or another user has claimed the task")
	case errors.Is(err, jobs.ErrKeyReused):
		return problem(http.StatusConflict, codeConflict, "the idempotency key was used before, with a different body or path").reason(reasonReused)
	case errors.Is(err, jobs.ErrLeaseLost):
		return problem(http.StatusConflict, codeLeaseLost, "the lease is lost: its attempt is not the running one any more")
	case errors.As(err, &ended):
		p := problem(http.StatusGone, codeTerminal, ended.Error())
		p.TransitionInfo = TransitionInfo{CurrentStatus: ended.Status, Legal: []jobs.Status{}}
		return p
	case errors.Is(err, jobs.ErrUnavailable):
		return unavailable("the database does not respond, so the result is unknown: send the request again; with an idempotency key it takes effect once").because(err)
	}
	return problem(http.StatusInternalServerError, codeInternal, internalText).because(err)
}

// unavailable is a temporary failure. Retry-After tells the client when to try again.
func unavailable(detail string) *Problem {
	return problem(http.StatusServiceUnavailable, codeUnavailable, detail).with("Retry-After", "1")
}

// dotted converts a JSON pointer to huma's notation: /items/0/price becomes .items[0].price.
func dotted(pointer string) string {
	if pointer == "" {
		return ""
	}

	var b strings.Builder
	for _, name := range strings.Split(pointer[1:], "/") {
		// JSON pointers do not distinguish an item from a member with a number for a name.
		if name != "" && strings.Trim(name, "0123456789") == "" {
			b.WriteString("[" + name + "]")
			continue
		}
		b.WriteString("." + strings.NewReplacer("~1", "/", "~0", "~").Replace(name))
	}

	return b.String()
}

// readFailed classifies an error of a query that bypasses package jobs, as package jobs does for
// its own. A read has no effect, so every error that is not the server's answer is an outage.
func readFailed(what string, err error) error {
	// Classes 57 (shutdown), 08 (connection) and 53 (resources) are the server's outages. Any other
	// answer of the server is an error in a query, and so a bug.
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("%s: %w", what, jobs.ErrNotFound)
	case errors.Is(err, jobs.ErrNotFound):
		return fmt.Errorf("%s: %w", what, err)
	case errors.As(err, &pg) && !strings.HasPrefix(pg.Code, "57") && !strings.HasPrefix(pg.Code, "08") && !strings.HasPrefix(pg.Code, "53"):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, jobs.ErrUnavailable, err)
}
