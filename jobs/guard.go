package jobs

import (
	"fmt"
	"hash/maphash"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The limits of one JSON document. Its size is the door's business: each door
// has its own.
const (
	maxDepth        = 64      // arrays and objects inside each other
	maxNumberLength = 64      // characters of one number
	maxExponent     = 308     // decimal magnitude, written or effective; a float64 ends there
	freeExpansion   = 1 << 16 // digits that all exponents of a document may add up to, beside
	perByte         = 8       // this many for each byte of the document
)

// GuardError says what GuardJSON refused and where. It holds no value of the
// document, so it may be logged and sent back; Path holds member names.
type GuardError struct {
	Path   string // JSON pointer to the place; empty for the document itself
	Offset int    // of the offending byte
	Reason string
}

func (e *GuardError) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("invalid JSON at byte %d: %s", e.Offset, e.Reason)
	}
	return fmt.Sprintf("invalid JSON at byte %d (%s): %s", e.Offset, e.Path, e.Reason)
}

// GuardJSON refuses, with a *GuardError, every document that PostgreSQL's jsonb,
// encoding/json or a float64 could not hold, or could hold only at a price: more
// or less than one value, invalid UTF-8, a byte order mark, NUL, lone surrogates,
// repeated member names, depth over 64, and numbers that grow. It is the only
// guard: whatever comes in (a request, a message, a neighbour's answer) passes
// here before anything else looks at it.
//
// The number rule has a story: jsonb writes 1e131071 out in full, so that a 9 KB
// array of it is read back as 131 MB.
func GuardJSON(b []byte) error {
	g := guard{b: b, budget: freeExpansion + perByte*len(b)}
	if len(b) >= 3 && b[0] == 0xEF && b[1] == 0xBB && b[2] == 0xBF {
		return g.refuse("byte order mark")
	}
	g.space()
	if g.i == len(b) {
		return g.refuse("no value")
	}
	if err := g.value(0); err != nil {
		return err
	}
	g.space()
	if g.i < len(b) {
		return g.refuse("more than one value")
	}
	return nil
}

// nameSeed makes the hashes of member names unguessable, so that nobody can build
// an object whose names collide. Two names that hash alike count as one: with 64
// seeded bits that refuses no honest document in practice.
var nameSeed = maphash.MakeSeed()

// guard walks a document once. It lives on the caller's stack and allocates only
// for an object of more members than names has room for.
type guard struct {
	b      []byte
	i      int
	budget int         // digits that exponents may still add
	names  [128]uint64 // hashes of the member names of every open object
	n      int         // of names in use
}

// linear is the size up to which an object's names are compared one by one.
const linear = 24

func (g *guard) refuse(reason string) *GuardError {
	return &GuardError{Offset: g.i, Reason: reason}
}

// within puts the name of the member or element before the error's path: the
// path is built on the way out, so that only a refusal pays for it.
func within(err *GuardError, name string) *GuardError {
	const longest = 64
	if len(name) > longest {
		name = strings.ToValidUTF8(name[:longest], "") + "…"
	}
	name = strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
	err.Path = "/" + name + err.Path
	return err
}

func (g *guard) space() {
	for g.i < len(g.b) {
		switch g.b[g.i] {
		case ' ', '\n', '\r', '\t':
			g.i++
		default:
			return
		}
	}
}

// peek is the next byte after white space, or 0 at the end; NUL is no JSON, so
// the two may look alike.
func (g *guard) peek() byte {
	g.space()
	if g.i < len(g.b) {
		return g.b[g.i]
	}
	return 0
}

// unexpected tells the three common causes apart.
func (g *guard) unexpected(reason string) *GuardError {
	switch {
	case g.i >= len(g.b):
		return g.refuse("unexpected end")
	case g.b[g.i] == 0:
		return g.refuse("NUL")
	default:
		return g.refuse(reason)
	}
}

// value is at the first byte of a value.
func (g *guard) value(depth int) *GuardError {
	if g.i >= len(g.b) {
		return g.refuse("unexpected end")
	}
	switch c := g.b[g.i]; {
	case c == '"':
		_, err := g.str()
		return err
	case c == '{' || c == '[':
		if depth == maxDepth {
			return g.refuse("deeper than 64")
		}
		if c == '{' {
			return g.object(depth + 1)
		}
		return g.array(depth + 1)
	case c == '-' || '0' <= c && c <= '9':
		return g.number()
	case c == 't':
		return g.literal("true")
	case c == 'f':
		return g.literal("false")
	case c == 'n':
		return g.literal("null")
	default:
		return g.unexpected("not a value")
	}
}

func (g *guard) literal(word string) *GuardError {
	if len(g.b)-g.i < len(word) || string(g.b[g.i:g.i+len(word)]) != word {
		return g.refuse("not a value")
	}
	g.i += len(word)
	return nil
}

func (g *guard) array(depth int) *GuardError {
	g.i++
	if g.peek() == ']' {
		g.i++
		return nil
	}
	for n := 0; ; n++ {
		g.space()
		if err := g.value(depth); err != nil {
			return within(err, strconv.Itoa(n))
		}
		switch g.peek() {
		case ',':
			g.i++
		case ']':
			g.i++
			return nil
		default:
			return g.unexpected("expected , or ]")
		}
	}
}

func (g *guard) object(depth int) *GuardError {
	base := g.n
	var seen map[uint64]struct{} // of an object with many members; nil until then
	g.i++
	if g.peek() == '}' {
		g.i++
		return nil
	}
	for {
		if g.peek() != '"' {
			return g.unexpected("expected a member name")
		}
		start := g.i
		escaped, err := g.str()
		if err != nil {
			return err
		}
		name := g.b[start+1 : g.i-1]
		if seen = g.name(name, escaped, base, seen); g.n < 0 {
			g.i = start
			return within(g.refuse("repeated member name"), string(name))
		}
		if g.peek() != ':' {
			return g.unexpected("expected :")
		}
		g.i++
		g.space()
		if err := g.value(depth); err != nil {
			return within(err, string(name))
		}
		switch g.peek() {
		case ',':
			g.i++
		case '}':
			g.i++
			g.n = base
			return nil
		default:
			return g.unexpected("expected , or }")
		}
	}
}

// name remembers one name of the object whose names start at base; it sets g.n
// to -1 for one already there. The escaped and the plain spelling are one name.
func (g *guard) name(raw []byte, escaped bool, base int, seen map[uint64]struct{}) map[uint64]struct{} {
	if escaped {
		var room [64]byte
		raw = unescape(room[:0], raw)
	}
	h := maphash.Bytes(nameSeed, raw)
	if seen == nil {
		own := g.names[base:g.n]
		for _, other := range own {
			if other == h {
				g.n = -1
				return nil
			}
		}
		if len(own) < linear && g.n < len(g.names) {
			g.names[g.n] = h
			g.n++
			return nil
		}
		seen = make(map[uint64]struct{}, 2*linear)
		for _, other := range own {
			seen[other] = struct{}{}
		}
	}
	size := len(seen)
	if seen[h] = struct{}{}; len(seen) == size {
		g.n = -1
	}
	return seen
}

// plain marks the bytes of a string that need no second look.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// str is at the opening quote and ends after the closing one.
func (g *guard) str() (escaped bool, err *GuardError) {
	b, i := g.b, g.i+1
	for {
		for i < len(b) && plain[b[i]] {
			i++
		}
		if g.i = i; i == len(b) {
			return escaped, g.refuse("unexpected end")
		}
		switch c := b[i]; {
		case c == '"':
			g.i = i + 1
			return escaped, nil
		case c == '\\':
			escaped = true
			if err := g.escape(); err != nil {
				return escaped, err
			}
			i = g.i
		case c < 0x20:
			return escaped, g.unexpected("control character in a string")
		default:
			r, size := utf8.DecodeRune(b[i:])
			if r == utf8.RuneError && size == 1 {
				return escaped, g.refuse("invalid UTF-8")
			}
			i += size
		}
	}
}

// escape is at a backslash and ends after what it escapes, a pair of surrogates
// being one thing.
func (g *guard) escape() *GuardError {
	if len(g.b)-g.i < 2 {
		return g.refuse("unexpected end")
	}
	switch g.b[g.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		g.i += 2
		return nil
	case 'u':
		r := hex4(g.b[g.i:])
		switch {
		case r < 0:
			return g.refuse("invalid escape")
		case r == 0:
			return g.refuse("NUL")
		case r >= 0xDC00 && r <= 0xDFFF:
			return g.refuse("lone surrogate")
		case r >= 0xD800 && r <= 0xDBFF:
			if low := hex4(g.b[g.i+6:]); low < 0xDC00 || low > 0xDFFF {
				return g.refuse("lone surrogate")
			}
			g.i += 6
		}
		g.i += 6
		return nil
	default:
		return g.refuse("invalid escape")
	}
}

// hex4 reads \uXXXX, or answers -1.
func hex4(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range b[2:6] {
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		case 'A' <= c && c <= 'F':
			r = r<<4 | rune(c-'A'+10)
		default:
			return -1
		}
	}
	return r
}

// unescape appends what a valid string's inside stands for.
func unescape(to, s []byte) []byte {
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			to = append(to, s[i])
			i++
			continue
		}
		if s[i+1] != 'u' {
			to = append(to, simpleEscapes[s[i+1]])
			i += 2
			continue
		}
		r := hex4(s[i:])
		i += 6
		if r >= 0xD800 && r <= 0xDBFF {
			r = 0x10000 + (r-0xD800)<<10 + (hex4(s[i:]) - 0xDC00)
			i += 6
		}
		to = utf8.AppendRune(to, r)
	}
	return to
}

var simpleEscapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// number is at a minus or a digit. It reads at most maxNumberLength characters
// however long the number is.
func (g *guard) number() *GuardError {
	start := g.i
	b := g.b[start:min(len(g.b), start+maxNumberLength+1)]
	i := 0
	if b[0] == '-' {
		i++
	}
	whole := i
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	if i == whole {
		return g.refuse("not a value")
	}
	if b[whole] == '0' && i > whole+1 {
		return g.refuse("number starts with 0")
	}
	point := i // digits before it: point-whole
	if i < len(b) && b[i] == '.' {
		for i++; i < len(b) && '0' <= b[i] && b[i] <= '9'; {
			i++
		}
		if i == point+1 && i <= maxNumberLength {
			return g.refuse("number without digits after its point")
		}
	}
	mantissa := i
	exponent, negative := 0, false
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		if i++; i < len(b) && (b[i] == '-' || b[i] == '+') {
			negative = b[i] == '-'
			i++
		}
		digits := i
		for ; i < len(b) && '0' <= b[i] && b[i] <= '9'; i++ {
			exponent = min(exponent*10+int(b[i]-'0'), maxExponent+1)
		}
		if i == digits && i <= maxNumberLength {
			return g.refuse("number without digits in its exponent")
		}
	}
	if i > maxNumberLength {
		return g.refuse("number longer than 64 characters")
	}
	if exponent > maxExponent {
		return g.refuse("number out of range")
	}
	if g.budget -= exponent; g.budget < 0 {
		return g.refuse("too many large exponents")
	}
	if exponent != 0 {
		if negative {
			exponent = -exponent
		}
		if !survives(b[:i], whole, point, mantissa, exponent) {
			return g.refuse("number out of range")
		}
	}
	g.i += i
	return nil
}

// survives reports whether a float64 holds the number: its first digit that is
// not 0 stands at a power of ten from -308 to 308.
func survives(b []byte, whole, point, mantissa, exponent int) bool {
	first := -1
	for i := whole; i < mantissa; i++ {
		if b[i] >= '1' && b[i] <= '9' {
			first = i
			break
		}
	}
	if first < 0 {
		return true // zero, however it is written
	}
	power := point - first + exponent
	if first < point {
		power--
	}
	if power == maxExponent { // the only power that is neither wholly in nor wholly out
		_, err := strconv.ParseFloat(string(b), 64)
		return err == nil
	}
	return power > -maxExponent-1 && power < maxExponent
}
