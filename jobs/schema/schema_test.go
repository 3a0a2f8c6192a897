package schema

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

const orderSchema = `{"type":"object","required":["orderId","items","taxRate"],"properties":{
	"orderId":{"type":"string"},"taxRate":{"type":"number","minimum":0},
	"items":{"type":"array","items":{"type":"object","required":["id","quantity","price"],"properties":{
		"id":{"type":"string"},"quantity":{"type":"number"},"price":{"type":"number"}}}}}}`

// broken is what of a document breaks the schema.
func broken(t *testing.T, s *Schema, doc string) []Violation {
	t.Helper()
	got, err := s.Validate(t.Context(), json.RawMessage(doc))
	require.NoError(t, err)
	return got
}

func TestSchemaValidate(t *testing.T) {
	t.Parallel()

	for name, tt := range map[string]struct {
		schema, doc string
		want        []Violation
	}{
		"Valid":   {orderSchema, `{"orderId":"O","items":[{"id":"a","quantity":1,"price":2.5}],"taxRate":0}`, nil},
		"AnyType": {`true`, `[1]`, nil},
		"Leaves": {orderSchema, `{"orderId":7,"items":[{"id":"a","quantity":"s3cret"},true],"taxRate":-1}`, []Violation{
			{"/items/0/price", "is required"},
			{"/items/0/quantity", "must be number, is string"},
			{"/items/1", "must be object, is boolean"},
			{"/orderId", "must be string, is number"},
			{"/taxRate", "must be at least 0"},
		}},
		"WholeDocument":  {orderSchema, `[]`, []Violation{{"", "must be object, is array"}}},
		"NotJSON":        {orderSchema, `{`, []Violation{{"", "is not valid JSON"}}},
		"EscapedPointer": {`{"properties":{"a/b~c":{"type":"null"}}}`, `{"a/b~c":1}`, []Violation{{"/a~1b~0c", "must be null, is number"}}},
		"DateTime":       {`{"format":"date-time"}`, `"s3cret"`, []Violation{{"", "must have the format date-time"}}},
		"Pattern":        {`{"pattern":"^[a-z]+$"}`, `"S3cret"`, []Violation{{"", "must match the pattern ^[a-z]+$"}}},
		"Enum":           {`{"enum":["a",1]}`, `"s3cret"`, []Violation{{"", `must be one of ["a",1]`}}},
		"Const":          {`{"const":{"a":1}}`, `"s3cret"`, []Violation{{"", `must be {"a":1}`}}},
		"Additional": {`{"properties":{"a":true},"additionalProperties":false}`, `{"c":"s3cret","a":2,"b":3}`, []Violation{
			{"/b", "is not allowed"}, {"/c", "is not allowed"},
		}},
		"Unevaluated":   {`{"unevaluatedProperties":false}`, `{"b":3}`, []Violation{{"/b", "is not allowed"}}},
		"PropertyNames": {`{"propertyNames":{"maxLength":1}}`, `{"ab":3}`, []Violation{{"/ab", "has a name that is not allowed"}}},
		"AnyOf": {`{"anyOf":[{"type":"string"},{"type":"object","required":["a"]}]}`, `{}`, []Violation{
			{"", "must be string, is object"}, {"/a", "is required"},
		}},
		"OneOfSeveral": {`{"oneOf":[{"type":"number"},{"minimum":0}]}`, `1`, []Violation{{"", "must match exactly one of the alternatives, matches several"}}},
		"Not":          {`{"not":{"type":"string"}}`, `"s3cret"`, []Violation{{"", "must not match the schema of not"}}},
		"ExactNumbers": {`{"maximum":9007199254740992}`, `9007199254740993`, []Violation{{"", "must be at most 9007199254740992"}}},
		"MultipleOf":   {`{"multipleOf":0.01}`, `10.99`, nil},
		"Unique":       {`{"uniqueItems":true}`, `["s3cret",1,"s3cret"]`, []Violation{{"", "must have no equal items, 0 and 2 are"}}},
		"RefCycle":     {`{"$ref":"#"}`, `1`, []Violation{{"", "does not match the schema"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Compile(json.RawMessage(tt.schema))
			require.NoError(t, err)
			for range 3 { // the library walks maps: the order must not show it
				got := broken(t, s, tt.doc)
				require.Equal(t, tt.want, got)
				require.NotContains(t, fmt.Sprint(got), "s3cret")
			}
		})
	}

	t.Run("AtMostSixteen", func(t *testing.T) {
		t.Parallel()
		s, err := Compile(json.RawMessage(`{"items":{"type":"string"}}`))
		require.NoError(t, err)
		require.Len(t, broken(t, s, `[`+strings.Repeat("1,", 5000)+`1]`), MaxViolations)
	})

	t.Run("Concurrent", func(t *testing.T) {
		t.Parallel()
		s, err := Compile(json.RawMessage(orderSchema))
		require.NoError(t, err)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 50 {
					if n := len(broken(t, s, `{"orderId":1}`)); n != 3 {
						t.Errorf("%d violations", n)
					}
				}
			})
		}
		wg.Wait()
	})
}

// A schema of a hundred bytes that asks for 2^60 evaluations.
func TestSchemaBomb(t *testing.T) {
	t.Parallel()

	for name, schema := range map[string]string{
		"All":    `{"properties":{"a":{"allOf":[{"$ref":"#"},{"$ref":"#"}]}}}`,
		"Any":    `{"type":"object","properties":{"a":{"anyOf":[{"$ref":"#"},{"$ref":"#"}]}}}`,
		"Hidden": `{"not":{"$ref":"#/$defs/n"},"$defs":{"n":{"type":"object","properties":{"a":{"anyOf":[{"$ref":"#/$defs/n"},{"$ref":"#/$defs/n"}]}}}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Compile(json.RawMessage(schema))
			require.NoError(t, err)
			doc := strings.Repeat(`{"a":`, 60) + `1` + strings.Repeat(`}`, 60)
			require.Equal(t, []Violation{{"", "takes too much work to validate against its schema"}}, broken(t, s, doc))
			broken(t, s, `{"a":{}}`) // and goes on working
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	t.Parallel()

	var visits atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		visits.Add(1)
		fmt.Fprint(w, `true`)
	}))
	t.Cleanup(server.Close)
	file := filepath.Join(t.TempDir(), "schema.json")
	require.NoError(t, os.WriteFile(file, []byte(`true`), 0o600))

	for name, schema := range map[string]string{
		"File":          `{"$ref":"file://` + file + `"}`,
		"FileInside":    `{"properties":{"a":{"allOf":[{"$ref":"file://` + file + `"}]}}}`,
		"FileNoScheme":  `{"$ref":"` + file + `"}`,
		"FileByID":      `{"$id":"file://` + filepath.Dir(file) + `/","$ref":"schema.json"}`,
		"HTTP":          `{"$ref":"` + server.URL + `/schema"}`,
		"HTTPByID":      `{"$id":"` + server.URL + `/","properties":{"a":{"$ref":"other"}}}`,
		"Metaschema":    `{"$schema":"` + server.URL + `/schema"}`,
		"DynamicRef":    `{"$dynamicRef":"` + server.URL + `/schema#x"}`,
		"NotASchema":    `{"type":"strange"}`,
		"NotAnObject":   `7`,
		"BadPattern":    `{"pattern":"("}`,
		"NotJSON":       `{"type":`,
		"SameNameTwice": `{"type":"string","type":"number"}`,
		"HugeExponent":  `{"const":1e999}`,
		"TooLarge":      `{"description":"` + strings.Repeat("x", MaxSize) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := Compile(json.RawMessage(schema))
			require.Error(t, err)
			require.Nil(t, s)
		})
	}
	t.Cleanup(func() { require.Zero(t, visits.Load()) })

	t.Run("KnowsTheMetaschemas", func(t *testing.T) {
		t.Parallel()
		s, err := Compile(json.RawMessage(`{"$schema":"http://json-schema.org/draft-07/schema#","properties":{"s":{"$ref":"https://json-schema.org/draft/2020-12/schema"}}}`))
		require.NoError(t, err)
		require.NotEmpty(t, broken(t, s, `{"s":{"type":5}}`))
		require.Empty(t, broken(t, s, `{"s":{"type":"string"}}`))
	})
}

func TestCompileWithoutSchema(t *testing.T) {
	t.Parallel()
	for _, none := range []string{``, ` `, `null`} {
		s, err := Compile(json.RawMessage(none))
		require.NoError(t, err)
		require.Nil(t, s)
		require.Empty(t, broken(t, s, `{"any":1}`))
	}
}

func BenchmarkSchemaValidate(b *testing.B) {
	s, err := Compile(json.RawMessage(orderSchema))
	require.NoError(b, err)
	doc := json.RawMessage(`{"orderId":"ORD-123","items":[{"id":"ITEM-1","quantity":2,"price":10.99},{"id":"ITEM-2","quantity":1,"price":24.99}],"taxRate":0.08}`)
	b.ReportAllocs()
	for b.Loop() {
		_, _ = s.Validate(b.Context(), doc)
	}
}
