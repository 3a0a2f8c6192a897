package peertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
)

// keyring holds the signing key and the previous one, whose tokens are still valid.
type keyring struct {
	mu   sync.Mutex
	keys []*ecdsa.PrivateKey // owned by mu; the signing key first, at most two
}

func (k *keyring) start(key *ecdsa.PrivateKey) error {
	if key == nil {
		var err error
		if key, err = newKey(); err != nil {
			return err
		}
	}

	if key.Curve != elliptic.P256() {
		return errors.New("the key is not on P-256")
	}

	k.keys = []*ecdsa.PrivateKey{key}
	return nil
}

func (k *keyring) all() []*ecdsa.PrivateKey {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]*ecdsa.PrivateKey(nil), k.keys...)
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	return key, nil
}

// Key is the current signing key.
func (s *Server) Key() *ecdsa.PrivateKey { return s.keys.all()[0] }

// KeyPEM is Key as PKCS#8 in PEM, as ParseKey reads it.
func (s *Server) KeyPEM() []byte {
	der, err := x509.MarshalPKCS8PrivateKey(s.Key())
	if err != nil {
		// A P-256 key always has this form.
		panic("peertest: " + err.Error())
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// ParseKey reads a P-256 private key in PEM: PKCS#8, or SEC 1 as openssl
// writes it.
func ParseKey(text []byte) (*ecdsa.PrivateKey, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			// Openssl puts EC PARAMETERS before the key.
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("parse key: %w", err)
		}
		ec, ok := key.(*ecdsa.PrivateKey)
		if !ok || ec.Curve != elliptic.P256() {
			return nil, errors.New("parse key: not an EC key on P-256")
		}
		return ec, nil
	}

	return nil, errors.New("parse key: no private key in PEM")
}

// Rotate replaces the signing key and returns the new key's id. The JWKS lists the new key and the
// previous one.
func (s *Server) Rotate() string {
	key, err := newKey()
	if err != nil {
		// Only if the system has no source of randomness.
		panic("peertest: " + err.Error())
	}
	s.keys.mu.Lock()
	defer s.keys.mu.Unlock()
	s.keys.keys = []*ecdsa.PrivateKey{key, s.keys.keys[0]}
	return KeyID(&key.PublicKey)
}

// KeyID is the thumbprint of a key (RFC 7638), so that tokens can be minted outside under the id
// that the JWKS publishes. The key must be on P-256.
func KeyID(key *ecdsa.PublicKey) string {
	x, y := coordinates(key)
	sum := sha256.Sum256([]byte(`{"crv":"P-256","kty":"EC","x":"` + x + `","y":"` + y + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// coordinates are the two halves of the point, padded as JWK requires.
func coordinates(key *ecdsa.PublicKey) (x, y string) {
	point, err := key.Bytes() // 0x04, x, y
	if err != nil || len(point) != 65 {
		panic("peertest: the key is not on P-256")
	}
	return base64.RawURLEncoding.EncodeToString(point[1:33]), base64.RawURLEncoding.EncodeToString(point[33:])
}
