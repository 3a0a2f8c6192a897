package schema

import (
	"bytes"
	"hash/maphash"
	"maps"
	"slices"
	"strconv"
)

func (v *evaluation) objectKeywords(n *node, m map[string]any, value int, seen *marks) bool {
	valid := true
	if n.MinProperties != nil && len(m) < *n.MinProperties {
		valid = v.report("must have at least %d members, has %d", *n.MinProperties, len(m))
	}
	if n.MaxProperties != nil && len(m) > *n.MaxProperties {
		valid = v.report("must have at most %d members, has %d", *n.MaxProperties, len(m))
	}
	if valid || v.reporting() {
		valid = v.required(m, n.Required, "is required") && valid
	}
	if (valid || v.reporting()) && (len(n.properties) > 0 || len(n.patternProps) > 0 || n.additional != nil) {
		valid = v.members(n, m, seen) && valid
	}

	// additionalProperties evaluates each member that no other keyword has.
	if n.allEvaluated {
		seen.allMembers()
	}
	if n.propertyNames != nil && (valid || v.reporting()) {
		valid = v.propertyNames(n, m) && valid
	}

	for i := range n.dependent {
		if !valid && !v.reporting() {
			return false
		}
		valid = v.dependency(&n.dependent[i], m, value, seen) && valid
	}

	return valid
}

func (v *evaluation) required(m map[string]any, names []string, message string) bool {
	valid := true
	for _, name := range names {
		v.charge(1)
		if _, ok := m[name]; ok {
			continue
		}

		if valid = false; !v.reporting() {
			return false
		}

		v.reportAt(name, message)
	}

	return valid
}

func (v *evaluation) members(n *node, m map[string]any, seen *marks) bool {
	return v.each(m, func(name string, x any) bool {
		valid, evaluated := true, false
		if s := n.properties[name]; s != nil {
			evaluated = true
			valid = v.child(s, x, name)
		}

		for i := range n.patternProps {
			if v.matches(n.patternProps[i].pattern, name) {
				evaluated = true
				valid = v.child(n.patternProps[i].node, x, name) && valid
			}
		}

		// additionalProperties applies to members without a property or pattern.
		if evaluated {
			seen.member(name)
		} else if n.additional != nil {
			valid = v.child(n.additional, x, name)
		}

		return valid
	})
}

func (v *evaluation) propertyNames(n *node, m map[string]any) bool {
	return v.each(m, func(name string, _ any) bool {
		v.value++
		return v.evalSilently(n.propertyNames, name, v.value, nil) || v.reportAt(name, "has a name that is not allowed")
	})
}

// each calls do for the members of an object, up to the first invalid member. If violations
// are collected, do is called for every member, in the order of the names.
func (v *evaluation) each(m map[string]any, do func(name string, x any) bool) bool {
	v.charge(len(m))
	if !v.reporting() {
		for name, x := range m {
			if !do(name, x) {
				return false
			}
		}

		return true
	}

	// Sorting the names.
	v.charge(4 * len(m))
	valid := true
	for _, name := range slices.Sorted(maps.Keys(m)) {
		valid = do(name, m[name]) && valid
	}

	return valid
}

func (v *evaluation) dependency(d *dependency, m map[string]any, value int, seen *marks) bool {
	v.charge(1)
	if _, ok := m[d.name]; !ok {
		return true
	}

	if d.node != nil {
		return v.evalInPlace(d.node, m, value, seen)
	}

	// The text is needed only for a report.
	message := "is required"
	if v.reporting() {
		message += " where " + strconv.Quote(d.name) + " is present"
	}

	return v.required(m, d.required, message)
}

// unevaluated evaluates unevaluatedProperties and unevaluatedItems, against the members
// and items that no other keyword has evaluated.
func (v *evaluation) unevaluated(n *node, x any, seen *marks) bool {
	valid := true

	switch x := x.(type) {
	case map[string]any:
		if n.unevaluatedProps == nil {
			return true
		}
		valid = v.each(x, func(name string, x any) bool { return seen.hasMember(name) || v.child(n.unevaluatedProps, x, name) })
		seen.allMembers()
	case []any:
		if n.unevaluatedItems == nil {
			return true
		}

		v.charge(len(x))

		for i, item := range x {
			if !seen.hasItem(i) {
				valid = v.item(n.unevaluatedItems, item, i) && valid
			}
			if !valid && !v.reporting() {
				return false
			}
		}

		seen.allItemsEvaluated()
	}

	return valid
}

// marks records the members and items of a value that some keyword has evaluated. The methods
// that record do nothing on a nil *marks, for schemas without unevaluated keywords.
type marks struct {
	every, everyItem bool
	first            int // the items before this index
	members          map[string]bool
	items            map[int]bool
}

func (s *marks) allMembers() {
	if s != nil {
		s.every = true
	}
}

func (s *marks) allItemsEvaluated() {
	if s != nil {
		s.everyItem = true
	}
}

func (s *marks) itemsBefore(n int) {
	if s != nil {
		s.first = max(s.first, n)
	}
}

func (s *marks) member(name string) {
	if s == nil || s.every {
		return
	}
	if s.members == nil {
		s.members = map[string]bool{}
	}

	s.members[name] = true
}

func (s *marks) item(i int) {
	if s == nil || s.everyItem || i < s.first {
		return
	}
	if s.items == nil {
		s.items = map[int]bool{}
	}

	s.items[i] = true
}

func (s *marks) hasMember(name string) bool { return s.every || s.members[name] }

func (s *marks) hasItem(i int) bool { return s.everyItem || i < s.first || s.items[i] }

// merge adds the marks of other, and returns the units of work to charge.
func (s *marks) merge(other *marks) int {
	s.every, s.everyItem = s.every || other.every, s.everyItem || other.everyItem
	s.first = max(s.first, other.first)

	for name := range other.members {
		s.member(name)
	}

	for i := range other.items {
		s.item(i)
	}

	return len(other.members) + len(other.items)
}

// keySeed makes the hashes of items unpredictable, so that a client cannot build a list
// of items with equal hashes.
var keySeed = maphash.MakeSeed()

// duplicates finds the first item that is equal to an earlier item. Hashes of keys are
// compared first, and keys only if their hashes are equal.
func (v *evaluation) duplicates(list []any) (i, j int, found bool) {
	if len(list) < 2 {
		return 0, 0, false
	}

	v.charge(2 * len(list))
	before := make(map[uint64]int, len(list))
	for j, x := range list {
		v.key = v.keyOf(v.key[:0], x)
		hash := maphash.Bytes(keySeed, v.key)
		i, known := before[hash]
		if !known {
			before[hash] = j
			continue
		}

		// Equal hashes of different keys are possible: compare the keys.
		if bytes.Equal(v.key, v.keyOf(nil, list[i])) {
			return i, j, true
		}
	}

	return 0, 0, false
}

// keyOf encodes a key of any length, and charges for the key afterwards. A part of the
// document is never longer than the document, so the uncharged work is bounded.
func (v *evaluation) keyOf(to []byte, x any) []byte {
	to, _ = appendKey(to, x, unlimited)
	v.charge(1 + len(to)/8)
	return to
}
