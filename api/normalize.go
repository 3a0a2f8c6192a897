package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// JSON Schema and RFC 3339 accept more forms than encoding/json and package time: 1000.0 and 1e3
// are integers of JSON Schema, and t and z may be lower case. In the other direction, package time
// accepts an offset of 24 hours, which RFC 3339 forbids. normalize closes both gaps.

// momentForm is RFC 3339's date-time, in either case.
var momentForm = regexp.MustCompile(`^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// momentText converts a time to the form that package time reads. A text that looks like a time and
// is invalid by RFC 3339 is changed so that package time refuses it too. Any other text is returned
// as it is.
func momentText(text string) string {
	const shortest = len("2006-01-02T")
	if len(text) < shortest || text[4] != '-' || text[7] != '-' || text[10]|0x20 != 't' {
		return text
	}

	// The form decides first: package time is more lenient than RFC 3339 about offsets.
	upper := strings.ToUpper(text)
	if momentForm.MatchString(text) {
		if _, err := time.Parse(time.RFC3339Nano, upper); err == nil {
			return upper
		}
	}

	// Package time refuses the underscore, with an error about this member.
	return text[:10] + "_" + text[11:]
}

// timeMembers are the members that are times.
var timeMembers = map[string]bool{"dueDate": true, "since": true, "timestamp": true, "until": true}

// ofOthers are members with arbitrary JSON that must stay unchanged: the values of a patch, and the
// data of an integration.
var ofOthers = map[string]bool{"value": true, "data": true}

// normalize rewrites a guarded document for encoding/json: integers as plain digits, times in upper
// case. Content that belongs to the caller stays unchanged to the byte: see freeMembers and
// ofOthers.
func normalize(doc []byte) []byte {
	// Most documents need no change, and are returned without a copy.
	p := normalizer{doc: doc}
	p.value("")
	if p.out == nil {
		return doc
	}
	return append(p.out, doc[p.copied:]...)
}

// normalizer walks a document once, and copies it only from the first difference on.
type normalizer struct {
	doc    []byte
	i      int
	out    []byte
	copied int
}

func (p *normalizer) space() {
	for p.i < len(p.doc) && p.doc[p.i] <= ' ' {
		p.i++
	}
}

// instead replaces the bytes from begin to the current position.
func (p *normalizer) instead(begin int, text string) {
	p.out = append(append(p.out, p.doc[p.copied:begin]...), text...)
	p.copied = p.i
}

// value walks a value. name is the member's name, for the items of a list the list's.
func (p *normalizer) value(name string) {
	p.space()
	begin := p.i
	switch c := p.doc[p.i]; {
	// The content of the caller's members is stored and hashed as it was sent.
	case (c == '{' || c == '[') && (freeMembers[name] || ofOthers[name]):
		p.skip()
	case c == '{':
		p.each('}', func() { p.value(p.name()) })
	case c == '[':
		// The items of a list of times are times.
		p.each(']', func() { p.value(name) })
	case c == '"':
		p.text()
		if timeMembers[name] {
			if upper := momentText(string(p.doc[begin+1 : p.i-1])); upper != string(p.doc[begin+1:p.i-1]) {
				p.instead(begin, `"`+upper+`"`)
			}
		}
	case c == '-' || '0' <= c && c <= '9':
		for p.i < len(p.doc) && strings.IndexByte("0123456789+-.eE", p.doc[p.i]) >= 0 {
			p.i++
		}
		if number := string(p.doc[begin:p.i]); strings.ContainsAny(number, ".eE") && !ofOthers[name] {
			if digits, ok := wholeNumber(number); ok {
				p.instead(begin, digits)
			}
		}
	default: // true, false, null
		for p.i < len(p.doc) && 'a' <= p.doc[p.i] && p.doc[p.i] <= 'z' {
			p.i++
		}
	}
}

// each walks the members of an object or the items of a list.
func (p *normalizer) each(end byte, one func()) {
	p.i++
	for {
		p.space()
		switch p.doc[p.i] {
		case end:
			p.i++
			return
		case ',':
			p.i++
		default:
			one()
		}
	}
}

// name reads a member's name and the colon.
func (p *normalizer) name() string {
	begin := p.i
	p.text()
	raw := p.doc[begin+1 : p.i-1]
	p.space()
	p.i++ // the colon
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw)
	}

	var name string
	// Cannot fail: the document is guarded.
	_ = json.Unmarshal(p.doc[begin:begin+len(raw)+2], &name)
	return name
}

// text walks a string.
func (p *normalizer) text() {
	for p.i++; p.doc[p.i] != '"'; p.i++ {
		// An escaped quote does not end the string.
		if p.doc[p.i] == '\\' {
			p.i++
		}
	}
	p.i++
}

// skip walks an object or a list without looking into it.
func (p *normalizer) skip() {
	for depth := 0; ; {
		switch p.doc[p.i] {
		case '"':
			p.text()
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		p.i++
		if depth == 0 {
			return
		}
	}
}

// wholeNumber converts a JSON number to the digits of an integer. ok is false if the number is no
// integer, or too large for every field.
func wholeNumber(number string) (digits string, ok bool) {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(number), "e")
	power, err := strconv.Atoi("0" + exponent)
	if exponent != "" {
		power, err = strconv.Atoi(exponent)
	}

	if err != nil {
		return "", false
	}

	sign := ""
	if rest, negative := strings.CutPrefix(mantissa, "-"); negative {
		sign, mantissa = "-", rest
	}

	// Only the digits and the power of ten count: 1.50e1 and 15 are the same number.
	whole, fraction, _ := strings.Cut(mantissa, ".")
	all := strings.TrimLeft(whole+fraction, "0")
	power -= len(fraction)
	trimmed := strings.TrimRight(all, "0")
	power += len(all) - len(trimmed)

	// The most digits that always fit into an int64.
	const most = 18
	switch {
	case trimmed == "":
		return "0", true
	case power < 0 || len(trimmed)+power > most:
		return "", false
	}
	return sign + trimmed + strings.Repeat("0", power), true
}

// misplaced is a value that the schema accepts and encoding/json refuses, with its place below the
// body. huma converts the error to text, and newProblem recovers the place from it.
type misplaced struct{ path string }

const anotherType = "has a value of the wrong type"

// Error encodes the place, for newProblem.
func (e *misplaced) Error() string { return misplacedMark + e.path + misplacedMark + anotherType }

const misplacedMark = "\x00" // cannot occur in a member's name of a guarded body

// readJSON is json.Unmarshal for a guarded body. Its errors name the place.
func readJSON(data []byte, to any) error { return readMember("", data, to) }

// readMember is readJSON for a member of a body. path is the place of the member.
func readMember(path string, data []byte, to any) error {
	err := json.Unmarshal(normalize(data), to)
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &kind) && kind.Field != "":
		path += "." + kind.Field
	}
	return &misplaced{path}
}
