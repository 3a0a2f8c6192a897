package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
)

// A cursor is the last key of a page and a hash over the key, the list and the filters, in base64url.
// The hash is no secret. A cursor that is truncated, or is used with another list or filter, would
// silently skip items; the hash detects both. Access is checked by the query, never by the cursor.

// cursorSum is the number of hash bytes in a cursor.
const cursorSum = 12

// cursor makes the cursor of the page after the key last.
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

	// Strict: each key has exactly one encoding.
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(raw) <= cursorSum {
		return nil, violation("query.cursor", "the cursor is not valid")
	}

	// A plain comparison is enough: the hash is no secret.
	last := raw[:len(raw)-cursorSum]
	if string(sum(last, filters)) != string(raw[len(last):]) {
		return nil, violation("query.cursor", "the cursor belongs to another list or to other filters")
	}

	return last, nil
}

// sum is the hash in a cursor.
func sum(last []byte, filters []string) []byte {
	h := sha256.New()
	// A version: after a change of the format, old cursors are refused instead of misread.
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
