package jobs

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/db"
)

// leaseID is the content of a lease token: an attempt, or a dead letter. Every attempt has a new job,
// so that the next attempt after a release, with the same number, has another token. A requeued dead
// letter has a new job as well.
type leaseID struct {
	task       uuid.UUID
	job        int64
	attempt    int32
	deadLetter bool
	// The visibility timeout at the begin of the lease. The token keeps it after the lease is gone: see
	// missed.
	visibility time.Duration
}

// A token is the lease's id and the first half of its HMAC-SHA256, in base64url.
const (
	leaseIDBytes = 16 + 8 + 4 + 1 + 4
	leaseMAC     = 16
)

// LeaseTokenLength is how long every lease token is.
var LeaseTokenLength = base64.RawURLEncoding.EncodedLen(leaseIDBytes + leaseMAC)

// tokens makes and reads lease tokens, with a key that all processes share.
type tokens struct {
	q *db.Queries

	mu  sync.Mutex
	key []byte // guarded by mu; nil until it was read
}

func (k *tokens) secret(ctx context.Context) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.key != nil {
		return k.key, nil
	}

	fresh := make([]byte, 32)
	if _, err := rand.Read(fresh); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}

	// The first process stores its key; the others get the stored key.
	key, err := k.q.SecretKey(ctx, db.SecretKeyParams{Name: "lease token", Key: fresh})
	if err != nil {
		return nil, readError("key of lease tokens", err)
	}

	k.key = key
	return key, nil
}

// sign returns the token of a lease: the same for the same lease, in every process.
func (k *tokens) sign(ctx context.Context, id leaseID) (string, error) {
	key, err := k.secret(ctx)
	if err != nil {
		return "", err
	}
	text := id.append(nil)
	return base64.RawURLEncoding.EncodeToString(append(text, mac(key, text)...)), nil
}

// read verifies a token. The error is ErrNotFound for a malformed token and for a wrong signature.
func (k *tokens) read(ctx context.Context, token string) (leaseID, error) {
	key, err := k.secret(ctx)
	if err != nil {
		return leaseID{}, err
	}

	// Strict, so that each token has only one spelling.
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(raw) != leaseIDBytes+leaseMAC || !hmac.Equal(raw[leaseIDBytes:], mac(key, raw[:leaseIDBytes])) {
		return leaseID{}, fmt.Errorf("lease token: %w", ErrNotFound)
	}

	return leaseID{
		task: uuid.UUID(raw[:16]), job: int64(binary.BigEndian.Uint64(raw[16:])), attempt: int32(binary.BigEndian.Uint32(raw[24:])),
		deadLetter: raw[28] == 1, visibility: time.Duration(binary.BigEndian.Uint32(raw[29:])) * time.Millisecond,
	}, nil
}

func (id leaseID) append(to []byte) []byte {
	to = append(to, id.task[:]...)
	to = binary.BigEndian.AppendUint64(to, uint64(id.job))
	to = binary.BigEndian.AppendUint32(to, uint32(id.attempt))
	if id.deadLetter {
		to = append(to, 1)
	} else {
		to = append(to, 0)
	}

	return binary.BigEndian.AppendUint32(to, uint32(id.visibility.Milliseconds())) //nolint:gosec // at most twelve hours
}

func mac(key, text []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(text)
	return h.Sum(nil)[:leaseMAC]
}
