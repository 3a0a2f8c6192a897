package webhook

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// prefix marks a secret of Standard Webhooks; base64 follows.
const prefix = "whsec_"

// The lengths of a key that Standard Webhooks asks for, in bytes.
const (
	minKey = 24
	maxKey = 64
)

// Secrets sign callbacks. Each callback carries a signature of every secret, so that a receiver
// can change from the old secret to the new one: one valid signature is enough.
type Secrets []*standardwebhooks.Webhook

// ParseSecrets reads secrets that are separated by spaces. The error names a secret by its
// position and does not quote it.
func ParseSecrets(text string) (Secrets, error) {
	var all Secrets
	for i, one := range strings.Fields(text) {
		raw, found := strings.CutPrefix(one, prefix)
		key, err := base64.StdEncoding.DecodeString(raw)
		if !found || err != nil || len(key) < minKey || len(key) > maxKey {
			return nil, fmt.Errorf("secret %d is not %s and %d to %d bytes in base64", i+1, prefix, minKey, maxKey)
		}

		signer, err := standardwebhooks.NewWebhookRaw(key)
		if err != nil {
			return nil, errors.New("a secret cannot be used")
		}

		all = append(all, signer)
	}

	return all, nil
}

// NewSecret returns a random secret.
func NewSecret() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return prefix + base64.StdEncoding.EncodeToString(key)
}
