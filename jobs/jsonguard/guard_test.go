package jsonguard

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheck(t *testing.T) {
	t.Parallel()

	many := func(n int) string {
		var s strings.Builder
		for i := range n {
			fmt.Fprintf(&s, `"m%d":%d,`, i, i)
		}
		return s.String()
	}

	accepted := map[string]string{
		"Object":              `{"a":[1,2.5,-3e2,true,false,null,"x"],"b":{}}`,
		"Scalar":              `0`,
		"WhiteSpace":          " \n\t\r{ \"a\" : [ ] } ",
		"Depth64":             strings.Repeat("[", 64) + strings.Repeat("]", 64),
		"LargestFloat":        `1.7976931348623157e308`,
		"Small":               `-2.5e-308`,
		"Zero":                `-0.000e300`,
		"Past2To63":           `9223372036854775808`,
		"SurrogatePair":       `"\uD83D\uDE00"`,
		"Escapes":             `"\"\\\/\b\f\n\r\t\u00e9"`,
		"EscapedBackslashU":   `"\\u0000"`,
		"UTF8":                `"héllo 世界 😀"`,
		"BOMInside":           "\"\uFEFF\"",
		"SameNameElsewhere":   `{"a":{"a":1},"b":{"a":1},"c":[{"a":1},{"a":1}]}`,
		"ManyMembers":         `{` + many(5000) + `"last":0}`,
		"Scientific":          `[` + strings.Repeat("6.02214076e23,", 20_000) + `1.6e-19]`,
		"DeepObjectsMany":     strings.Repeat(`{`+many(5)+`"x":`, 63) + `{}` + strings.Repeat(`}`, 63),
		"SixtyFourCharacters": strings.Repeat("1", 64),
	}
	for name, doc := range accepted {
		t.Run("Accepts"+name, func(t *testing.T) {
			t.Parallel()
			require.True(t, json.Valid([]byte(doc)))
			require.NoError(t, Check([]byte(doc)))
		})
	}

	refused := map[string]struct {
		doc, path, reason string
	}{
		"Empty":             {``, "", "no value"},
		"Blank":             {" \n", "", "no value"},
		"NotJSON":           {`hello`, "", "not a value"},
		"NaN":               {`{"a":NaN}`, "/a", "not a value"},
		"Infinity":          {`[-Infinity]`, "/0", "not a value"},
		"TwoValues":         {`{} {}`, "", "more than one value"},
		"Trailing":          {`1,`, "", "more than one value"},
		"BOM":               {"\xEF\xBB\xBF{}", "", "byte order mark"},
		"InvalidUTF8":       {"{\"a\":\"\xff\"}", "/a", "invalid UTF-8"},
		"InvalidUTF8Name":   {"{\"\xc3\":1}", "", "invalid UTF-8"},
		"EncodedSurrogate":  {"\"\xed\xa0\x80\"", "", "invalid UTF-8"},
		"Overlong":          {"\"\xc0\x80\"", "", "invalid UTF-8"},
		"NULEscaped":        {`{"a":["\u0000"]}`, "/a/0", "NUL"},
		"NULEscapedName":    {`{"\u0000":1}`, "", "NUL"},
		"NULRaw":            {"\"\x00\"", "", "NUL"},
		"NULBetween":        {"{\x00}", "", "NUL"},
		"Control":           {"\"\x1b[31m\"", "", "control character in a string"},
		"LoneHigh":          {`"\ud800"`, "", "lone surrogate"},
		"LoneHighThenText":  {`"\ud800abcdef"`, "", "lone surrogate"},
		"TwoHighs":          {`"\ud800\ud800"`, "", "lone surrogate"},
		"LoneLow":           {`"\uDFFF"`, "", "lone surrogate"},
		"BadEscape":         {`"\x41"`, "", "invalid escape"},
		"ShortEscape":       {`"\u00"`, "", "invalid escape"},
		"Depth65":           {strings.Repeat("[", 65) + strings.Repeat("]", 65), strings.Repeat("/0", 64), "deeper than 64"},
		"Depth9000":         {strings.Repeat("[", 9000), strings.Repeat("/0", 64), "deeper than 64"},
		"Depth9000Objects":  {strings.Repeat(`{"a":`, 9000), strings.Repeat("/a", 64), "deeper than 64"},
		"NumberBomb":        {`[` + strings.Repeat(`1e131071,`, 1000) + `1]`, "/0", "number out of range"},
		"NumberBombSmall":   {`1e-131071`, "", "number out of range"},
		"ZeroBomb":          {`0e999999`, "", "number out of range"},
		"ExponentOverflow":  {`1e99999999999999999999999999`, "", "number out of range"},
		"Effective":         {`123e307`, "", "number out of range"},
		"EffectiveSmall":    {`0.001e-306`, "", "number out of range"},
		"JustOverFloat":     {`1.8e308`, "", "number out of range"},
		"LongNumber":        {`{"n":` + strings.Repeat("9", 65) + `}`, "/n", "number longer than 64 characters"},
		"LongFraction":      {`0.` + strings.Repeat("3", 1000), "", "number longer than 64 characters"},
		"PointAtTheEdge":    {strings.Repeat("1", 64) + `.5`, "", "number longer than 64 characters"},
		"ManyExponents":     {`[` + strings.Repeat("1e300,", 1000) + `1]`, "/378", "too many large exponents"},
		"LeadingZero":       {`01`, "", "number starts with 0"},
		"NoFraction":        {`1.`, "", "number without digits after its point"},
		"NoExponent":        {`1e+`, "", "number without digits in its exponent"},
		"Minus":             {`-`, "", "not a value"},
		"Plus":              {`+1`, "", "not a value"},
		"Duplicate":         {`{"a":1,"b":2,"a":3}`, "/a", "repeated member name"},
		"DuplicateEscaped":  {`{"a":1,"\u0061":2}`, `/\u0061`, "repeated member name"},
		"DuplicateEmoji":    {`{"😀":1,"\ud83d\ude00":2}`, `/\ud83d\ude00`, "repeated member name"},
		"DuplicateInMany":   {`{"x":{` + many(5000) + `"m7":0}}`, "/x/m7", "repeated member name"},
		"DuplicateAtTheRim": {`{` + many(linear) + fmt.Sprintf(`"m%d":0}`, linear-1), fmt.Sprintf("/m%d", linear-1), "repeated member name"},
		"Unclosed":          {`{"a":1`, "", "unexpected end"},
		"UnclosedString":    {`["abc`, "/0", "unexpected end"},
		"UnclosedName":      {`{"abc`, "", "unexpected end"},
		"TrailingComma":     {`[1,]`, "/1", "not a value"},
		"TrailingComma2":    {`{"a":1,}`, "", "expected a member name"},
		"NoColon":           {`{"a" 1}`, "", "expected :"},
		"Comment":           {`{/**/}`, "", "expected a member name"},
		"Slash":             {`{"a/b~c":nul}`, "/a~1b~0c", "not a value"},
	}
	for name, tt := range refused {
		t.Run("Refuses"+name, func(t *testing.T) {
			t.Parallel()
			err := Check([]byte(tt.doc))
			var refusal *Error
			require.ErrorAs(t, err, &refusal)
			require.Equal(t, tt.reason, refusal.Reason)
			require.Equal(t, tt.path, refusal.Path)
			require.LessOrEqual(t, refusal.Offset, len(tt.doc))
		})
	}

	t.Run("NeverEchoesAValue", func(t *testing.T) {
		t.Parallel()
		err := Check([]byte(`{"token":"s3cr3t` + "\x01" + `"}`))
		require.ErrorContains(t, err, "/token")
		require.NotContains(t, err.Error(), "s3cr3t")
		err = Check([]byte(`{"` + strings.Repeat("é", 500) + `":tru}`))
		require.Less(t, len(err.Error()), 200)
	})
}

// Not parallel: allocations are counted for the whole program.
func TestCheckAllocatesNothing(t *testing.T) {
	doc := []byte(sample)
	require.Zero(t, testing.AllocsPerRun(100, func() { _ = Check(doc) }))
}

const sample = `{"taskDefinitionId":"calculate-order-total","workflowId":"order-workflow-123","priority":"MEDIUM",
"correlationId":"6f1f0d5e-0d8e-4d0e-9a77-0a6c9b6f1a01","input":{"orderId":"ORD-123","items":[
{"id":"ITEM-1","quantity":2,"price":10.99},{"id":"ITEM-2","quantity":1,"price":24.99}],"taxRate":0.08}}`

func BenchmarkCheck(b *testing.B) {
	doc := []byte(sample)
	b.Run("Check", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		b.ReportAllocs()
		for b.Loop() {
			_ = Check(doc)
		}
	})
	b.Run("Valid", func(b *testing.B) {
		b.SetBytes(int64(len(doc)))
		b.ReportAllocs()
		for b.Loop() {
			_ = json.Valid(doc)
		}
	})
}
