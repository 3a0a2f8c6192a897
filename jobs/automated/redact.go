package automated

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
)

// redacted replaces a secret.
const redacted = "[redacted]"

// sent are the secret values of one request. They are removed from the output and from
// failures, because a server may echo the request.
type sent []string

// shortestSecret is the minimum length of a value that is redacted. Shorter values occur in
// texts by chance.
const shortestSecret = 6

// credential matches the names of headers whose values are secret even if the definition
// contains the value itself.
var credential = regexp.MustCompile(`(?i)auth|cookie|token|secret|password|credential|signature|key$`)

// add adds a value, and the part of the value after a scheme such as Bearer.
func (s *sent) add(value string) {
	values := []string{value}
	if _, rest, found := strings.Cut(value, " "); found {
		values = append(values, strings.TrimSpace(rest))
	}

	for _, v := range values {
		if len(v) >= shortestSecret && !slices.Contains(*s, v) {
			*s = append(*s, v)
		}
	}

	// The longest first: a redacted part would hide the whole value.
	slices.SortStableFunc(*s, func(a, b string) int { return len(b) - len(a) })
}

// hide replaces the values in a text.
func (s sent) hide(text string) string {
	for _, value := range s {
		text = strings.ReplaceAll(text, value, redacted)
	}
	return text
}

// failure replaces the values in the message of a failure.
func (s sent) failure(f *jobs.Failure) *jobs.Failure {
	if len(s) == 0 {
		return f
	}

	out := *f
	out.Message = s.hide(f.Message)
	return &out
}

// output replaces the values in a JSON document, however they are escaped. A document
// without any of the values is returned unchanged.
func (s sent) output(document json.RawMessage) json.RawMessage {
	if len(s) == 0 || len(document) == 0 {
		return document
	}

	var v any
	decoder := json.NewDecoder(bytes.NewReader(document))

	// Numbers of an unaffected value must stay as the server wrote them.
	decoder.UseNumber()
	if decoder.Decode(&v) != nil {
		return document
	}

	clean, found := s.redact(v)
	if !found {
		return document
	}

	text, err := json.Marshal(clean)
	if err != nil {
		// Losing the output is better than storing a secret.
		return nil
	}

	return text
}

// redact replaces the values in v, and reports whether there were any.
func (s sent) redact(v any) (clean any, found bool) {
	switch v := v.(type) {
	case string:
		text := s.hide(v)
		return text, text != v
	case json.Number:
		// A secret of digits may appear as a number; the redacted value is a string.
		if text := s.hide(v.String()); text != v.String() {
			return text, true
		}
	case []any:
		for i, each := range v {
			var here bool
			v[i], here = s.redact(each)
			found = found || here
		}
	case map[string]any:
		clean := make(map[string]any, len(v))
		for name, value := range v {
			to, here := s.redact(value)
			plain := s.hide(name)
			clean[plain], found = to, found || here || plain != name
		}

		return clean, found
	}

	return v, found
}
