// Package canonical compares JSON documents by a hash of their canonical form.
package canonical

import (
	"crypto/sha256"
	"errors"
	"strconv"
	"strings"

	"github.com/gowebpki/jcs"

	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

// Hash returns the SHA-256 of the document's canonical form (RFC 8785). Two documents
// have equal hashes if they differ only in white space, member order, escapes, and the
// spelling of equal numbers; numbers are compared as decimals. A document that
// jsonguard.Check rejects gives the same *jsonguard.Error.
func Hash(b []byte) ([32]byte, error) {
	if err := jsonguard.Check(b); err != nil {
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
// the number's decimal. RFC 8785 writes numbers as float64, where 9007199254740992 equals
// 9007199254740993. The string begins with NUL, which jsonguard.Check rejects, so the
// string never equals a string of another document. Nearly every document has no such
// numbers: exactNumbers returns b unchanged, and the hash is the hash of RFC 8785.
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

// afterString returns the index after the string that begins at i.
func afterString(b []byte, i int) int {
	// In bounds: jsonguard.Check has accepted the document, so every string ends.
	for i++; b[i] != '"'; i++ {
		if b[i] == '\\' {
			i++
		}
	}

	return i + 1
}

// inexact returns the decimal of a number whose float64 has another decimal.
func inexact(number string) (exact string, ok bool) {
	const always = 15 // decimal digits that a float64 always holds exactly
	if len(number) <= always && !strings.ContainsAny(number, "eE") {
		return "", false
	}

	exact = decimal(number)
	f, err := strconv.ParseFloat(number, 64)
	return exact, err != nil || decimal(strconv.FormatFloat(f, 'e', -1, 64)) != exact
}

// decimal returns a JSON number as significant digits and a power of ten, so that equal
// numbers give equal texts: 1e0 for 1.0, 1 and 10e-1.
func decimal(number string) string {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(number), "e")
	power, _ := strconv.Atoi(exponent) // jsonguard bounds the exponent; without one, power is 0

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
