package automated

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
)

// redacted stands where a secret stood.
const redacted = "[redacted]"

// sent are the secret values of one request. What comes of the request is kept and shown
// without them: a server may repeat what it was sent.
type sent []string

// shortestSecret is the length from which on a value is looked for. Whatever is shorter
// stands in texts by chance.
const shortestSecret = 6

// credential are the names of headers whose texts are secrets, although they were not
// given by reference.
var credential = regexp.MustCompile(`(?i)auth|cookie|token|secret|password|credential|signature|key$`)

// add notes a value, and that part of it which follows a scheme such as Bearer.
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
	// The longest first, or a part would hide the whole.
	slices.SortStableFunc(*s, func(a, b string) int { return len(b) - len(a) })
}

// hide takes the values out of a text.
func (s sent) hide(text string) string {
	for _, value := range s {
		text = strings.ReplaceAll(text, value, redacted)
	}
	return text
}

// failure takes the values out of the words of a failure.
func (s sent) failure(f *jobs.Failure) *jobs.Failure {
	if len(s) == 0 {
		return f
	}
	out := *f
	out.Message = s.hide(f.Message)
	return &out
}

// output takes the values out of a JSON document, however they are escaped in it. One
// without any is returned as it came.
func (s sent) output(document json.RawMessage) json.RawMessage {
	if len(s) == 0 || len(document) == 0 {
		return document
	}
	var v any
	decoder := json.NewDecoder(bytes.NewReader(document))
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
		return nil // rather nothing than a secret
	}
	return text
}

// redact reports whether it found something.
func (s sent) redact(v any) (clean any, found bool) {
	switch v := v.(type) {
	case string:
		text := s.hide(v)
		return text, text != v
	case json.Number:
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
