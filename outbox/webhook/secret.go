package webhook

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Secrets sign callbacks. With two a taker can go from the old one to the new: every
// callback carries both signatures, and one that fits is enough.
type Secrets []*standardwebhooks.Webhook

// prefix marks a secret of Standard Webhooks; what follows is base64.
const prefix = "whsec_"

// The lengths that Standard Webhooks asks for, in bytes.
const (
	shortest = 24
	longest  = 64
)

// ParseSecrets reads secrets that are separated by spaces. What is wrong with one is
// said without quoting it.
func ParseSecrets(text string) (Secrets, error) {
	var all Secrets
	for i, one := range strings.Fields(text) {
		raw, found := strings.CutPrefix(one, prefix)
		key, err := base64.StdEncoding.DecodeString(raw)
		if !found || err != nil || len(key) < shortest || len(key) > longest {
			return nil, fmt.Errorf("secret %d is not %s and %d to %d bytes in base64", i+1, prefix, shortest, longest)
		}
		signer, err := standardwebhooks.NewWebhookRaw(key)
		if err != nil {
			return nil, errors.New("a secret cannot be used")
		}
		all = append(all, signer)
	}
	return all, nil
}

// NewSecret makes one.
func NewSecret() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // it never fails
	return prefix + base64.StdEncoding.EncodeToString(key)
}
