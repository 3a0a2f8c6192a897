package schema

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// report adds a violation at the current path, unless the evaluation is silent. The
// result is always false. The message must not contain values of the document.
func (v *evaluation) report(format string, args ...any) bool {
	if !v.reporting() {
		return false
	}

	// Formatting a message costs more than the comparison that failed.
	v.charge(64)
	found := Violation{Path: pointer(v.path), Message: shorten(fmt.Sprintf(format, args...), maxViolationText)}

	// The branches of an anyOf often report the same violation.
	if slices.Contains(v.found, found) {
		return false
	}

	v.found = append(v.found, found)
	if len(v.found) == MaxViolations {
		panic(abort{errEnough})
	}

	return false
}

// reportAt adds a violation at a member of the current value. The result is always false.
func (v *evaluation) reportAt(name, message string) bool {
	v.path = append(v.path, name)
	v.report("%s", message)
	v.path = v.path[:len(v.path)-1]
	return false
}

// Arguments of messages that are formatted only if the message is needed.
type (
	typeNames struct{ of *node }  // the allowed types of a node
	jsonText  struct{ value any } // a value of the schema
)

func (t typeNames) String() string { return strings.Join(t.of.Types.ToStrings(), " or ") }

// pointer returns path as a JSON pointer, with very long names shortened.
func pointer(path []string) string {
	const longest = 128
	var b strings.Builder
	for _, name := range path {
		if len(name) > longest {
			name = strings.ToValidUTF8(name[:longest], "") + "…"
		}
		b.WriteByte('/')
		b.WriteString(strings.NewReplacer("~", "~0", "/", "~1").Replace(name))
	}

	return b.String()
}

// String returns the value as JSON, shortened after 64 items of a list.
func (s jsonText) String() string {
	const enough = 64 // more items than a message has space for
	value, cut := s.value, false

	// Cut before encoding: an enum may have thousands of values.
	if list, ok := value.([]any); ok && len(list) > enough {
		value, cut = list[:enough], true
	}

	b, err := json.Marshal(value)
	if err != nil {
		return "the schema's value"
	}

	if cut {
		b = append(b[:len(b)-1], ",…]"...)
	}

	return string(b)
}
