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

// The limits of a schema, of the work for one document, and of messages. One unit of
// work is about 20 to 100 ns.
const (
	MaxSize       = 64 << 10 // bytes of a schema
	MaxViolations = 16

	maxSubschemas    = 10_000  // objects and booleans in a schema
	maxPointers      = 4 << 20 // bytes of the JSON pointers to all subschemas, which the library keeps
	maxPatternSize   = 100_000 // instructions of all patterns of a schema together
	maxViolationText = 256     // characters of one message
	maxErrorText     = 512     // characters of one reason in a BrokenError

	freeWork         = 200_000 // units for any document
	workPerByte      = 10      // additional units for each byte of the document
	ctxCheckInterval = 4096    // units between two checks of the context
)

// Schema is a compiled JSON Schema: draft 2020-12 unless $schema names another draft,
// with asserted formats. A nil *Schema accepts every document. Safe for concurrent use.
type Schema struct{ root *node }

// Violation is one place of a document that violates the schema.
type Violation struct {
	Path    string // JSON pointer; empty for the whole document
	Message string // English; contains no value of the document, only member names
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

	if err := checkSize(doc); err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}

	root, err := compile(doc)
	if err != nil {
		return nil, newBrokenError(err)
	}

	return &Schema{root: root}, nil
}

// checkSize rejects a schema for which the library would use much memory: the library
// keeps a JSON pointer for each subschema, and a name of 30 KB may be above thousands of
// subschemas.
func checkSize(doc any) error {
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
				walk(item, length+6) // an index and its slash
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

// Validate returns the first 16 violations found, in the order of their paths; none means
// that the document is valid. A document that exceeds the budget gets a violation that
// says so. The error is ctx's, and nil unless ctx has ended.
//
// The document must have passed jsonguard.Check: numbers are compared exactly, and an
// exact 1e999999 takes a megabyte.
func (s *Schema) Validate(ctx context.Context, doc json.RawMessage) ([]Violation, error) {
	if s == nil {
		return nil, nil
	}

	if err := ctx.Err(); err != nil {
		return nil, err
	}

	x, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		// Reported as a violation, like any other defect of the document.
		return []Violation{{Message: "is not valid JSON"}}, nil //nolint:nilerr // the violation reports the error
	}

	budget := freeWork + workPerByte*len(doc)

	// Pass 1 makes no messages and no paths: most documents are valid.
	valid, err := s.evaluate(&evaluation{ctx: ctx, left: budget, silent: 1}, x)
	switch {
	case errors.Is(err, errTooMuchWork):
		return []Violation{{Message: "takes too much work to validate against its schema"}}, nil
	case err != nil:
		return nil, err
	case valid:
		return nil, nil
	}

	// Pass 2 collects violations, in the order of names, with a budget of its own. The
	// violations found before the budget was used up are returned.
	v := &evaluation{ctx: ctx, left: budget}
	if _, err := s.evaluate(v, x); err != nil && !errors.Is(err, errEnough) && !errors.Is(err, errTooMuchWork) {
		return nil, err
	}

	// Some keywords report no place, a reference cycle for example.
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

// The reasons to abort an evaluation. They are panicked, because an abort ends all levels
// of the recursion at once, and evaluate recovers them.
var (
	errTooMuchWork = errors.New("too much work")
	errEnough      = errors.New("enough places found")
)

type abort struct{ err error }

func (s *Schema) evaluate(v *evaluation, x any) (valid bool, err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case abort:
			err = r.err
		default:
			panic(r)
		}
	}()

	return v.eval(s.root, x, 0, nil), nil
}

// regexpEngine returns a compiler for the patterns of one schema, which have a common
// limit on their size.
func regexpEngine() jsonschema.RegexpEngine {
	left := maxPatternSize
	known := map[string]*pattern.Pattern{}
	return func(source string) (jsonschema.Regexp, error) {
		// The same pattern is compiled and counted once.
		if p := known[source]; p != nil {
			return p, nil
		}

		// The library goes on to the next pattern after an error.
		if left < 0 {
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

// noLoader is the library's loader of referenced schemas. Every load is an error.
type noLoader struct{}

func (noLoader) Load(string) (any, error) {
	return nil, errors.New("schemas are not loaded from outside")
}

func shorten(text string, longest int) string {
	r := []rune(strings.ToValidUTF8(text, "�"))
	if len(r) > longest {
		r = append(r[:longest-1], '…')
	}

	return string(r)
}
