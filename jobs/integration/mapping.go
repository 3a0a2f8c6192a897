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

// mapping is one of the interface document's integration types: what a task's input
// becomes on its way to the Integration Service, and the service's data on its way
// back. Both are told by the document's column "Task Execution Service Interaction".
type mapping struct {
	request func(call jobs.IntegrationCall, input json.RawMessage) (json.RawMessage, error)
	answer  func(call jobs.IntegrationCall, data json.RawMessage) (json.RawMessage, error)
	check   func(call jobs.IntegrationCall) error // nil: nothing beside what all have
}

var mappings = map[string]mapping{
	"REST":          {restRequest, restAnswer, nil},
	"SOAP":          {soapRequest, soapAnswer, soapCheck},
	"DATABASE":      {databaseRequest, databaseAnswer, nil},
	"MESSAGE_QUEUE": {messageRequest, messageAnswer, nil},
	"FILE_TRANSFER": {fileRequest, fileAnswer, nil},
	"CUSTOM":        {customRequest, customAnswer, nil},
}

// mappingOf is by the type of a call; REST where it names none.
func mappingOf(call jobs.IntegrationCall) (mapping, error) {
	m, ok := mappings[cmp.Or(call.Type, "REST")]
	if !ok {
		return mapping{}, refuse("there is no integration type %q", call.Type)
	}
	return m, nil
}

// credentialRef is a reference, by its look: a name or a path, such as vault:books/main.
var credentialRef = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/#-]{0,255}$`)

// inline are the beginnings of secrets that would pass for a name.
var inline = []string{"eyJ", "AKIA", "ASIA", "AIza", "ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "sk_live_", "sk_test_", "sk-", "rk_live_", "xoxb-", "xoxp-", "npm_"}

// Check refuses a definition whose integration could never run, or that carries a
// secret instead of a reference to one.
func Check(call jobs.IntegrationCall) error {
	m, err := mappingOf(call)
	if err != nil {
		return errors.New(message(err))
	}
	if ref := call.CredentialRef; ref != "" {
		secret := slices.ContainsFunc(inline, func(begin string) bool { return strings.HasPrefix(ref, begin) })
		if secret || !credentialRef.MatchString(ref) {
			return errors.New("credentialRef is not a reference such as vault:books/main; the secret itself must not be here") // nor in this text
		}
	}
	if call.SOAP != nil && call.Type != "SOAP" {
		return errors.New("soap is for the type SOAP")
	}
	if m.check != nil {
		if err := m.check(call); err != nil {
			return errors.New(message(err))
		}
	}
	return nil
}

// refuse is a failure of shape, which no retry will mend.
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

// strictly reads an object that may have the members of out and no others.
func strictly(what string, text json.RawMessage, out any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(out); err != nil {
		return refuse("%s has not the agreed shape: %s", what, shapeOf(err))
	}
	return nil
}

// shapeOf says what is wrong without quoting a value.
func shapeOf(err error) string {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fmt.Sprintf("%s is a %s", cmp.Or(wrong.Field, "it"), strings.SplitN(wrong.Value, " ", 2)[0])
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return "there is no member " + name
	}
	return "it is no object"
}

// loosely reads the members of out from an object that may have others.
func loosely(what string, text json.RawMessage, out any) error {
	if text = bytes.TrimSpace(text); len(text) == 0 || text[0] != '{' {
		return refuse("%s is not an object", what)
	}
	if err := json.Unmarshal(text, out); err != nil {
		return refuse("%s has not the agreed shape: %s", what, shapeOf(err))
	}
	return nil
}

// parameters is a request as it is sent.
func parameters(v any) (json.RawMessage, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write the parameters: %w", err)
	}
	return text, nil
}

// given says whether a member is there and not null.
func given(value json.RawMessage) bool { return len(value) > 0 && string(value) != "null" }
