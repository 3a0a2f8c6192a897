package cel

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/traits"
)

const (
	maxOutput = 1 << 20 // bytes
	maxDepth  = 64
)

// Decode parses JSON into the values that CEL evaluates. Empty input is an empty object.
func Decode(raw json.RawMessage) (any, error) {
	// A task without input has no document at all.
	if len(bytes.TrimSpace(raw)) == 0 {
		return map[string]any{}, nil
	}

	d := json.NewDecoder(bytes.NewReader(raw))

	// float64 would lose the digits of large whole numbers.
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, errors.New("is not valid JSON")
	}

	return numbers(v), nil
}

// numbers converts all numbers below v: whole numbers to int64, whole numbers beyond
// int64 to uint64, others to float64. 1.0 is whole, because 1.0 and 1 are the same
// number in JSON.
func numbers(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := strconv.ParseInt(string(v), 10, 64); err == nil {
			return n
		}

		if n, err := strconv.ParseUint(string(v), 10, 64); err == nil {
			return n
		}

		f, _ := strconv.ParseFloat(string(v), 64)

		// 1.0 is the int 1. From 2^53 on, a float64 does not hold every whole number, so the
		// digits are no longer known to be exact.
		if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
			return int64(f)
		}

		return f
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = numbers(v[name])
		}
	}

	return v
}

// ErrTooLarge reports output larger than 1 MiB.
var ErrTooLarge = errors.New("output larger than 1 MiB")

// Encoder writes values as JSON. Encoding stops at 1 MiB, because a list may refer to one
// large value a thousand times.
type Encoder struct{ bytes.Buffer }

// Value writes one value. depth is the number of objects and lists around the value.
func (to *Encoder) Value(v Value, depth int) error {
	if depth > maxDepth {
		return errors.New("output deeper than 64")
	}
	if to.Len() > maxOutput {
		return ErrTooLarge
	}

	switch v := v.(type) {
	case types.Null:
		to.WriteString("null")
	case types.Bool:
		to.Write(strconv.AppendBool(to.AvailableBuffer(), bool(v)))
	case types.Int:
		to.Write(strconv.AppendInt(to.AvailableBuffer(), int64(v), 10))
	case types.Uint:
		to.Write(strconv.AppendUint(to.AvailableBuffer(), uint64(v), 10))
	case types.Double:
		return to.double(float64(v))
	case types.String:
		to.Text(string(v))
	case types.Bytes:
		to.Text(base64.StdEncoding.EncodeToString(v))
	case types.Timestamp:
		to.Text(v.UTC().Format(time.RFC3339Nano))
	case types.Duration:
		to.Text(v.String())
	case traits.Mapper:
		return to.object(v, depth)
	case traits.Lister:
		return to.array(v, depth)
	default:
		return fmt.Errorf("a %s has no JSON form", v.Type().TypeName())
	}

	return nil
}

// double writes whole numbers without a decimal point.
func (to *Encoder) double(f float64) error {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return errors.New("the number is out of range")
	}

	format := byte('f')

	// The same thresholds as encoding/json and JavaScript.
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}

	// -0 is written as 0.
	if f == 0 {
		f = 0
	}

	to.Write(strconv.AppendFloat(to.AvailableBuffer(), f, format, -1, 64))
	return nil
}

// Text writes a string.
func (to *Encoder) Text(s string) {
	b, _ := json.Marshal(s) // never fails for a string
	to.Write(b)
}

func (to *Encoder) array(list traits.Lister, depth int) error {
	to.WriteByte('[')

	for it, first := list.Iterator(), true; it.HasNext() == types.True; first = false {
		if !first {
			to.WriteByte(',')
		}

		if err := to.Value(it.Next(), depth+1); err != nil {
			return err
		}
	}

	to.WriteByte(']')
	return nil
}

// object writes the members in the order of their names: a CEL map has no order, and the
// same output must give the same bytes.
func (to *Encoder) object(m traits.Mapper, depth int) error {
	type member struct {
		name string
		key  Value
	}

	var members []member
	for it := m.Iterator(); it.HasNext() == types.True; {
		key := it.Next()
		name, ok := key.ConvertToType(types.StringType).(types.String)
		if !ok {
			return errors.New("a key of a map is not a name")
		}

		members = append(members, member{string(name), key})
	}

	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	to.WriteByte('{')

	for i, member := range members {
		if i > 0 {
			to.WriteByte(',')
		}

		to.Text(member.name)
		to.WriteByte(':')
		if err := to.Value(m.Get(member.key), depth+1); err != nil {
			return err
		}
	}

	to.WriteByte('}')
	return nil
}
