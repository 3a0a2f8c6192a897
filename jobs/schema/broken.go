package schema

import (
	"errors"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// mostReasons is how many places of a schema that is none are told.
const mostReasons = 8

// BrokenError is a schema that is none: the places in it that are wrong, or one without a
// path where the library names none. Its texts are one line each.
type BrokenError struct{ Reasons []Violation }

// Error is all the reasons in one line.
func (e *BrokenError) Error() string {
	texts := make([]string, len(e.Reasons))
	for i, r := range e.Reasons {
		if texts[i] = r.Message; r.Path != "" {
			texts[i] = "at " + r.Path + ": " + r.Message
		}
	}
	return strings.Join(texts, "; ")
}

// brokenBy takes the library's error apart: of a schema that its metaschema refuses it is a
// tree over several lines, of which the leaves are the reasons.
func brokenBy(err error) *BrokenError {
	e := &BrokenError{}
	var invalid *jsonschema.SchemaValidationError
	var tree *jsonschema.ValidationError
	if errors.As(err, &invalid) && errors.As(invalid.Err, &tree) {
		e.leaves(tree)
	}
	if len(e.Reasons) == 0 {
		e.Reasons = []Violation{{Message: oneLine(err.Error())}}
	}
	return e
}

func (e *BrokenError) leaves(of *jsonschema.ValidationError) {
	for _, cause := range of.Causes {
		e.leaves(cause)
	}
	if len(of.Causes) > 0 || len(e.Reasons) == mostReasons {
		return
	}
	var path strings.Builder
	for _, name := range of.InstanceLocation {
		path.WriteString("/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name))
	}
	text := of.Error()
	if _, message, found := strings.Cut(text, "': "); found {
		text = message // it begins with the place, which is told beside it
	}
	reason := Violation{Path: path.String(), Message: oneLine(text)}
	if !slices.Contains(e.Reasons, reason) {
		e.Reasons = append(e.Reasons, reason)
	}
}

// oneLine is a text without line ends, bounded.
func oneLine(text string) string {
	return shorten(strings.Join(strings.Fields(text), " "), maxErrorText)
}
