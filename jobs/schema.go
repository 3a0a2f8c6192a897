package jobs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// The limits of a schema and of what is said about a document.
const (
	maxSchemaSize    = 64 << 10
	maxViolations    = 16
	maxViolationText = 256
	freeEvaluations  = 50_000 // of subschemas in one document, beside two for each of its bytes
)

// Schema is the compiled JSON Schema of a definition's input or output: draft
// 2020-12 unless $schema says otherwise, formats asserted, nothing loaded from
// anywhere. A nil *Schema accepts every document. Safe for concurrent use.
type Schema struct {
	doc  any
	mu   sync.Mutex
	idle []*meteredSchema // as many as ever ran at once
}

// Violation is one place of a document that breaks its schema.
type Violation struct {
	Path    string // JSON pointer; empty for the whole document
	Message string // English; holds nothing of the document but member names
}

// CompileSchema compiles a schema of at most 64 KiB. No schema (nil or null) is
// a nil *Schema. A $ref to anything but the schema itself and the published
// metaschemas is an error: the library's own loader would read files.
func CompileSchema(raw json.RawMessage) (*Schema, error) {
	if trimmed := bytes.TrimSpace(raw); len(trimmed) == 0 || string(trimmed) == "null" {
		return nil, nil
	}
	if len(raw) > maxSchemaSize {
		return nil, fmt.Errorf("schema is %d bytes, the limit is %d", len(raw), maxSchemaSize)
	}
	if err := GuardJSON(raw); err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	s := &Schema{doc: doc}
	first, err := s.compile()
	if err != nil {
		return nil, fmt.Errorf("schema: %w", err)
	}
	s.idle = append(s.idle, first)
	return s, nil
}

// Validate lists what of the document breaks the schema, at most 16 places in
// the order of their paths. The document must have passed GuardJSON: numbers are
// compared exactly, and an exact 1e999999 takes a megabyte.
func (s *Schema) Validate(doc json.RawMessage) []Violation {
	if s == nil {
		return nil
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		return []Violation{{Message: "is not valid JSON"}}
	}
	m, err := s.borrow()
	if err != nil { // it compiled before, so it compiles now
		return []Violation{{Message: "cannot be validated"}}
	}
	defer s.giveBack(m)
	switch err := m.validate(v, freeEvaluations+2*len(doc)); {
	case err == nil:
		return nil
	case errors.Is(err, errTooMuchWork):
		return []Violation{{Message: "takes too much work to validate against its schema"}}
	default:
		var invalid *jsonschema.ValidationError
		if !errors.As(err, &invalid) {
			return []Violation{{Message: "cannot be validated"}}
		}
		return violations(invalid)
	}
}

// refuse loads nothing.
type refuse struct{}

func (refuse) Load(string) (any, error) {
	return nil, errors.New("schemas are not loaded from outside")
}

// A meteredSchema serves one validation at a time. It counts its evaluations,
// because a few lines of schema can ask for 2^64: {"properties": {"a": {"allOf":
// [{"$ref": "#"}, {"$ref": "#"}]}}} doubles with each level of the document. The
// library takes no context, and the format check is the one hook that runs
// before it descends.
type meteredSchema struct {
	schema *jsonschema.Schema
	left   int
}

var errTooMuchWork = errors.New("too much work")

func (s *Schema) compile() (*meteredSchema, error) {
	const location = "tes:///schema" // absolute, else the library makes a file name of it
	c := jsonschema.NewCompiler()
	c.UseLoader(refuse{})
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	if err := c.AddResource(location, s.doc); err != nil {
		return nil, err
	}
	schema, err := c.Compile(location)
	if err != nil {
		return nil, err
	}
	m := &meteredSchema{schema: schema}
	m.meter(reflect.ValueOf(schema), map[*jsonschema.Schema]bool{})
	return m, nil
}

func (s *Schema) borrow() (*meteredSchema, error) {
	s.mu.Lock()
	if n := len(s.idle); n > 0 {
		m := s.idle[n-1]
		s.idle = s.idle[:n-1]
		s.mu.Unlock()
		return m, nil
	}
	s.mu.Unlock()
	return s.compile()
}

func (s *Schema) giveBack(m *meteredSchema) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = append(s.idle, m)
}

func (m *meteredSchema) validate(v any, budget int) (err error) {
	m.left = budget
	defer func() {
		if r := recover(); r != nil {
			if r != errTooMuchWork { //nolint:errorlint // a panic's value, compared as such
				panic(r)
			}
			err = errTooMuchWork
		}
	}()
	return m.schema.Validate(v)
}

func (m *meteredSchema) tick() {
	if m.left--; m.left < 0 {
		panic(errTooMuchWork)
	}
}

// meter finds every subschema by its exported fields, so that a keyword that the
// library learns later is found too.
func (m *meteredSchema) meter(v reflect.Value, seen map[*jsonschema.Schema]bool) {
	switch v.Kind() {
	case reflect.Interface:
		m.meter(v.Elem(), seen)
	case reflect.Slice:
		for i := range v.Len() {
			m.meter(v.Index(i), seen)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			m.meter(v.MapIndex(key), seen)
		}
	case reflect.Pointer:
		switch p := v.Interface().(type) {
		case *jsonschema.DynamicRef:
			if p != nil {
				m.meter(reflect.ValueOf(p.Ref), seen)
			}
		case *jsonschema.Schema:
			if p == nil || seen[p] {
				return
			}
			seen[p] = true
			for i := range v.Elem().NumField() {
				if v.Elem().Type().Field(i).IsExported() {
					m.meter(v.Elem().Field(i), seen)
				}
			}
			m.hook(p)
		}
	}
}

func (m *meteredSchema) hook(s *jsonschema.Schema) {
	if s.Format == nil {
		s.Format = &jsonschema.Format{Validate: func(any) error { m.tick(); return nil }}
		return
	}
	check := s.Format.Validate
	s.Format = &jsonschema.Format{Name: s.Format.Name, Validate: func(v any) error { m.tick(); return check(v) }}
}

// violations flattens the library's tree to its leaves. The library walks maps,
// so their order is made here.
func violations(err *jsonschema.ValidationError) []Violation {
	var all []Violation
	var walk func(e *jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		if _, name := e.ErrorKind.(*kind.PropertyNames); len(e.Causes) == 0 || name {
			all = append(all, describe(e)...)
			return
		}
		for _, cause := range e.Causes {
			walk(cause)
		}
	}
	walk(err)
	slices.SortFunc(all, func(a, b Violation) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Message, b.Message))
	})
	all = slices.Compact(all) // the branches of an anyOf often say the same
	return all[:min(len(all), maxViolations)]
}

// describe says in our words what the library found: its own quote the document.
func describe(e *jsonschema.ValidationError) []Violation {
	one := func(format string, args ...any) []Violation {
		message := []rune(fmt.Sprintf(format, args...))
		if len(message) > maxViolationText {
			message = append(message[:maxViolationText-1], '…')
		}
		return []Violation{{Path: pointer(e.InstanceLocation), Message: string(message)}}
	}
	each := func(names []string, message string) []Violation {
		var list []Violation
		for _, name := range names[:min(len(names), maxViolations)] {
			at := append(slices.Clone(e.InstanceLocation), name)
			list = append(list, Violation{Path: pointer(at), Message: message})
		}
		return list
	}
	switch k := e.ErrorKind.(type) {
	case *kind.Type:
		return one("must be %s, is %s", strings.Join(k.Want, " or "), k.Got)
	case *kind.Required:
		return each(k.Missing, "is required")
	case *kind.Dependency:
		return each(k.Missing, "is required where "+strconv.Quote(k.Prop)+" is present")
	case *kind.DependentRequired:
		return each(k.Missing, "is required where "+strconv.Quote(k.Prop)+" is present")
	case *kind.AdditionalProperties:
		return each(slices.Sorted(slices.Values(k.Properties)), "is not allowed")
	case *kind.PropertyNames:
		return each([]string{k.Property}, "has a name that is not allowed")
	case *kind.AdditionalItems:
		return one("has %d items too many", k.Count)
	case *kind.FalseSchema:
		return one("is not allowed")
	case *kind.Enum:
		return one("must be one of %s", inJSON(k.Want))
	case *kind.Const:
		return one("must be %s", inJSON(k.Want))
	case *kind.Format:
		return one("must have the format %s", k.Want)
	case *kind.Pattern:
		return one("must match the pattern %s", k.Want)
	case *kind.MinLength:
		return one("must have at least %d characters, has %d", k.Want, k.Got)
	case *kind.MaxLength:
		return one("must have at most %d characters, has %d", k.Want, k.Got)
	case *kind.MinItems:
		return one("must have at least %d items, has %d", k.Want, k.Got)
	case *kind.MaxItems:
		return one("must have at most %d items, has %d", k.Want, k.Got)
	case *kind.MinProperties:
		return one("must have at least %d members, has %d", k.Want, k.Got)
	case *kind.MaxProperties:
		return one("must have at most %d members, has %d", k.Want, k.Got)
	case *kind.UniqueItems:
		return one("must have no equal items, %d and %d are", k.Duplicates[0], k.Duplicates[1])
	case *kind.Minimum:
		return one("must be at least %s", k.Want.RatString())
	case *kind.Maximum:
		return one("must be at most %s", k.Want.RatString())
	case *kind.ExclusiveMinimum:
		return one("must be more than %s", k.Want.RatString())
	case *kind.ExclusiveMaximum:
		return one("must be less than %s", k.Want.RatString())
	case *kind.MultipleOf:
		return one("must be a multiple of %s", k.Want.RatString())
	case *kind.Contains, *kind.MinContains:
		return one("has too few of the items it must contain")
	case *kind.MaxContains:
		return one("has too many of the items it must contain")
	case *kind.OneOf:
		return one("must match exactly one of the alternatives, matches %s", map[bool]string{true: "none", false: "several"}[len(k.Subschemas) == 0])
	case *kind.Not:
		return one("matches what is ruled out")
	default:
		return one("does not match the schema")
	}
}

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

// inJSON shows a value of the schema.
func inJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "what the schema says"
	}
	return string(b)
}
