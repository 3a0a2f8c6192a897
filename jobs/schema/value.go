package schema

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// appendKey encodes a value such that two values have equal keys exactly if JSON Schema
// calls the values equal: 1, 1.0 and 10e-1 are one number, and members have no order.
// ok is false, and the key incomplete, if the key is longer than longest.
func appendKey(to []byte, x any, longest int) ([]byte, bool) {
	switch x := x.(type) {
	case nil:
		to = append(to, 'n')
	case bool:
		to = append(to, map[bool]byte{true: 't', false: 'f'}[x])
	case json.Number:
		to = appendNumber(to, string(x))
	case string:
		if len(x) > longest {
			return to, false
		}
		to = appendText(to, x)
	case []any:
		if len(x) > longest {
			return to, false
		}

		to = append(to, '[')
		for _, item := range x {
			var ok bool
			if to, ok = appendKey(to, item, longest); !ok {
				return to, false
			}
		}

		to = append(to, ']')
	case map[string]any:
		if len(x) > longest {
			return to, false
		}

		to = append(to, '{')
		for _, name := range slices.Sorted(maps.Keys(x)) {
			var ok bool
			if to, ok = appendKey(appendText(to, name), x[name], longest); !ok {
				return to, false
			}
		}

		to = append(to, '}')
	}

	return to, len(to) <= longest
}

func appendText(to []byte, s string) []byte {
	return append(binary.AppendUvarint(append(to, 's'), uint64(len(s))), s...)
}

// appendNumber encodes a JSON number as its digits, without zeros at either end, and the
// power of ten of the last digit.
func appendNumber(to []byte, text string) []byte {
	d := decimalOf(text)
	if d.digits == "" {
		return append(to, '0', ';')
	}
	if d.negative {
		to = append(to, '-')
	}

	to = append(append(to, '#'), d.digits...)
	return append(strconv.AppendInt(append(to, 'e'), int64(d.exponent), 10), ';')
}

// decimal is a JSON number: digits × 10^exponent (not 0.digits). Zero has no digits.
type decimal struct {
	negative bool
	digits   string
	exponent int
}

func decimalOf(text string) (d decimal) {
	if text, d.negative = strings.CutPrefix(text, "-"); text == "" {
		return d
	}

	if at := strings.IndexAny(text, "eE"); at >= 0 {
		d.exponent, _ = strconv.Atoi(strings.TrimPrefix(text[at+1:], "+"))
		text = text[:at]
	}

	// Digits after the point lower the exponent of the last digit.
	if whole, fraction, ok := strings.Cut(text, "."); ok {
		fraction = strings.TrimRight(fraction, "0")
		d.exponent -= len(fraction)
		text = whole + fraction
	}

	text = strings.TrimLeft(text, "0")
	d.digits = strings.TrimRight(text, "0")
	d.exponent += len(text) - len(d.digits)
	if d.digits == "" {
		d.exponent, d.negative = 0, false
	}

	return d
}

// whole reports whether the number has no fraction.
func (d decimal) whole() bool { return d.digits == "" || d.exponent >= 0 }

// smallInt parses a short whole number, the most frequent kind.
func smallInt(text string) (int64, bool) {
	if len(text) > 18 {
		return 0, false
	}

	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

// ratOf returns the exact number. jsonguard.Check bounds the exponent by 308.
func ratOf(text string) *big.Rat {
	r, ok := new(big.Rat).SetString(text)
	if !ok {
		return new(big.Rat)
	}

	return r
}

// bound is a number of the schema that numbers of documents are compared with.
type bound struct {
	rat     *big.Rat
	small   int64
	isSmall bool // small holds the number
	bits    int  // size of rat
}

func boundOf(r *big.Rat) *bound {
	if r == nil {
		return nil
	}

	b := &bound{rat: r, bits: r.Num().BitLen() + r.Denom().BitLen()}

	// Most bounds are small; comparing them as int64 avoids allocating a big.Rat.
	if r.IsInt() && r.Num().IsInt64() {
		b.small, b.isSmall = r.Num().Int64(), true
	}

	return b
}

// String returns the bound as an integer or as a fraction.
func (b *bound) String() string { return b.rat.RatString() }

// compare returns -1, 0 or 1 if the number is below, at or above the bound.
func (b *bound) compare(text string) int {
	if n, ok := smallInt(text); ok && b.isSmall {
		switch {
		case n < b.small:
			return -1
		case n > b.small:
			return 1
		}

		return 0
	}

	return ratOf(text).Cmp(b.rat)
}

// divides reports whether the number is a multiple of the bound.
func (b *bound) divides(text string) bool {
	if n, ok := smallInt(text); ok && b.isSmall && b.small != 0 {
		return n%b.small == 0
	}

	// The library rejects multipleOf 0; dividing would panic.
	if b.rat.Sign() == 0 {
		return false
	}

	return new(big.Rat).Quo(ratOf(text), b.rat).IsInt()
}

// unlimited is longer than any key.
const unlimited = 1 << 30

// set holds the values of enum or const, by key.
type set struct {
	keys    map[string]bool
	longest int   // of the keys
	kinds   kinds // of the values
	values  []any
}

func setOf(values []any) *set {
	s := &set{keys: make(map[string]bool, len(values)), values: values}
	for _, value := range values {
		key, _ := appendKey(nil, value, unlimited)
		s.keys[string(key)] = true
		s.longest = max(s.longest, len(key))
		s.kinds |= only(kindOf(value))
	}

	return s
}

// kind is one of the six types of JSON.
type kind uint8

const (
	null kind = iota
	boolean
	number
	text
	array
	object
)

var kindNames = [...]string{"null", "boolean", "number", "string", "array", "object"}

func (k kind) String() string { return kindNames[k] }

// kinds is a set of kinds.
type kinds uint8

func only(k kind) kinds { return 1 << k }

func (ks kinds) has(k kind) bool { return ks&only(k) != 0 }

func kindOf(x any) kind {
	switch x.(type) {
	case bool:
		return boolean
	case json.Number:
		return number
	case string:
		return text
	case []any:
		return array
	case map[string]any:
		return object
	}

	return null
}
