package jsonguard_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/seed-3f7a0631/tes/jobs/canonical"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

// An accepted document survives encoding/json and keeps its canonical hash.
func FuzzCheck(f *testing.F) {
	for _, seed := range []string{
		`{"id":"ITEM-1","quantity":2,"price":10.99,"tags":[true,null]}`, `{"a":1e308,"b":[-0.0e-300]}`, `"\ud83d\ude00"`, `{"\u0061":1,"a":2}`, `[1e-308,01]`,
		"\xef\xbb\xbf1", `{"a":{"a":{}}}`, `"\u0000"`, `1.7976931348623159e308`, `[[[[]]],[]] `, `tru`, `-`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := jsonguard.Check(b)
		if err != nil {
			var refusal *jsonguard.Error
			if !errors.As(err, &refusal) || refusal.Reason == "" || refusal.Offset > len(b) {
				t.Fatalf("a rejection without a reason or a valid offset: %#v", err)
			}
			return
		}
		if !json.Valid(b) {
			t.Fatalf("accepted invalid JSON: %q", b)
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatalf("accepted, but does not decode: %v", err)
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatalf("accepted, but does not encode: %v", err)
		}
		var w any
		if err := json.Unmarshal(again, &w); err != nil {
			t.Fatalf("the encoded value does not decode: %v", err)
		}
		twice, _ := json.Marshal(w)
		if !bytes.Equal(again, twice) {
			t.Fatalf("changed by a second round trip: %q then %q", again, twice)
		}
		one, err := canonical.Hash(b)
		if err != nil {
			t.Fatalf("accepted, but has no hash: %v", err)
		}
		if two, err := canonical.Hash(again); err != nil || one != two {
			t.Fatalf("hash differs after a round trip of %q: %v", b, err)
		}
	})
}
