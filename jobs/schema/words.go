package schema

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// wrong notes a place, if places are noted, and is false. Its words hold nothing of
// the document's values.
func (v *visit) wrong(format string, args ...any) bool {
	if !v.loud() {
		return false
	}
	v.charge(64)
	found := Violation{Path: pointer(v.path), Message: shorten(fmt.Sprintf(format, args...), maxViolationText)}
	if slices.Contains(v.found, found) { // the branches of an anyOf often say the same
		return false
	}
	v.found = append(v.found, found)
	if len(v.found) == MaxViolations {
		panic(stop{errEnough})
	}
	return false
}

// wrongAt notes a member of this place.
func (v *visit) wrongAt(name, message string) bool {
	v.path = append(v.path, name)
	v.wrong("%s", message)
	v.path = v.path[:len(v.path)-1]
	return false
}

// What a message shows is made only where it is shown.
type (
	typeNames struct{ of *node }  // that a value may have
	shown     struct{ value any } // of the schema
)

func (t typeNames) String() string { return strings.Join(t.of.Types.ToStrings(), " or ") }

// pointer is the JSON pointer of a path, shortened where a name is absurd.
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

// String is JSON, of a long list the beginning.
func (s shown) String() string {
	const enough = 64 // values: more than a message has room for
	value, cut := s.value, false
	if list, ok := value.([]any); ok && len(list) > enough {
		value, cut = list[:enough], true
	}
	b, err := json.Marshal(value)
	if err != nil {
		return "what the schema says"
	}
	if cut {
		b = append(b[:len(b)-1], ",…]"...)
	}
	return string(b)
}
