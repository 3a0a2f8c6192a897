package schema

import (
	"errors"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// mostReasons is the maximum number of reasons in a BrokenError.
const mostReasons = 8

// BrokenError reports an invalid schema: the invalid places of the schema, or one reason
// without a path if the library names no place. Each message is one line.
type BrokenError struct{ Reasons []Violation }

// Error returns all reasons in one line.
func (e *BrokenError) Error() string {
	texts := make([]string, len(e.Reasons))
	for i, r := range e.Reasons {
		if texts[i] = r.Message; r.Path != "" {
			texts[i] = "at " + r.Path + ": " + r.Message
		}
	}

	return strings.Join(texts, "; ")
}

// newBrokenError converts an error of the library. For a schema that violates its
// metaschema, the library's error is a tree; the leaves are the reasons.
func newBrokenError(err error) *BrokenError {
	e := &BrokenError{}
	var invalid *jsonschema.SchemaValidationError
	var tree *jsonschema.ValidationError
	if errors.As(err, &invalid) && errors.As(invalid.Err, &tree) {
		e.leaves(tree)
	}

	// Not a violation of the metaschema: a bad reference or pattern, for example.
	if len(e.Reasons) == 0 {
		e.Reasons = []Violation{{Message: oneLine(err.Error())}}
	}

	return e
}

func (e *BrokenError) leaves(of *jsonschema.ValidationError) {
	for _, cause := range of.Causes {
		e.leaves(cause)
	}

	// Only leaves are reasons; the nodes above repeat the leaves.
	if len(of.Causes) > 0 || len(e.Reasons) == mostReasons {
		return
	}

	var path strings.Builder
	for _, name := range of.InstanceLocation {
		path.WriteString("/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name))
	}

	text := of.Error()

	// The library's message begins with the place, which is in Path.
	if _, message, found := strings.Cut(text, "': "); found {
		text = message
	}

	reason := Violation{Path: path.String(), Message: oneLine(text)}
	if !slices.Contains(e.Reasons, reason) {
		e.Reasons = append(e.Reasons, reason)
	}
}

// oneLine returns text without line ends, shortened to maxErrorText.
func oneLine(text string) string {
	return shorten(strings.Join(strings.Fields(text), " "), maxErrorText)
}
