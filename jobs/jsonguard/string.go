package jsonguard

import "unicode/utf8"

// plain marks the bytes that stand for themselves in a string.
var plain = func() (t [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return t
}()

// str parses a string from its opening quote past its closing quote. escaped reports an escape
// sequence: the names of such members must be unescaped before the comparison.
func (g *guard) str() (escaped bool, err *Error) {
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

			// A valid U+FFFD has three bytes.
			if r == utf8.RuneError && size == 1 {
				return escaped, g.refuse("invalid UTF-8")
			}

			i += size
		}
	}
}

// escape parses an escape sequence from its backslash on. A surrogate pair is a single
// sequence.
func (g *guard) escape() *Error {
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
			// A high surrogate must be followed by a low surrogate.
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

// hex4 parses an escape of \u and four hex digits at the beginning of b; -1 if b begins otherwise.
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

// unescape appends the text of s, the inside of a valid string.
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
			// escape has checked that a low surrogate follows.
			r = 0x10000 + (r-0xD800)<<10 + (hex4(s[i:]) - 0xDC00)
			i += 6
		}

		to = utf8.AppendRune(to, r)
	}

	return to
}

var simpleEscapes = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}
