package canonical

import (
	"encoding/json"
	"math/big"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

func TestHash(t *testing.T) {
	t.Parallel()

	same := []string{
		`{"b":[1,2.50],"a":"é"}`,
		` { "a" : "\u00e9", "b" : [ 1.0, 25e-1 ] } `,
	}
	first, err := Hash([]byte(same[0]))
	require.NoError(t, err)
	second, err := Hash([]byte(same[1]))
	require.NoError(t, err)
	require.Equal(t, first, second)

	other, err := Hash([]byte(`{"b":[2.50,1],"a":"é"}`))
	require.NoError(t, err)
	require.NotEqual(t, first, other)

	for _, scalar := range []string{`null`, `1`, `"a"`, `[]`, `{}`} {
		_, err := Hash([]byte(scalar))
		require.NoError(t, err, scalar)
	}

	_, err = Hash([]byte(`{"a":1,"a":2}`))
	var refusal *jsonguard.Error
	require.ErrorAs(t, err, &refusal)
}

// Numbers are compared as decimals, at any place of a document.
func TestHashTellsNumbersApart(t *testing.T) {
	t.Parallel()
	in := func(number string) [32]byte {
		sum, err := Hash([]byte(`{"n": [` + number + `], "s": "1e2"}`))
		require.NoError(t, err, number)
		return sum
	}

	for _, same := range [][]string{
		{"1", "1.0", "10e-1", "0.1E1"},
		{"100", "1e2", "1E+2"},
		{"0", "-0", "0.000", "0e5"},
		{"9007199254740993", "9007199254740993.0", "9.007199254740993e15"},
		{"0.1", "0.10", "1e-1"},
		{"1e300", "10e299"},
	} {
		for _, other := range same {
			require.Equal(t, in(same[0]), in(other), other)
		}
	}

	for _, pair := range [][2]string{
		{"9007199254740992", "9007199254740993"},
		{"-9007199254740992", "-9007199254740993"},
		{"18446744073709551615", "18446744073709552000"},
		{"0.1", "0.1000000000000000055511151231257827"},
		{"1", "-1"},
		{"123456789012345678", `"\u0000123456789012345678e0"`},
	} {
		if a, err := Hash([]byte(`{"n": [` + pair[1] + `], "s": "1e2"}`)); err == nil {
			require.NotEqual(t, in(pair[0]), a, pair)
		}
	}
}

// Two numbers have one hash if and only if they are the same rational number.
func TestHashOfAnyTwoNumbers(t *testing.T) {
	t.Parallel()
	numbers := rapid.StringMatching(`-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,8})?([eE][+-]?[0-9]{1,2})?`).Filter(func(number string) bool { return jsonguard.Check([]byte(number)) == nil })
	rapid.Check(t, func(t *rapid.T) {
		a, b := numbers.Draw(t, "a"), numbers.Draw(t, "b")
		if rapid.Bool().Draw(t, "near") { // the same but for one digit
			b = strings.Replace(a, "1", "2", 1)
		}

		one, err := Hash([]byte(a))
		require.NoError(t, err)
		two, err := Hash([]byte(b))
		require.NoError(t, err)

		x, _ := new(big.Rat).SetString(a)
		y, _ := new(big.Rat).SetString(b)
		require.Equal(t, x.Cmp(y) == 0, one == two, "%s and %s", a, b)
	})
}

// exactNumbers returns JSON, and changes nothing but the inexact numbers.
func TestExactNumbersLeavesTheRest(t *testing.T) {
	t.Parallel()
	doc := `{"12345678901234567890": "12345678901234567890 \\\" 12345678901234567890", "a": [12345678901234567891, 1.5, -98765432109876543211]}`
	out := exactNumbers([]byte(doc))
	require.True(t, json.Valid(out), "%s", out)
	require.Equal(t, `{"12345678901234567890": "12345678901234567890 \\\" 12345678901234567890", "a": ["\u000012345678901234567891e0", 1.5, "\u0000-98765432109876543211e0"]}`, string(out))
	require.Equal(t, sample, string(exactNumbers([]byte(sample))))
}

const sample = `{"taskDefinitionId":"calculate-order-total","workflowId":"order-workflow-123","priority":"MEDIUM",
"correlationId":"6f1f0d5e-0d8e-4d0e-9a77-0a6c9b6f1a01","input":{"orderId":"ORD-123","items":[
{"id":"ITEM-1","quantity":2,"price":10.99},{"id":"ITEM-2","quantity":1,"price":24.99}],"taxRate":0.08}}`
