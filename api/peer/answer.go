package peer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
	"github.com/seed-3f7a0631/tes/outbox/redact"
)

// maxMessage bounds a peer service's message in tables and events, in bytes.
const maxMessage = 4 << 10

// answer is a response of a peer service. Its body has passed jsonguard.Check, or is nil.
type answer struct {
	name     string
	status   int
	body     []byte
	broken   error          // why the body cannot be used; nil: usable
	document *errorDocument // nil: the response is no error document
	after    time.Duration  // Retry-After; 0: none
}

// errorDocument is a peer service's error: {error:{code,message,details}, retryable?}. Some
// services put retryable beside the code; the outer member wins.
type errorDocument struct {
	Error struct {
		Code      string          `json:"code"`
		Message   json.RawMessage `json:"message"`
		Details   json.RawMessage `json:"details"`
		Retryable json.RawMessage `json:"retryable"`
	} `json:"error"`
	Retryable json.RawMessage `json:"retryable"`
}

// readError reads an error document; nil: the body is none. It is tolerant, because a service in
// trouble writes carelessly, and an integration's error with an unusual character must not count as
// an outage of all integrations. Members of the wrong type are converted or dropped; only a code is
// required.
func readError(body []byte) *errorDocument {
	var d errorDocument
	if json.Unmarshal(body, &d) != nil || d.Error.Code == "" {
		return nil
	}
	d.Error.Code = clip(fit(d.Error.Code), longestCode)
	return &d
}

// longestCode bounds a code, in bytes.
const longestCode = 128

// fit removes what the database cannot store. encoding/json has already replaced invalid UTF-8.
func fit(text string) string { return strings.ReplaceAll(text, "\x00", "\uFFFD") }

// message is the document's message, or a replacement for a missing one.
func (d *errorDocument) message() string {
	var text string
	if json.Unmarshal(d.Error.Message, &text) != nil {
		text = string(d.Error.Message)
	}
	return fit(text)
}

// details are the document's details, converted where the database cannot store them; nil if there
// are none.
func (d *errorDocument) details() json.RawMessage {
	raw := d.Error.Details
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}

	if jsonguard.Check(raw) == nil {
		return raw
	}

	// Numbers stay text: float64 would change long ones.
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var value any
	if decoder.Decode(&value) != nil {
		return nil
	}

	mended, err := json.Marshal(mend(value))
	if err != nil || jsonguard.Check(mended) != nil {
		return nil
	}

	return mended
}

// mend converts the parts of a document that the database cannot store: a number out of range
// becomes its text.
func mend(value any) any {
	switch v := value.(type) {
	case string:
		return fit(v)
	case json.Number:
		if jsonguard.Check([]byte(v)) != nil {
			return clip(string(v), longestCode)
		}
	case []any:
		for i := range v {
			v[i] = mend(v[i])
		}
	case map[string]any:
		mended := make(map[string]any, len(v))
		for name, one := range v {
			mended[fit(name)] = mend(one)
		}
		return mended
	}
	return value
}

// newAnswer makes an answer. body may be one byte longer than maxAnswer, and is then refused.
func newAnswer(name string, status int, body []byte) *answer {
	a := &answer{name: name, status: status}
	switch {
	case len(body) > maxAnswer:
		a.broken = fmt.Errorf("longer than %d bytes", maxAnswer)
		return a
	case len(body) == 0:
		a.broken = fmt.Errorf("empty body")
		return a
	}
	// The error is read even from a body that the guard refuses: the message is worth more than form.
	a.document = readError(body)
	if a.broken = jsonguard.Check(body); a.broken == nil {
		a.body = body
	}

	return a
}

// refused returns nil for a 2xx response without an error document, else the *jobs.Failure that
// describes the response.
func (a *answer) refused() error {
	switch {
	case a.document != nil:
		f := a.document.failure()
		f.After = a.after
		return f
	case a.status >= 200 && a.status < 300:
		return nil
	case a.status == http.StatusNotFound && a.name != nameIntegration:
		return refusal("NOT_FOUND", fmt.Sprintf("not found by the %s service", a.name))
	default:
		return refusal("INTEGRATION_ERROR", fmt.Sprintf("the %s service responded with %d and without an error document", a.name, a.status))
	}
}

func (d *errorDocument) failure() *jobs.Failure {
	// The code decides unless the document does. The outer member comes last and wins.
	retryable := jobs.RetryableCode(d.Error.Code)
	for _, said := range []json.RawMessage{d.Error.Retryable, d.Retryable} {
		switch string(said) {
		case "true":
			retryable = true
		case "false":
			retryable = false
		}
	}

	// The message is quoted in failures, in notices and in the log, so credentials are removed.
	return &jobs.Failure{
		Code:      redact.Text(d.Error.Code),
		Message:   clip(redact.Text(clip(d.message(), 8*maxMessage)), maxMessage),
		Details:   redact.JSON(d.details()),
		Retryable: &retryable,
	}
}

// decode reads the body of a success. A body that cannot be read is a permanent failure: the peer
// service has answered, and asking again would repeat the effect.
func (a *answer) decode(out any) error {
	if a.broken != nil {
		return a.unusable(a.broken.Error())
	}
	if err := json.Unmarshal(a.body, out); err != nil {
		// The error might quote the body.
		return a.unusable("unexpected members")
	}
	return nil
}

func (a *answer) unusable(reason string) error {
	return refusal("INTEGRATION_ERROR", fmt.Sprintf("the response %d of the %s service cannot be used: %s", a.status, a.name, reason))
}

// refusal is a permanent failure.
func refusal(code, message string) error {
	retryable := false
	return &jobs.Failure{Code: code, Message: message, Retryable: &retryable}
}

// clip cuts text to at most n bytes, between two characters.
func clip(text string, n int) string {
	if len(text) <= n {
		return text
	}
	// Back to the beginning of a character.
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}
