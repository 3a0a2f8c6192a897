package outbox

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

// EncodeAttribute writes the value of a CloudEvents attribute as its bindings demand of a
// header: a space, a double quote, a percent sign, and whatever is no printable ASCII
// character is percent-encoded, byte by byte of its UTF-8.
func EncodeAttribute(value string) string {
	plain := func(b byte) bool { return b > ' ' && b < 0x7f && b != '"' && b != '%' }
	odd := 0
	for i := range len(value) {
		if !plain(value[i]) {
			odd++
		}
	}
	if odd == 0 {
		return value
	}

	const digits = "0123456789ABCDEF"
	var text strings.Builder
	text.Grow(len(value) + 2*odd)
	for i := range len(value) {
		if b := value[i]; plain(b) {
			text.WriteByte(b)
		} else {
			text.Write([]byte{'%', digits[b>>4], digits[b&15]})
		}
	}
	return text.String()
}

// DecodeAttribute reads what EncodeAttribute has written, or another writer: a value may
// stand in double quotes, with backslashes before what would end it. What is no encoding of
// UTF-8 is taken as it stands, for older writers encode nothing.
func DecodeAttribute(text string) string {
	if n := len(text); n >= 2 && text[0] == '"' && text[n-1] == '"' {
		text = unquote(text[1 : n-1])
	}
	value, err := url.PathUnescape(text)
	if err != nil || !utf8.ValidString(value) {
		return text
	}
	return value
}

func unquote(text string) string {
	var plain strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+1 < len(text) {
			i++
		}
		plain.WriteByte(text[i])
	}
	return plain.String()
}
