package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
)

// A cursor is the last key of a page and a hash over it and over what the list was
// asked for, in base64url. The hash is no secret: it keeps a cursor from being cut,
// or carried over to another list or filter, where it would skip things silently.
// What a caller may see is the query's business, never the cursor's.

// cursorSum is how many bytes of the hash a cursor holds.
const cursorSum = 12

func cursor(last []byte, filters ...string) string {
	raw := make([]byte, 0, len(last)+cursorSum)
	raw = append(raw, last...)
	return base64.RawURLEncoding.EncodeToString(append(raw, sum(last, filters)...))
}

// after is the key that a cursor holds; nil for no cursor.
func after(cursor string, filters ...string) ([]byte, error) {
	if cursor == "" {
		return nil, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(raw) <= cursorSum {
		return nil, violation("query.cursor", "this is no cursor of ours")
	}
	last := raw[:len(raw)-cursorSum]
	if string(sum(last, filters)) != string(raw[len(last):]) {
		return nil, violation("query.cursor", "this cursor belongs to another list or other filters")
	}
	return last, nil
}

func sum(last []byte, filters []string) []byte {
	h := sha256.New()
	part(h, "tes cursor 1")
	for _, f := range filters {
		part(h, f)
	}
	_, _ = h.Write(last)
	return h.Sum(nil)[:cursorSum]
}

// part writes a text with its length, so that two filters never read as one.
func part(h hash.Hash, text string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(text)))
	_, _ = h.Write(n[:])
	_, _ = h.Write([]byte(text))
}
