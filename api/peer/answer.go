package peer

import (
	"encoding/json"
	"fmt"
	"net/http"
	"unicode/utf8"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/redact"
)

// maxMessage bounds a neighbour's words in our tables and events.
const maxMessage = 4 << 10

// answer is what a neighbour said. Its body has passed the guard, or is nil.
type answer struct {
	name     string
	status   int
	body     []byte
	broken   error          // why the body cannot be used; nil if it can
	document *errorDocument // nil if the answer is no error document
}

// errorDocument is how a neighbour says no: {error:{code,message,details},
// retryable?}. Some put retryable beside the code; the outer one wins.
type errorDocument struct {
	Error struct {
		Code      string          `json:"code"`
		Message   string          `json:"message"`
		Details   json.RawMessage `json:"details"`
		Retryable *bool           `json:"retryable"`
	} `json:"error"`
	Retryable *bool `json:"retryable"`
}

// newAnswer reads an answer; body may be one byte over maxAnswer, and is then
// refused.
func newAnswer(name string, status int, body []byte) *answer {
	a := &answer{name: name, status: status}
	switch {
	case len(body) > maxAnswer:
		a.broken = fmt.Errorf("it is longer than %d bytes", maxAnswer)
		return a
	case len(body) == 0:
		a.broken = fmt.Errorf("it is empty")
		return a
	}
	if a.broken = jobs.GuardJSON(body); a.broken != nil {
		return a
	}
	a.body = body
	var document errorDocument
	if json.Unmarshal(body, &document) == nil && document.Error.Code != "" && len(document.Error.Code) <= 128 {
		a.document = &document
	}
	return a
}

// refused is nil for a 2xx answer that is no error document, else the
// *jobs.Failure that it amounts to.
func (a *answer) refused() error {
	switch {
	case a.document != nil:
		return a.document.failure()
	case a.status >= 200 && a.status < 300:
		return nil
	case a.status == http.StatusNotFound && a.name != nameIntegration:
		return refusal("NOT_FOUND", fmt.Sprintf("the %s service knows no such thing", a.name))
	default:
		return refusal("INTEGRATION_ERROR", fmt.Sprintf("the %s service answered %d without an error document", a.name, a.status))
	}
}

func (d *errorDocument) failure() *jobs.Failure {
	retryable := jobs.RetryableCode(d.Error.Code)
	if d.Error.Retryable != nil {
		retryable = *d.Error.Retryable
	}
	if d.Retryable != nil {
		retryable = *d.Retryable
	}
	details := d.Error.Details
	if string(details) == "null" {
		details = nil
	}
	// It is quoted in failures, in notices and in the log: none of them has a credential.
	return &jobs.Failure{
		Code:      redact.Text(d.Error.Code),
		Message:   clip(redact.Text(clip(d.Error.Message, 8*maxMessage)), maxMessage),
		Details:   redact.JSON(details),
		Retryable: &retryable,
	}
}

// decode reads a good answer's body. One that cannot be read is a refusal: the
// neighbour did answer, and asking again would do it twice.
func (a *answer) decode(out any) error {
	if a.broken != nil {
		return a.unusable(a.broken.Error())
	}
	if err := json.Unmarshal(a.body, out); err != nil {
		return a.unusable("it has not the agreed shape") // err might quote the body
	}
	return nil
}

func (a *answer) unusable(reason string) error {
	return refusal("INTEGRATION_ERROR", fmt.Sprintf("the answer %d of the %s service cannot be used: %s", a.status, a.name, reason))
}

// refusal is a failure that no retry will mend.
func refusal(code, message string) error {
	retryable := false
	return &jobs.Failure{Code: code, Message: message, Retryable: &retryable}
}

// clip cuts text to at most n bytes, between two characters.
func clip(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}
