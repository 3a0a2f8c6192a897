package jobs

import (
	"encoding/json"
	"math/big"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestCanonicalHash(t *testing.T) {
	t.Parallel()

	same := []string{
		`{"b":[1,2.50],"a":"é"}`,
		` { "a" : "\u00e9", "b" : [ 1.0, 25e-1 ] } `,
	}
	first, err := CanonicalHash([]byte(same[0]))
	require.NoError(t, err)
	second, err := CanonicalHash([]byte(same[1]))
	require.NoError(t, err)
	require.Equal(t, first, second)

	other, err := CanonicalHash([]byte(`{"b":[2.50,1],"a":"é"}`))
	require.NoError(t, err)
	require.NotEqual(t, first, other)

	for _, scalar := range []string{`null`, `1`, `"a"`, `[]`, `{}`} {
		_, err := CanonicalHash([]byte(scalar))
		require.NoError(t, err, scalar)
	}

	_, err = CanonicalHash([]byte(`{"a":1,"a":2}`))
	var refusal *GuardError
	require.ErrorAs(t, err, &refusal)
}

// Numbers are compared as decimals, wherever they stand.
func TestCanonicalHashTellsNumbersApart(t *testing.T) {
	t.Parallel()
	in := func(number string) [32]byte {
		sum, err := CanonicalHash([]byte(`{"n": [` + number + `], "s": "1e2"}`))
		require.NoError(t, err, number)
		return sum
	}

	for _, same := range [][]string{
		{"1", "1.0", "10e-1", "0.1E1"}, {"100", "1e2", "1E+2"}, {"0", "-0", "0.000", "0e5"},
		{"9007199254740993", "9007199254740993.0", "9.007199254740993e15"},
		{"0.1", "0.10", "1e-1"}, {"1e300", "10e299"},
	} {
		for _, other := range same {
			require.Equal(t, in(same[0]), in(other), other)
		}
	}

	for _, pair := range [][2]string{
		{"9007199254740992", "9007199254740993"}, {"-9007199254740992", "-9007199254740993"},
		{"18446744073709551615", "18446744073709552000"}, {"0.1", "0.1000000000000000055511151231257827"},
		{"1", "-1"}, {"123456789012345678", `"\u0000123456789012345678e0"`},
	} {
		if a, err := CanonicalHash([]byte(`{"n": [` + pair[1] + `], "s": "1e2"}`)); err == nil {
			require.NotEqual(t, in(pair[0]), a, pair)
		}
	}
}

// Two numbers have one hash if and only if they are the same rational number.
func TestCanonicalHashOfAnyTwoNumbers(t *testing.T) {
	t.Parallel()
	numbers := rapid.StringMatching(`-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,8})?([eE][+-]?[0-9]{1,2})?`).Filter(func(number string) bool { return GuardJSON([]byte(number)) == nil })
	rapid.Check(t, func(t *rapid.T) {
		a, b := numbers.Draw(t, "a"), numbers.Draw(t, "b")
		if rapid.Bool().Draw(t, "near") { // the same but for one digit
			b = strings.Replace(a, "1", "2", 1)
		}

		one, err := CanonicalHash([]byte(a))
		require.NoError(t, err)
		two, err := CanonicalHash([]byte(b))
		require.NoError(t, err)

		x, _ := new(big.Rat).SetString(a)
		y, _ := new(big.Rat).SetString(b)
		require.Equal(t, x.Cmp(y) == 0, one == two, "%s and %s", a, b)
	})
}

// What is hashed is JSON still, and all of it but such numbers is as it was.
func TestExactNumbersLeavesTheRest(t *testing.T) {
	t.Parallel()
	doc := `{"12345678901234567890": "12345678901234567890 \\\" 12345678901234567890", "a": [12345678901234567891, 1.5, -98765432109876543211]}`
	out := exactNumbers([]byte(doc))
	require.True(t, json.Valid(out), "%s", out)
	require.Equal(t, `{"12345678901234567890": "12345678901234567890 \\\" 12345678901234567890", "a": ["\u000012345678901234567891e0", 1.5, "\u0000-98765432109876543211e0"]}`, string(out))
	require.Equal(t, sample, string(exactNumbers([]byte(sample))))
}
