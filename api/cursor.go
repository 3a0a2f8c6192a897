package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
)

// A cursor is the last key of a page and a hash over that key, the list and its filters, in
// base64url. The hash is no secret. It detects a cursor that is truncated or used with another list
// or filter, where it would silently skip items. Access is checked by the query, never by the
// cursor.

// cursorSum is the number of hash bytes in a cursor.
const cursorSum = 12

func cursor(last []byte, filters ...string) string {
	raw := make([]byte, 0, len(last)+cursorSum)
	raw = append(raw, last...)
	return base64.RawURLEncoding.EncodeToString(append(raw, sum(last, filters)...))
}

// after returns the key in a cursor; nil for an empty cursor.
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

// part writes a text with its length, so that two filters cannot be confused with one.
func part(h hash.Hash, text string) {
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(text)))
	_, _ = h.Write(n[:])
	_, _ = h.Write([]byte(text))
}
