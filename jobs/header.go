package jobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Mask replaces the value of a header in every definition that is shown.
const Mask = "***"

// HeaderValue is the value of one header of an HTTPCall: a text, or the name of a secret
// that is looked up at each attempt. Exactly one of the two counts: SecretRef, if it is
// not empty.
//
// A HeaderValue never shows its text: encoding/json, fmt and slog write Mask instead. Only
// storedConfig writes the text, for the database.
type HeaderValue struct {
	Text      string
	SecretRef string
}

// headerReference is the JSON form of a secret's name.
type headerReference struct {
	SecretRef string `json:"secretRef"`
}

// secretName matches the names of secrets. A secret may be a file, and no name leads out of the
// directory of secrets.
var secretName = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$`)

// ValidSecretName reports whether a secret may have this name: 1 to 128 letters, digits, dots,
// hyphens and underscores, not beginning with a dot.
func ValidSecretName(name string) bool { return secretName.MatchString(name) }

// String masks the text.
func (v HeaderValue) String() string {
	if v.SecretRef != "" {
		return "secretRef " + v.SecretRef
	}
	return Mask
}

// GoString masks the text for %#v.
func (v HeaderValue) GoString() string { return fmt.Sprintf("jobs.HeaderValue(%q)", v.String()) }

// LogValue masks the text for package slog.
func (v HeaderValue) LogValue() slog.Value { return slog.StringValue(v.String()) }

// MarshalJSON masks the text, and names the secret.
func (v HeaderValue) MarshalJSON() ([]byte, error) {
	if v.SecretRef != "" {
		return json.Marshal(headerReference{v.SecretRef})
	}
	return json.Marshal(Mask)
}

// UnmarshalJSON reads a text or {"secretRef": "name"}. Its errors do not quote the input, which
// may be a credential.
func (v *HeaderValue) UnmarshalJSON(text []byte) error {
	// A reused value must not keep its earlier text beside a secretRef.
	*v = HeaderValue{}
	if len(text) > 0 && text[0] == '"' {
		return json.Unmarshal(text, &v.Text)
	}

	var ref headerReference
	if err := json.Unmarshal(text, &ref); err != nil || ref.SecretRef == "" {
		return errors.New(`a header's value is a text or {"secretRef": "name"}`)
	}

	v.SecretRef = ref.SecretRef
	return nil
}

// stored returns the unmasked JSON value of a header, for the database.
func (v HeaderValue) stored() any {
	if v.SecretRef != "" {
		return headerReference{v.SecretRef}
	}
	return v.Text
}

// storedConfig encodes a config (an ExecutionConfig or a RequestConfig) for the database, with
// unmasked headers. call is the config's HTTP member.
func storedConfig(config any, call *HTTPCall) (json.RawMessage, error) {
	text, err := json.Marshal(config)
	if err != nil || call == nil || len(call.Headers) == 0 {
		return text, err //nolint:wrapcheck // the caller says what it wrote
	}

	// Marshal has masked the headers: replace that member.
	headers := make(map[string]any, len(call.Headers))
	for name, value := range call.Headers {
		headers[name] = value.stored()
	}

	return withMember(text, headers, "http", "headers")
}

// withMember replaces a member at some depth of a JSON object.
func withMember(object json.RawMessage, value any, path ...string) (json.RawMessage, error) {
	if len(path) == 0 {
		return json.Marshal(value) //nolint:wrapcheck // the caller says what it wrote
	}

	var members map[string]json.RawMessage
	if err := json.Unmarshal(object, &members); err != nil {
		return nil, err //nolint:wrapcheck // the caller says what it wrote
	}

	inner, err := withMember(members[path[0]], value, path[1:]...)
	if err != nil {
		return nil, err
	}

	members[path[0]] = inner
	return json.Marshal(members) //nolint:wrapcheck // the caller says what it wrote
}

// headerPath returns the JSON pointer to a header within a body.
func headerPath(name string) string {
	return "/executionConfig/http/headers/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}

// checkHeaders rejects invalid names of secrets.
func checkHeaders(call *HTTPCall) error {
	if call == nil {
		return nil
	}

	for name, value := range call.Headers {
		if value.SecretRef != "" && !ValidSecretName(value.SecretRef) {
			return invalid(headerPath(name), "a secret's name is 1 to 128 letters, digits, dots, hyphens and underscores, and does not begin with a dot")
		}
	}

	return nil
}

// checkRequestHeaders rejects secrets and masks in the headers of a request without a definition.
// Only callers who may register definitions may use secrets: a request could send a secret to any
// address.
func checkRequestHeaders(call *HTTPCall) error {
	if call == nil {
		return nil
	}

	for name, value := range call.Headers {
		switch {
		case value.SecretRef != "":
			return invalid(headerPath(name), "only a registered definition may refer to a secret")
		case value.Text == Mask:
			return invalid(headerPath(name), "%s stands for a value that is not shown: give the value", Mask)
		}
	}

	return nil
}

// keepMasked replaces each Mask by the header's value in old, the call of the newest revision of
// the same tenant's definition (nil without a revision). A value stays with its address: for another
// scheme, host or port the value must be given again. Otherwise a caller who may register definitions
// could have values sent to an address of the caller's choice, without ever having seen the values.
func (h *HTTPCall) keepMasked(old *HTTPCall) (*HTTPCall, error) {
	if h == nil {
		return nil, nil
	}

	// A copy: the caller's definition keeps its masks if the header is rejected.
	out := *h
	out.Headers = make(map[string]HeaderValue, len(h.Headers))

	for name, value := range h.Headers {
		if value.SecretRef == "" && value.Text == Mask {
			kept, found := old.header(name)
			switch {
			case !found:
				return nil, invalid(headerPath(name), "%s keeps the value of this tenant's newest revision, which has none: give the value", Mask)
			case !sameOrigin(h.URL, old.URL):
				return nil, invalid(headerPath(name), "%s keeps a value for the address that it was given for: give it again for another scheme, host or port", Mask)
			}

			value = kept
		}

		out.Headers[name] = value
	}

	return &out, nil
}

// header finds a header by its name, without regard to case.
func (h *HTTPCall) header(name string) (HeaderValue, bool) {
	if h == nil {
		return HeaderValue{}, false
	}

	if value, found := h.Headers[name]; found {
		return value, true
	}

	names := make([]string, 0, len(h.Headers))
	for other := range h.Headers {
		if http.CanonicalHeaderKey(other) == http.CanonicalHeaderKey(name) {
			names = append(names, other)
		}
	}

	if len(names) == 0 {
		return HeaderValue{}, false
	}

	// Names that differ only in case: the smallest name, because maps have no order.
	return h.Headers[slices.Min(names)], true
}

// sameOrigin reports whether two URLs have the same scheme, host and port. A default port that only
// one URL spells out counts as a difference.
func sameOrigin(a, b string) bool {
	one, err := url.Parse(a)
	if err != nil {
		return false
	}
	other, err := url.Parse(b)
	return err == nil && strings.EqualFold(one.Scheme, other.Scheme) && strings.EqualFold(one.Host, other.Host)
}
