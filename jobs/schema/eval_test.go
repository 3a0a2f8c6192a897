package schema

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// list is open, n times what each makes of the number, close.
func list(open string, n int, each, end string) string {
	var b strings.Builder
	b.WriteString(open)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strings.ReplaceAll(each, "#", fmt.Sprint(i)))
	}
	return b.String() + end
}

// refsInARow is a schema in which each of n leads to the next.
func refsInARow(n int) string {
	var b strings.Builder
	b.WriteString(`{"$ref":"#/$defs/0","$defs":{`)
	for i := range n {
		fmt.Fprintf(&b, `"%d":{"$ref":"#/$defs/%d"},`, i, i+1)
	}
	fmt.Fprintf(&b, `"%d":true}}`, n)
	return b.String()
}

// used is the processor time that this process has had, which other processes do not
// make longer.
func used(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const tooMuch = "takes too much work to validate against its schema"

// Pairs of a schema and a document that ask for the product of both, or more. Each
// ends soon, and without allocating much more than the document in memory: what is
// allocated in all bounds what is live at once.
//
//nolint:paralleltest // it measures what is allocated while nothing else runs
func TestWorkIsBounded(t *testing.T) {
	names := list(`[`, 2000, `"name-#"`, `]`)
	for name, tc := range map[string]struct {
		schema, doc string
		want        string // the first message; empty: it fits
	}{
		"enum of 2,000 × 50,000 items":             {`{"items":{"enum":` + list(`["x"`+",", 2000, `"v#"`, `]`) + `}}`, list(`[`, 50_000, `"v0"`, `]`), ""},
		"enum of 2,000 × 50,000 items, none fits":  {`{"items":{"enum":` + list(`[`, 2000, `#`, `]`) + `}}`, list(`[`, 50_000, `-1`, `]`), "must be one of [0,1,2"},
		"enum of objects":                          {`{"items":{"enum":` + list(`[`, 2000, `{"a":[#]}`, `]`) + `}}`, list(`[`, 20_000, `{"a":[-1]}`, `]`), "must be one of "},
		"enum of objects and one huge":             {`{"items":{"anyOf":` + list(`[`, 2000, `{"enum":[{"a":#}]}`, `]`) + `}}`, `[{` + list(``, 50_000, `"k#":#`, ``) + `}]`, "must be one of "},
		"required of 2,000 × 2,000 {}":             {`{"items":{"required":` + names + `}}`, list(`[`, 2000, `{}`, `]`), "is required"},
		"required of 5,000 × 20,000 {}":            {`{"items":{"required":` + list(`[`, 5000, `"n#"`, `]`) + `}}`, list(`[`, 20_000, `{}`, `]`), "is required"},
		"dependentRequired":                        {`{"items":{"dependentRequired":{"a":` + names + `}}}`, list(`[`, 20_000, `{"a":1}`, `]`), `is required where "a" is present`},
		"allOf of types":                           {`{"items":{"allOf":` + list(`[`, 3000, `{"type":"string"}`, `]`) + `}}`, list(`[`, 20_000, `""`, `]`), tooMuch},
		"allOf of types, all wrong":                {`{"items":{"allOf":` + list(`[`, 3000, `{"type":"null"}`, `]`) + `}}`, list(`[`, 20_000, `1`, `]`), "must be null, is number"},
		"allOf of booleans":                        {`{"items":{"allOf":` + list(`[`, 9000, `true`, `]`) + `}}`, list(`[`, 20_000, `1`, `]`), tooMuch},
		"anyOf of types":                           {`{"items":{"anyOf":` + list(`[`, 3000, `{"type":"null"}`, `]`) + `}}`, list(`[`, 20_000, `1`, `]`), "must be null, is number"},
		"properties of 2,000 × 20,000 {}":          {`{"items":{"properties":{` + list(``, 2000, `"n#":true`, ``) + `}}}`, list(`[`, 20_000, `{}`, `]`), ""},
		"uniqueItems at each level":                {`{"uniqueItems":true,"items":{"$ref":"#"}}`, strings.Repeat(`[`, 60) + list(`[`, 100_000, `#`, `]`) + strings.Repeat(`]`, 60), ""},
		"uniqueItems many times":                   {`{"allOf":` + list(`[`, 2000, `{"uniqueItems":true}`, `]`) + `}`, list(`[`, 50_000, `#`, `]`), tooMuch},
		"uniqueItems, long items":                  {`{"uniqueItems":true}`, list(`[`, 20, `"`+strings.Repeat("x", 50_000)+`#"`, `]`), ""},
		"a pattern in all of its positions":        {`{"items":{"not":{"pattern":"(.?){900}y"}}}`, list(`[`, 100, `"`+strings.Repeat("x", 5000)+`"`, `]`), tooMuch},
		"many patterns":                            {`{"allOf":` + list(`[`, 2000, `{"not":{"pattern":"x#$"}}`, `]`) + `}`, `"` + strings.Repeat("x", 500_000) + `"`, tooMuch},
		"patternProperties":                        {`{"patternProperties":{` + list(``, 300, `"x{200}y#":true`, ``) + `}}`, `{` + list(``, 20_000, `"`+strings.Repeat("x", 40)+`#":1`, ``) + `}`, tooMuch},
		"propertyNames":                            {`{"propertyNames":{"allOf":` + list(`[`, 1000, `{"minLength":1}`, `]`) + `}}`, `{` + list(``, 50_000, `"k#":1`, ``) + `}`, tooMuch},
		"contains":                                 {`{"allOf":` + list(`[`, 1000, `{"contains":{"const":#},"minContains":0}`, `]`) + `}`, list(`[`, 50_000, `-1`, `]`), tooMuch},
		"unevaluatedProperties":                    {`{"allOf":` + list(`[`, 1000, `{"properties":{"k#":true}}`, `]`) + `,"unevaluatedProperties":false}`, `{` + list(``, 50_000, `"k#":1`, ``) + `}`, tooMuch},
		"unevaluatedItems":                         {`{"allOf":` + list(`[`, 1000, `{"contains":true}`, `]`) + `,"unevaluatedItems":false}`, list(`[`, 50_000, `1`, `]`), tooMuch},
		"numbers with large exponents":             {`{"items":{"allOf":` + list(`[`, 400, `{"multipleOf":1e-300}`, `]`) + `}}`, list(`[`, 5000, `1e300`, `]`), tooMuch},
		"numbers with large exponents, compared":   {`{"items":{"allOf":` + list(`[`, 400, `{"minimum":1e-300}`, `]`) + `}}`, list(`[`, 5000, `1e300`, `]`), tooMuch},
		"texts that are to be patterns":            {`{"items":{"format":"regex"}}`, list(`[`, 20_000, `"(a{1000}){1000}"`, `]`), "must have the format regex"},
		"texts that are patterns":                  {`{"items":{"format":"regex"}}`, list(`[`, 20_000, `"\\pL{1000}\\pL{1000}\\pL"`, `]`), tooMuch},
		"refs in a row":                            {refsInARow(1500), `1`, ""},
		"errors of 1 MiB":                          {`{"items":{"type":"string"}}`, list(`[`, 500_000, `1`, `]`), "must be string, is number"},
		"dynamic references":                       {`{"$dynamicAnchor":"x","properties":{"a":{"allOf":[{"$dynamicRef":"#x"},{"$dynamicRef":"#x"}]}}}`, strings.Repeat(`{"a":`, 60) + `1` + strings.Repeat(`}`, 60), tooMuch},
		"the longest cycle there can be, measured": {`{"items":{"oneOf":` + list(`[`, 500, `{"not":{"const":#}}`, `]`) + `}}`, list(`[`, 20_000, `-1`, `]`), "must match exactly one of the alternatives, matches several"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Compile(json.RawMessage(tc.schema))
			require.NoError(t, err)

			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := used(t)
			got := broken(t, s, tc.doc)
			took := used(t) - began
			runtime.ReadMemStats(&after)

			allocated := (after.TotalAlloc - before.TotalAlloc) >> 20
			t.Logf("%v, %d MiB", took.Round(time.Millisecond), allocated)
			require.Less(t, took, 10*time.Second)
			require.Less(t, allocated, uint64(256), "MiB")
			require.LessOrEqual(t, len(got), MaxViolations)
			if tc.want == "" {
				require.Empty(t, got)
				return
			}
			require.NotEmpty(t, got)
			require.Contains(t, got[0].Message, tc.want)
		})
	}
}

// A schema is read at a bounded cost too.
//
//nolint:paralleltest // it measures what is allocated while nothing else runs
func TestCompileIsBounded(t *testing.T) {
	for name, schema := range map[string]string{
		"subschemas below a long name": `{"properties":{"` + strings.Repeat("n", 30_000) + `":{"allOf":` + list(`[`, 6000, `true`, `]`) + `}}}`,
		"many subschemas":              list(`{"allOf":[`, 12_000, `true`, `]}`),
		"many large patterns":          `{"allOf":` + list(`[`, 1000, `{"pattern":"(.?){900}#"}`, `]`) + `}`,
		"a pattern that is long":       `{"pattern":"` + strings.Repeat("x", 5000) + `"}`,
		"a pattern that grows":         `{"pattern":"` + strings.Repeat("(.{1000})", 100) + `"}`,
		"many mistakes":                list(`{"allOf":[`, 9000, `7`, `]}`),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := used(t)
			_, err := Compile(json.RawMessage(schema))
			require.Error(t, err)
			require.LessOrEqual(t, len(err.Error()), 4*maxErrorText)
			require.Less(t, used(t)-began, 10*time.Second)
			runtime.ReadMemStats(&after)
			require.Less(t, (after.TotalAlloc-before.TotalAlloc)>>20, uint64(256), "MiB")
		})
	}
}

// A caller that leaves stops the work.
func TestValidateObeysItsContext(t *testing.T) {
	t.Parallel()
	s, err := Compile(json.RawMessage(`{"items":{"type":"integer"}}`))
	require.NoError(t, err)
	doc := json.RawMessage(list(`[`, 100_000, `#`, `]`))

	ctx, leave := context.WithCancel(t.Context())
	leave()
	_, err = s.Validate(ctx, doc)
	require.ErrorIs(t, err, context.Canceled)

	// One that ends in the middle: Err is asked at the beginning, and again on the way.
	half := &expiring{Context: t.Context(), asked: make(chan struct{}, 1<<20)}
	_, err = s.Validate(half, doc)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Len(t, half.asked, 3)
}

// expiring has ended when it is asked for the third time.
type expiring struct {
	context.Context
	asked chan struct{}
}

func (e *expiring) Err() error {
	if e.asked <- struct{}{}; len(e.asked) >= 3 {
		return context.DeadlineExceeded
	}
	return nil
}

// The library's own validation is the judge of ours, on what is small enough for it.
func TestVerdictsAreTheLibrarys(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		schema := genSchema(3).Draw(r, "schema")
		doc := genValue(3).Draw(r, "document")
		schemaText, _ := json.Marshal(schema)
		docText, _ := json.Marshal(doc)

		s, err := Compile(schemaText)
		read, readErr := jsonschema.UnmarshalJSON(bytes.NewReader(schemaText))
		require.NoError(r, readErr)
		c := jsonschema.NewCompiler()
		c.UseLoader(noLoader{})
		c.DefaultDraft(jsonschema.Draft2020)
		require.NoError(r, c.AddResource(location, read))
		theirs, theirErr := c.Compile(location)
		require.Equal(r, theirErr == nil, err == nil, "%s: %v, %v", schemaText, err, theirErr)
		if err != nil {
			return
		}
		x, err := jsonschema.UnmarshalJSON(bytes.NewReader(docText))
		require.NoError(r, err)
		got, err := s.Validate(r.Context(), docText)
		require.NoError(r, err)
		require.Equal(r, theirs.Validate(x) == nil, len(got) == 0, "%s\n%s\n%v", schemaText, docText, got)
	})
}

var names = rapid.SampledFrom([]string{"a", "b", "c", "ab"})

func genValue(depth int) *rapid.Generator[any] {
	plain := rapid.OneOf(
		rapid.Just[any](nil), rapid.Just[any](true), rapid.Just[any](false),
		rapid.Map(rapid.SampledFrom([]string{"0", "1", "2", "3", "1.0", "1.5", "10e-1", "-1", "9007199254740993", "9007199254740992", "1e3", "0.30"}), func(s string) any { return json.Number(s) }),
		rapid.Map(rapid.SampledFrom([]string{"", "a", "b", "ab", "aaa", "é"}), func(s string) any { return s }),
	)
	if depth == 0 {
		return plain
	}
	return rapid.OneOf(plain,
		rapid.Map(rapid.SliceOfN(genValue(depth-1), 0, 4), func(l []any) any { return l }),
		rapid.Map(rapid.MapOfN(names, genValue(depth-1), 0, 4), func(m map[string]any) any { return m }))
}

func genSchema(depth int) *rapid.Generator[any] {
	return rapid.Custom(func(r *rapid.T) any {
		if depth == 0 {
			return rapid.Bool().Draw(r, "always")
		}
		sub := rapid.Deferred(func() *rapid.Generator[any] { return genSchema(depth - 1) })
		subs := rapid.SliceOfN(sub, 1, 3)
		byName := rapid.MapOfN(names, sub, 1, 3)
		number := rapid.SampledFrom([]json.Number{"0", "1", "2", "1.5", "0.1", "9007199254740992", "3"})
		small := rapid.IntRange(0, 3)
		s := map[string]any{}
		for range rapid.IntRange(1, 4).Draw(r, "keywords") {
			key := rapid.SampledFrom([]string{
				"type", "enum", "const", "required", "dependentRequired", "dependentSchemas", "properties", "patternProperties", "additionalProperties",
				"propertyNames", "unevaluatedProperties", "minProperties", "maxProperties", "items", "prefixItems", "contains", "minContains", "maxContains",
				"unevaluatedItems", "uniqueItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum",
				"exclusiveMaximum", "multipleOf", "not", "allOf", "anyOf", "oneOf", "if", "then", "else", "$ref",
			}).Draw(r, "keyword")
			switch key {
			case "type":
				s[key] = rapid.SampledFrom([]string{"null", "boolean", "number", "integer", "string", "array", "object"}).Draw(r, key)
			case "enum":
				s[key] = rapid.SliceOfN(genValue(1), 1, 4).Draw(r, key)
			case "const":
				s[key] = genValue(2).Draw(r, key)
			case "required":
				s[key] = rapid.SliceOfNDistinct(names, 0, 3, rapid.ID[string]).Draw(r, key)
			case "dependentRequired":
				s[key] = rapid.MapOfN(names, rapid.SliceOfNDistinct(names, 0, 3, rapid.ID[string]), 1, 2).Draw(r, key)
			case "dependentSchemas", "properties":
				s[key] = byName.Draw(r, key)
			case "patternProperties":
				s[key] = rapid.MapOfN(rapid.SampledFrom([]string{"a", "^a$", "b{1}", "^.{2}$"}), sub, 1, 2).Draw(r, key)
			case "prefixItems", "allOf", "anyOf", "oneOf":
				s[key] = subs.Draw(r, key)
			case "uniqueItems":
				s[key] = rapid.Bool().Draw(r, key)
			case "minContains", "maxContains", "minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength":
				s[key] = small.Draw(r, key)
			case "pattern":
				s[key] = rapid.SampledFrom([]string{"a", "^a$", "b{1}", "^.{2}$"}).Draw(r, key)
			case "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum":
				s[key] = number.Draw(r, key)
			case "multipleOf":
				s[key] = rapid.SampledFrom([]json.Number{"1", "2", "0.1", "1.5"}).Draw(r, key)
			case "$ref":
				s[key] = rapid.SampledFrom([]string{"#", "#/properties/a", "#/allOf/0"}).Draw(r, key)
			default:
				s[key] = sub.Draw(r, key)
			}
		}
		return s
	})
}

// Whatever a schema and a document are, the end comes soon and nothing panics.
func FuzzValidate(f *testing.F) {
	f.Add(`{"items":{"enum":[1,2]}}`, `[1,3]`)
	f.Add(`{"$dynamicRef":"#x","$dynamicAnchor":"x","unevaluatedItems":false}`, `[[1]]`)
	f.Add(`{"$schema":"https://json-schema.org/draft/2019-09/schema","$recursiveAnchor":true,"properties":{"a":{"$recursiveRef":"#"}},"unevaluatedProperties":false}`, `{"a":{"b":1}}`)
	f.Add(`{"$schema":"http://json-schema.org/draft-07/schema#","$ref":"#/definitions/a","definitions":{"a":{"dependencies":{"b":["c"]}}}}`, `{"b":1}`)
	f.Add(`{"$id":"http://x/","$defs":{"y":{"$id":"y","$dynamicAnchor":"z","not":{"$dynamicRef":"#z"}}},"$ref":"y"}`, `1e3`)
	f.Fuzz(func(t *testing.T, schema, doc string) {
		s, err := Compile(json.RawMessage(schema))
		if err != nil || len(doc) > 1<<16 || strings.ContainsAny(doc, "eE") && len(doc) > 64 { // jsonguard.Check rejects large exponents
			return
		}
		began := time.Now()
		got, err := s.Validate(t.Context(), json.RawMessage(doc))
		require.NoError(t, err)
		require.LessOrEqual(t, len(got), MaxViolations)
		require.Less(t, time.Since(began), 10*time.Second)
	})
}
