package jsonguard

import "strconv"

// number parses a number from its minus or first digit on. At most
// maxNumberLength+1 characters are read, however long the number is.
func (g *guard) number() *Error {
	start := g.i
	b := g.b[start:min(len(g.b), start+maxNumberLength+1)]
	i := 0
	if b[0] == '-' {
		i++
	}

	// The digits before the point.
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

	// The fraction. point-whole is the count of digits before the point.
	point := i
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
			// Cut off, so that no exponent overflows the int.
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

	// jsonb stores the digits that an exponent stands for.
	if g.budget -= exponent; g.budget < 0 {
		return g.refuse("too many large exponents")
	}

	// Without an exponent, 64 characters are always in the range.
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

// survives reports whether the number is in the range of a float64: the first
// nonzero digit must be at a power of ten from -308 to 308.
func survives(b []byte, whole, point, mantissa, exponent int) bool {
	first := -1
	for i := whole; i < mantissa; i++ {
		if b[i] >= '1' && b[i] <= '9' {
			first = i
			break
		}
	}

	if first < 0 {
		// Zero, in any spelling.
		return true
	}

	power := point - first + exponent
	if first < point {
		power--
	}

	// The largest float64 is 1.797…e308: parse the number to decide.
	if power == maxExponent {
		_, err := strconv.ParseFloat(string(b), 64)
		return err == nil
	}

	return power > -maxExponent-1 && power < maxExponent
}
