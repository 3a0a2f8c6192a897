package manual

import "testing"

// Whatever an expression comes to, it is read or refused, and what is read is one of
// the four: nobody, a person, a group, candidates.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{`null`, `""`, `"ann"`, `{}`, `{"groupId": "g"}`, `{"candidateUsers": ["a", ""]}`, `{"assigneeId": 1}`, `[[]]`, `{"assigneeId":"a"}{}`, `x`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := read(text)
		if err != nil {
			return
		}
		if v.AssigneeID != "" && v.GroupID != "" || len(v.CandidateUsers)+len(v.CandidateRoles)+len(v.CandidateGroups) > maxCandidates {
			t.Fatalf("%q was read as %+v", text, v)
		}
	})
}
