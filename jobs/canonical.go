package jobs

import (
	"crypto/sha256"
	"errors"
	"strconv"
	"strings"

	"github.com/gowebpki/jcs"
)

// CanonicalHash is the SHA-256 of the document's canonical form (RFC 8785): equal for
// documents that differ only in white space, member order, escapes, and the way in which
// the same number is written. Numbers are compared as decimals. What GuardJSON refuses,
// CanonicalHash refuses too.
func CanonicalHash(b []byte) ([32]byte, error) {
	if err := GuardJSON(b); err != nil {
		return [32]byte{}, err
	}

	c, err := jcs.Transform(exactNumbers(b))
	if err != nil {
		// Not wrapped: jcs quotes the document in its errors.
		return [32]byte{}, errors.New("JSON has no canonical form")
	}

	return sha256.Sum256(c), nil
}

// exactNumbers replaces each number that a float64 cannot hold exactly by a string with
// its decimal. RFC 8785 writes numbers as float64, in which 9007199254740992 and
// 9007199254740993 are one. The string begins with NUL, which no guarded document holds,
// so that it equals no string of another document. A document without such numbers, which
// is nearly every one, is returned as it is and keeps the hash that RFC 8785 gives it.
func exactNumbers(b []byte) []byte {
	var out []byte
	copied := 0

	for i := 0; i < len(b); {
		switch c := b[i]; {
		case c == '"':
			i = afterString(b, i)

		case c == '-' || c >= '0' && c <= '9':
			end := i + 1
			for end < len(b) && strings.IndexByte("0123456789+-.eE", b[end]) >= 0 {
				end++
			}
			if exact, ok := inexact(string(b[i:end])); ok {
				out = append(append(out, b[copied:i]...), `"\u0000`+exact+`"`...)
				copied = end
			}
			i = end

		default:
			i++
		}
	}

	if copied == 0 {
		return b
	}
	return append(out, b[copied:]...)
}

// afterString is the index behind the string that begins at i.
func afterString(b []byte, i int) int {
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}
	return i + 1
}

// inexact returns a number's decimal if it is not the one that its float64 is written as.
func inexact(number string) (exact string, ok bool) {
	const always = 15 // so many digits every float64 holds
	if len(number) <= always && !strings.ContainsAny(number, "eE") {
		return "", false
	}

	exact = decimal(number)
	f, err := strconv.ParseFloat(number, 64)
	return exact, err != nil || decimal(strconv.FormatFloat(f, 'e', -1, 64)) != exact
}

// decimal is a JSON number as its significant digits and a power of ten, so that equal
// numbers are equal texts: 1.0, 1 and 10e-1 are all 1e0.
func decimal(number string) string {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(number), "e")
	power, _ := strconv.Atoi(exponent) // GuardJSON bounds it; none is 0

	sign := ""
	if rest, negative := strings.CutPrefix(mantissa, "-"); negative {
		sign, mantissa = "-", rest
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	power -= len(fraction)

	digits := strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return "0"
	}
	significant := strings.TrimRight(digits, "0")
	power += len(digits) - len(significant)

	return sign + significant + "e" + strconv.Itoa(power)
}
