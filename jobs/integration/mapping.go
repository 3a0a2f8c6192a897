package integration

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
)

// mapping converts between tasks and one integration type of the interface document: the
// input into the parameters of a call, and the data of an answer into the output. Both
// follow the document's column "Task Execution Service Interaction".
type mapping struct {
	request func(call jobs.IntegrationCall, input json.RawMessage) (json.RawMessage, error)
	answer  func(call jobs.IntegrationCall, data json.RawMessage) (json.RawMessage, error)
	check   func(call jobs.IntegrationCall) error // of the definition; nil: no checks beyond Check
}

var mappings = map[string]mapping{
	"REST":          {restRequest, restAnswer, nil},
	"SOAP":          {soapRequest, soapAnswer, soapCheck},
	"DATABASE":      {databaseRequest, databaseAnswer, nil},
	"MESSAGE_QUEUE": {messageRequest, messageAnswer, nil},
	"FILE_TRANSFER": {fileRequest, fileAnswer, nil},
	"CUSTOM":        {customRequest, customAnswer, nil},
}

// mappingOf returns the mapping for a call; the default type is REST.
func mappingOf(call jobs.IntegrationCall) (mapping, error) {
	m, ok := mappings[cmp.Or(call.Type, "REST")]
	if !ok {
		return mapping{}, refuse("there is no integration type %q", call.Type)
	}

	return m, nil
}

// credentialRef matches references: names or paths such as vault:books/main.
var credentialRef = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/#-]{0,255}$`)

// inline are prefixes of secrets that look like names.
var inline = []string{"eyJ", "AKIA", "ASIA", "AIza", "ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "sk_live_", "sk_test_", "sk-", "rk_live_", "xoxb-", "xoxp-", "npm_"}

// Check rejects a definition whose integration can never run, or that contains a secret in
// place of a reference.
func Check(call jobs.IntegrationCall) error {
	m, err := mappingOf(call)
	if err != nil {
		return errors.New(message(err))
	}

	if ref := call.CredentialRef; ref != "" {
		// A secret may look like a reference; well-known prefixes reveal some.
		secret := slices.ContainsFunc(inline, func(begin string) bool { return strings.HasPrefix(ref, begin) })
		if secret || !credentialRef.MatchString(ref) {
			// The text must not quote the secret.
			return errors.New("credentialRef is not a reference such as vault:books/main; the secret itself must not be here")
		}
	}

	if call.SOAP != nil && call.Type != "SOAP" {
		return errors.New("soap is only allowed for the type SOAP")
	}

	if m.check != nil {
		if err := m.check(call); err != nil {
			return errors.New(message(err))
		}
	}

	return nil
}

// refuse is a failure because of a wrong format, which no retry repairs.
func refuse(format string, args ...any) error {
	no := false
	return &jobs.Failure{Code: "VALIDATION_ERROR", Message: fmt.Sprintf(format, args...), Retryable: &no}
}

func message(err error) string {
	var f *jobs.Failure
	if errors.As(err, &f) {
		return f.Message
	}

	return err.Error()
}

// strictly parses an object that may have only the members of out.
func strictly(what string, text json.RawMessage, out any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(out); err != nil {
		return refuse("%s does not have the agreed format: %s", what, shapeOf(err))
	}

	return nil
}

// shapeOf describes a parser's error without quoting a value.
func shapeOf(err error) string {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Sprintf("%s is a %s", cmp.Or(wrong.Field, "the value"), strings.SplitN(wrong.Value, " ", 2)[0])
	}

	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return "unknown member " + name
	}

	return "not an object"
}

// loosely parses the members of out from an object that may have other members.
func loosely(what string, text json.RawMessage, out any) error {
	if text = bytes.TrimSpace(text); len(text) == 0 || text[0] != '{' {
		return refuse("%s is not an object", what)
	}

	if err := json.Unmarshal(text, out); err != nil {
		return refuse("%s does not have the agreed format: %s", what, shapeOf(err))
	}

	return nil
}

// parameters encodes the parameters of a call.
func parameters(v any) (json.RawMessage, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write the parameters: %w", err)
	}

	return text, nil
}

// given reports whether a member is present and not null.
func given(value json.RawMessage) bool { return len(value) > 0 && string(value) != "null" }
