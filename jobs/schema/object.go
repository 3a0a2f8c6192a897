package schema

import (
	"bytes"
	"hash/maphash"
	"maps"
	"slices"
	"strconv"
)

func (v *visit) object(n *node, m map[string]any, value int, seen *marks) bool {
	fits := true
	if n.MinProperties != nil && len(m) < *n.MinProperties {
		fits = v.wrong("must have at least %d members, has %d", *n.MinProperties, len(m))
	}
	if n.MaxProperties != nil && len(m) > *n.MaxProperties {
		fits = v.wrong("must have at most %d members, has %d", *n.MaxProperties, len(m))
	}
	if fits || v.loud() {
		fits = v.required(m, n.Required, "is required") && fits
	}
	if (fits || v.loud()) && (len(n.properties) > 0 || len(n.named) > 0 || n.additional != nil) {
		fits = v.members(n, m, seen) && fits
	}
	if n.allEvaluated {
		seen.allMembers()
	}
	if n.propertyNames != nil && (fits || v.loud()) {
		fits = v.names(n, m) && fits
	}
	for i := range n.dependent {
		if !fits && !v.loud() {
			return false
		}
		fits = v.depends(&n.dependent[i], m, value, seen) && fits
	}
	return fits
}

func (v *visit) required(m map[string]any, names []string, message string) bool {
	fits := true
	for _, name := range names {
		v.charge(1)
		if _, ok := m[name]; ok {
			continue
		}
		if fits = false; !v.loud() {
			return false
		}
		v.wrongAt(name, message)
	}
	return fits
}

func (v *visit) members(n *node, m map[string]any, seen *marks) bool {
	return v.each(m, func(name string, x any) bool {
		fits, evaluated := true, false
		if s := n.properties[name]; s != nil {
			evaluated = true
			fits = v.child(s, x, name)
		}
		for i := range n.named {
			if v.matches(n.named[i].pattern, name) {
				evaluated = true
				fits = v.child(n.named[i].node, x, name) && fits
			}
		}
		if evaluated {
			seen.member(name)
		} else if n.additional != nil {
			fits = v.child(n.additional, x, name)
		}
		return fits
	})
}

func (v *visit) names(n *node, m map[string]any) bool {
	return v.each(m, func(name string, _ any) bool {
		v.value++
		return v.quietly(n.propertyNames, name, v.value, nil) || v.wrongAt(name, "has a name that is not allowed")
	})
}

// each calls do for the members of an object until one does not fit; where places are
// noted, for all of them, in the order of their names.
func (v *visit) each(m map[string]any, do func(name string, x any) bool) bool {
	v.charge(len(m))
	if !v.loud() {
		for name, x := range m {
			if !do(name, x) {
				return false
			}
		}
		return true
	}
	v.charge(4 * len(m))
	fits := true
	for _, name := range slices.Sorted(maps.Keys(m)) {
		fits = do(name, m[name]) && fits
	}
	return fits
}

func (v *visit) depends(d *dependency, m map[string]any, value int, seen *marks) bool {
	v.charge(1)
	if _, ok := m[d.name]; !ok {
		return true
	}
	if d.node != nil {
		return v.within(d.node, m, value, seen)
	}
	message := "is required"
	if v.loud() {
		message += " where " + strconv.Quote(d.name) + " is present"
	}
	return v.required(m, d.required, message)
}

// unevaluated looks at the members and items that nothing else has.
func (v *visit) unevaluated(n *node, x any, seen *marks) bool {
	fits := true
	switch x := x.(type) {
	case map[string]any:
		if n.unevaluated == nil {
			return true
		}
		fits = v.each(x, func(name string, x any) bool { return seen.hasMember(name) || v.child(n.unevaluated, x, name) })
		seen.allMembers()
	case []any:
		if n.restItems == nil {
			return true
		}
		v.charge(len(x))
		for i, item := range x {
			if !seen.hasItem(i) {
				fits = v.item(n.restItems, item, i) && fits
			}
			if !fits && !v.loud() {
				return false
			}
		}
		seen.allItemsEvaluated()
	}
	return fits
}

// marks are the members and items of one value that some keyword has evaluated. A nil
// *marks is of no interest to anybody.
type marks struct {
	every, everyItem bool
	first            int // items before this one
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

// merge takes over what another has, and answers how much work that was.
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

// keySeed makes hashes of items unguessable.
var keySeed = maphash.MakeSeed()

// duplicates finds the first item that is equal to one before it. It compares hashes
// of keys, and keys where the hashes are equal.
func (v *visit) duplicates(list []any) (i, j int, found bool) {
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
		if bytes.Equal(v.key, v.keyOf(nil, list[i])) {
			return i, j, true
		}
	}
	return 0, 0, false
}

// keyOf pays for a whole key. A part of a document is never longer than the document
// is, so the budget is enough for a look at everything, a few times.
func (v *visit) keyOf(to []byte, x any) []byte {
	to, _ = appendKey(to, x, whole)
	v.charge(1 + len(to)/8)
	return to
}
