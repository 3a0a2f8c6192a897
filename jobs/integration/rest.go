package integration

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/redact"
)

// REST "sends request parameters, receives response data". An input that has path, query or
// headers, and no other members except body, is an explicit request. Any other input is sent
// as the parameters, unchanged.
type restInput struct {
	Path    string                     `json:"path,omitempty"`
	Query   map[string]json.RawMessage `json:"query,omitempty"` // each a scalar or a list of scalars
	Headers map[string]string          `json:"headers,omitempty"`
	Body    json.RawMessage            `json:"body,omitempty"`
}

func restRequest(_ jobs.IntegrationCall, input json.RawMessage) (json.RawMessage, error) {
	if !isExplicit(input) {
		return input, nil
	}

	var in restInput
	if err := strictly("the request", input, &in); err != nil {
		return nil, err
	}

	// The path must not leave the connection's base URL.
	if in.Path != "" && (!strings.HasPrefix(in.Path, "/") || strings.HasPrefix(in.Path, "//") || strings.ContainsAny(in.Path, "?#\\\r\n") || climbs(in.Path)) {
		return nil, refuse("path is not a path within the connection, such as /invoices/7")
	}

	// One format for the Integration Service: texts, or lists of texts.
	for name, value := range in.Query {
		values, err := texts(value)
		if err != nil {
			return nil, refuse("query.%s is neither a scalar nor a list of scalars", name)
		}
		in.Query[name] = values
	}

	if err := headers(in.Headers); err != nil {
		return nil, err
	}

	return parameters(in)
}

// isExplicit decides by the names of the members only.
func isExplicit(input json.RawMessage) bool {
	var members map[string]json.RawMessage
	if json.Unmarshal(input, &members) != nil {
		return false
	}

	special := false
	for name := range members {
		switch name {
		case "path", "query", "headers":
			special = true
		case "body":
		default:
			return false
		}
	}

	return special
}

// climbs reports whether a path contains . or .., also percent-encoded.
func climbs(path string) bool {
	for segment := range strings.SplitSeq(strings.ToLower(strings.ReplaceAll(strings.ToLower(path), "%2e", ".")), "/") {
		if segment == "." || segment == ".." {
			return true
		}
	}

	return false
}

// texts converts a scalar, or a list of scalars, into query parameters: "7", or ["7", "8"].
func texts(value json.RawMessage) (json.RawMessage, error) {
	var list []json.RawMessage

	// null decodes into a nil list.
	if json.Unmarshal(value, &list) == nil && list != nil {
		out := make([]string, len(list))
		for i, each := range list {
			one, err := scalar(each)
			if err != nil {
				return nil, err
			}
			out[i] = one
		}

		return parameters(out)
	}

	one, err := scalar(value)
	if err != nil {
		return nil, err
	}

	return parameters(one)
}

// scalar returns a string, a number or a boolean as text.
func scalar(value json.RawMessage) (string, error) {
	var text string
	if json.Unmarshal(value, &text) == nil && given(value) {
		return text, nil
	}
	if !given(value) || value[0] == '{' || value[0] == '[' {
		return "", refuse("not a scalar")
	}

	return string(value), nil
}

// headers rejects headers that could add a line to the request, or that contain a
// credential, which belongs into credentialRef.
func headers(all map[string]string) error {
	for name, value := range all {
		switch {
		case name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r) }):
			return refuse("headers has an invalid name")
		case strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return refuse("headers.%s has a control character", name)
		case redact.SecretName(http.CanonicalHeaderKey(name)):
			return refuse("headers.%s is a credential: use credentialRef", name)
		}
	}

	return nil
}

func restAnswer(_ jobs.IntegrationCall, data json.RawMessage) (json.RawMessage, error) {
	return jobs.OutputOf(data), nil
}
