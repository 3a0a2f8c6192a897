package outbox

import (
	"net/url"
	"strings"
	"unicode/utf8"
)

// EncodeAttribute encodes the value of a CloudEvents attribute for a header, as the bindings of
// CloudEvents say: spaces, double quotes, percent signs and all characters that are not printable
// ASCII are percent-encoded, byte by byte of their UTF-8.
func EncodeAttribute(value string) string {
	plain := func(b byte) bool { return b > ' ' && b < 0x7f && b != '"' && b != '%' }
	encoded := 0
	for i := range len(value) {
		if !plain(value[i]) {
			encoded++
		}
	}

	// Nearly every value: no copy.
	if encoded == 0 {
		return value
	}

	const digits = "0123456789ABCDEF"
	var text strings.Builder
	text.Grow(len(value) + 2*encoded)
	for i := range len(value) {
		if b := value[i]; plain(b) {
			text.WriteByte(b)
		} else {
			text.Write([]byte{'%', digits[b>>4], digits[b&15]})
		}
	}

	return text.String()
}

// DecodeAttribute decodes the value of a CloudEvents attribute. A value in double quotes, with
// backslashes before quotes, is decoded as well. A value that is not an encoding of UTF-8 is
// returned unchanged, because older publishers do not encode.
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
