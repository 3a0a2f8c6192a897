// Package jsonguard rejects JSON documents that a later reader (PostgreSQL's jsonb,
// encoding/json, a float64) cannot represent, or only at a high price.
package jsonguard

import (
	"fmt"
	"hash/maphash"
	"strconv"
	"strings"
)

// The limits of one JSON document. Each caller limits the size of its documents
// itself, before it calls Check.
const (
	maxDepth        = 64  // nested arrays and objects
	maxNumberLength = 64  // characters of one number
	maxExponent     = 308 // decimal magnitude, written or effective: the range of a float64

	// The exponents of a document together may add freeExpansion digits, and perByte
	// digits more for each byte of the document.
	freeExpansion = 1 << 16
	perByte       = 8
)

// Error is the rejection of a document by Check. An Error contains no value of the
// document, only member names (in Path), so callers may log and return the text.
type Error struct {
	Path   string // JSON pointer to the rejected value; empty for the document itself
	Offset int    // byte offset in the document
	Reason string
}

func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("invalid JSON at byte %d: %s", e.Offset, e.Reason)
	}
	return fmt.Sprintf("invalid JSON at byte %d (%s): %s", e.Offset, e.Path, e.Reason)
}

// Check returns an *Error unless b is a single JSON value without invalid UTF-8, a
// byte order mark, NUL, lone surrogates, repeated member names, more than 64 levels,
// or numbers with huge exponents. Every document from outside (request, message,
// response of a peer service) must pass Check before any other code reads the
// document.
//
// Why huge exponents are rejected: jsonb writes 1e131071 with all its digits, so a
// 9 KB array of 1e131071 is read back as 131 MB.
func Check(b []byte) error {
	g := guard{b: b, budget: freeExpansion + perByte*len(b)}

	// RFC 8259 forbids a byte order mark; decoders disagree about it.
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
	// A decoder that reads a stream would ignore the rest.
	if g.i < len(b) {
		return g.refuse("more than one value")
	}

	return nil
}

// nameSeed makes the hashes of member names unpredictable, so that a client cannot
// build an object whose names collide. Two names with equal hashes count as a
// repeated name; with 64 seeded bits no ordinary document is rejected in practice.
var nameSeed = maphash.MakeSeed()

// guard parses a document once. A guard stays on the caller's stack, and allocates
// only for an object with more members than the names array holds.
type guard struct {
	b      []byte
	i      int
	budget int         // digits that exponents may still add
	names  [128]uint64 // hashes of the member names of every open object
	n      int         // entries of names in use
}

// linear is the size up to which an object's names are compared one by one.
const linear = 24

func (g *guard) refuse(reason string) *Error {
	return &Error{Offset: g.i, Reason: reason}
}

// within prepends the name of a member or element to the error's path. The path is
// built while the parser returns, so an accepted document pays nothing for paths.
func within(err *Error, name string) *Error {
	const longest = 64
	if len(name) > longest {
		name = strings.ToValidUTF8(name[:longest], "") + "…"
	}

	// A JSON pointer escapes ~ first, or the ~ of ~1 would be escaped again.
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

// peek returns the next byte after white space, or 0 at the end of the document.
// A NUL byte also gives 0, which is harmless: NUL is rejected everywhere.
func (g *guard) peek() byte {
	g.space()
	if g.i < len(g.b) {
		return g.b[g.i]
	}

	return 0
}

// unexpected rejects the document at the current byte; an end of the document and
// a NUL byte have reasons of their own.
func (g *guard) unexpected(reason string) *Error {
	switch {
	case g.i >= len(g.b):
		return g.refuse("unexpected end")
	case g.b[g.i] == 0:
		return g.refuse("NUL")
	default:
		return g.refuse(reason)
	}
}

// value parses the value that begins at the current byte.
func (g *guard) value(depth int) *Error {
	if g.i >= len(g.b) {
		return g.refuse("unexpected end")
	}

	switch c := g.b[g.i]; {
	case c == '"':
		_, err := g.str()
		return err
	case c == '{' || c == '[':
		// Checked before the descent, so the depth of the recursion is bounded too.
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

func (g *guard) literal(word string) *Error {
	if len(g.b)-g.i < len(word) || string(g.b[g.i:g.i+len(word)]) != word {
		return g.refuse("not a value")
	}

	g.i += len(word)
	return nil
}

func (g *guard) array(depth int) *Error {
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

func (g *guard) object(depth int) *Error {
	// The names of all open objects share one array; the names of this object begin at base.
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
			// The object is closed: its names leave the array.
			g.i++
			g.n = base
			return nil
		default:
			return g.unexpected("expected , or }")
		}
	}
}

// name records one name of the object whose names start at base, and sets g.n to -1
// if the object already has the name. The escaped and the plain spelling of a name
// are equal.
func (g *guard) name(raw []byte, escaped bool, base int, seen map[uint64]struct{}) map[uint64]struct{} {
	// "a" and "\u0061" are the same name.
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

		// Few names: comparing them one by one is faster than a map, and allocates nothing.
		if len(own) < linear && g.n < len(g.names) {
			g.names[g.n] = h
			g.n++
			return nil
		}

		// Too many names for the array: this object gets a map.
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
