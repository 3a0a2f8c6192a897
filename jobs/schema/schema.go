// Package schema holds documents against JSON Schemas that others write. The library
// reads a schema; the work of holding a document against it is done here, where each
// step is paid from a budget, so that no pair of a schema and a document costs more
// time or memory than the document's size allows.
package schema

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
	"github.com/seed-3f7a0631/tes/jobs/pattern"
)

// The limits of a schema, of the work that one document may cause, and of what is
// said about a document. One unit of work is some 20 to 100 ns.
const (
	MaxSize       = 64 << 10 // bytes of a schema
	MaxViolations = 16

	maxSubschemas    = 10_000  // objects and booleans in a schema
	maxPointers      = 4 << 20 // bytes of the JSON pointers to all of them: the library keeps each
	maxPatternSize   = 100_000 // instructions of all patterns together
	maxViolationText = 256     // characters
	maxErrorText     = 512     // characters of what is wrong with a schema

	freeWork    = 200_000 // units for any document
	workPerByte = 10      // units more for each byte of the document
	lookEvery   = 4096    // units between two looks at the context
)

// Schema is a compiled JSON Schema: draft 2020-12 unless $schema says otherwise,
// formats asserted, nothing loaded from anywhere. A nil *Schema accepts every
// document. Safe for concurrent use.
type Schema struct{ root *node }

// Violation is one place of a document that breaks its schema.
type Violation struct {
	Path    string // JSON pointer; empty for the whole document
	Message string // English; holds nothing of the document but member names
}

// Compile compiles a schema of at most MaxSize bytes. An empty or null schema gives a
// nil *Schema, which accepts every document. Errors: JSON that jsonguard.Check rejects;
// a *BrokenError for an invalid schema; a $ref to any document but the schema itself
// and the published metaschemas (the library's own loader would read files); a panic
// of the library.
func Compile(raw json.RawMessage) (s *Schema, err error) {
	defer func() {
		if r := recover(); r != nil {
			s, err = nil, errors.New("schema: cannot be compiled")
		}
	}()
	if trimmed := bytes.TrimSpace(raw); len(trimmed) == 0 || string(trimmed) == "null" {
		return nil, nil
	}
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("schema is %d bytes, the limit is %d", len(raw), MaxSize)
	}
	if err := jsonguard.Check(raw); err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}

	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	if err := measure(doc); err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	root, err := compile(doc)
	if err != nil {
		return nil, brokenBy(err)
	}
	return &Schema{root: root}, nil
}

// measure refuses a schema that the library would spend much memory on: it keeps a
// pointer to each subschema, and a name of 30 KB can have thousands below it.
func measure(doc any) error {
	count, pointers := 0, 0
	var walk func(v any, length int)
	walk = func(v any, length int) {
		switch v := v.(type) {
		case map[string]any:
			count++
			pointers += length
			for name, member := range v {
				walk(member, length+len(name)+1)
			}
		case []any:
			for _, item := range v {
				walk(item, length+6)
			}
		case bool:
			count++
			pointers += length
		}
	}
	walk(doc, 0)
	switch {
	case count > maxSubschemas:
		return fmt.Errorf("has %d objects and booleans, the limit is %d", count, maxSubschemas)
	case pointers > maxPointers:
		return errors.New("has too many subschemas below long names")
	}
	return nil
}

// Validate lists what of the document breaks the schema: the first 16 places that
// are found, in the order of their paths. The document must have passed
// jsonguard.Check: numbers are compared exactly, and an exact 1e999999 takes a
// megabyte. A document that takes too much work is a violation that says so. The
// error is ctx's, and nil while that has not ended.
func (s *Schema) Validate(ctx context.Context, doc json.RawMessage) ([]Violation, error) {
	if s == nil {
		return nil, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	x, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		return []Violation{{Message: "is not valid JSON"}}, nil //nolint:nilerr // a violation says it
	}
	budget := freeWork + workPerByte*len(doc)

	// Whether it fits is found without a word being made; most do.
	valid, err := s.visit(&visit{ctx: ctx, left: budget, quiet: 1}, x)
	switch {
	case errors.Is(err, errTooMuchWork):
		return []Violation{{Message: "takes too much work to validate against its schema"}}, nil
	case err != nil:
		return nil, err
	case valid:
		return nil, nil
	}

	// Why it does not fit is looked for in the order of names, up to 16 places, with
	// as much work again; what was found until then is said.
	v := &visit{ctx: ctx, left: budget}
	if _, err := s.visit(v, x); err != nil && !errors.Is(err, errEnough) && !errors.Is(err, errTooMuchWork) {
		return nil, err
	}
	if len(v.found) == 0 {
		v.found = []Violation{{Message: "does not match the schema"}}
	}
	slices.SortFunc(v.found, compareViolations)
	return v.found, nil
}

func compareViolations(a, b Violation) int {
	if c := strings.Compare(a.Path, b.Path); c != 0 {
		return c
	}
	return strings.Compare(a.Message, b.Message)
}

// The reasons to stop in the middle. They are panicked, for they end all levels at
// once, and never leave this file.
var (
	errTooMuchWork = errors.New("too much work")
	errEnough      = errors.New("enough places found")
)

type stop struct{ err error }

func (s *Schema) visit(v *visit, x any) (valid bool, err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case stop:
			err = r.err
		default:
			panic(r)
		}
	}()
	return v.eval(s.root, x, 0, nil), nil
}

// engine compiles the patterns of one schema, which have a common limit.
func engine() jsonschema.RegexpEngine {
	left := maxPatternSize
	known := map[string]*pattern.Pattern{}
	return func(source string) (jsonschema.Regexp, error) {
		if p := known[source]; p != nil {
			return p, nil
		}
		if left < 0 { // the library asks for the rest all the same
			return nil, errPatterns
		}
		p, err := pattern.Compile(source)
		if err != nil {
			return nil, err
		}
		if left -= p.Size(); left < 0 {
			return nil, errPatterns
		}
		known[source] = p
		return p, nil
	}
}

var errPatterns = fmt.Errorf("the patterns compile to more than %d instructions together", maxPatternSize)

// refuse loads nothing.
type refuse struct{}

func (refuse) Load(string) (any, error) {
	return nil, errors.New("schemas are not loaded from outside")
}

func shorten(text string, longest int) string {
	r := []rune(strings.ToValidUTF8(text, "�"))
	if len(r) > longest {
		r = append(r[:longest-1], '…')
	}
	return string(r)
}
