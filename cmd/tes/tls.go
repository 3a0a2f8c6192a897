package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// identity is a client's certificate and the authorities that it trusts.
type identity struct {
	roots *x509.CertPool   // nil: the system's authorities
	own   *tls.Certificate // nil: no certificate
}

// pemFiles are three settings that belong together.
type pemFiles struct {
	ca, cert, key             string // paths; empty: not set
	caName, certName, keyName string // the names of the settings
}

func (c Config) listenerFiles() pemFiles {
	return pemFiles{c.TLSClientCA, c.TLSCert, c.TLSKey, "TES_TLS_CLIENT_CA", "TES_TLS_CERT", "TES_TLS_KEY"}
}

func (c Config) natsFiles() pemFiles {
	return pemFiles{c.NATSCA, c.NATSCert, c.NATSKey, "TES_NATS_CA", "TES_NATS_CERT", "TES_NATS_KEY"}
}

func (c Config) peerFiles() pemFiles {
	return pemFiles{c.NeighboursCA, c.NeighboursCert, c.NeighboursKey, "TES_NEIGHBOURS_CA", "TES_NEIGHBOURS_CERT", "TES_NEIGHBOURS_KEY"}
}

// set lists the settings that have a value.
func (f pemFiles) set() (names, paths []string) {
	for _, one := range [][2]string{{f.caName, f.ca}, {f.certName, f.cert}, {f.keyName, f.key}} {
		if one[1] != "" {
			names, paths = append(names, one[0]), append(paths, one[1])
		}
	}
	return names, paths
}

// pair refuses a certificate without its key, and a key without its certificate.
func (f pemFiles) pair() error {
	if (f.cert == "") == (f.key == "") {
		return nil
	}
	is, isNot := f.certName, f.keyName
	if f.cert == "" {
		is, isNot = isNot, is
	}
	return &usageError{fmt.Sprintf("%s is set and %s is not: a certificate and its private key go together, so set both or neither", is, isNot)}
}

// watchIdentity watches a client's files; nil if no file is set.
func watchIdentity(log *slog.Logger, f pemFiles) (*watched[identity], error) {
	if err := f.pair(); err != nil {
		return nil, err
	}
	return f.watch(log)
}

// watch reads the files that are set. Its errors name the setting.
func (f pemFiles) watch(log *slog.Logger) (*watched[identity], error) {
	names, paths := f.set()
	if len(names) == 0 {
		return nil, nil // no file is set
	}

	for i, path := range paths { // one by one, so that the error names the setting
		if _, err := readRegular(path); err != nil {
			return nil, &usageError{names[i] + ": " + err.Error()}
		}
	}

	w, err := newWatched(log, names[0], paths, f.parse)
	if err != nil {
		return nil, &usageError{err.Error()}
	}

	return w, nil
}

// parse makes an identity from the texts of the files, in the order of set.
func (f pemFiles) parse(texts [][]byte) (id identity, err error) {
	// The texts are in the order of set: authorities, certificate, key. The authorities may be
	// missing.
	if f.ca != "" {
		if id.roots, err = authorities(texts[0]); err != nil {
			return identity{}, fmt.Errorf("%s: %s: %w", f.caName, f.ca, err)
		}
		texts = texts[1:]
	}

	if f.cert == "" {
		return id, nil
	}

	if _, err := authorities(texts[0]); err != nil {
		return identity{}, fmt.Errorf("%s: %s: %w", f.certName, f.cert, err)
	}

	if block, _ := pem.Decode(texts[1]); block == nil {
		return identity{}, fmt.Errorf("%s: %s: the file has no PEM block of a private key", f.keyName, f.key)
	}

	// X509KeyPair's own errors name no file, and the operator has three.
	own, err := tls.X509KeyPair(texts[0], texts[1])
	if err != nil {
		return identity{}, fmt.Errorf("%s: the key in %s does not fit the certificate in %s (%s); name the key that the certificate was made for, "+
			"unencrypted, and the certificate first in its file: %w", f.keyName, f.key, f.cert, f.certName, err)
	}

	id.own = &own
	return id, nil
}

// authorities reads every certificate of a PEM file. An unreadable certificate or a truncated file
// is an error: a pool that silently lacks an authority would refuse valid peers later.
func authorities(text []byte) (*x509.CertPool, error) {
	// AppendCertsFromPEM would leave out certificates that it cannot read.
	pool, found := x509.NewCertPool(), 0
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}

		text = rest
		if block.Type != "CERTIFICATE" {
			continue
		}

		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the file cannot be read: %w", found+1, err)
		}

		pool.AddCert(cert)
		found++
	}

	if found == 0 {
		return nil, errors.New("the file has no PEM block of a certificate")
	}
	if bytes.Contains(text, []byte(pemBegin)) {
		return nil, fmt.Errorf("the file ends in the middle of a PEM block, after %d certificates", found)
	}

	return pool, nil
}

// listenerTLS is the listener's TLS configuration; nil: plain HTTP. Each handshake uses the current
// files.
//
// The listener offers HTTP/1.1 only. Package api cuts the connections of clients that read or write
// too slowly, and in HTTP/2 many requests share a connection.
func (w *renewals) listenerTLS() *tls.Config {
	if w == nil || w.listener == nil {
		return nil
	}

	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			id := w.listener.get()
			now := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{*id.own}}
			if id.roots != nil {
				now.ClientAuth, now.ClientCAs = tls.RequireAndVerifyClientCert, id.roots
				now.SessionTicketsDisabled = true // tickets would outlive a removed authority
			}
			return now, nil
		},
	}
}

// natsTLS is the TLS configuration of each connection to the bus; nil: TES_NATS_URL alone decides.
func (w *renewals) natsTLS() (roots func() (*x509.CertPool, error), own func() (tls.Certificate, error)) {
	if w == nil || w.nats == nil {
		return nil, nil
	}

	// The client asks for both at each connection, so a renewed file is used from the next
	// reconnect on.
	roots = func() (*x509.CertPool, error) { return w.nats.get().roots, nil }
	if w.nats.get().own != nil {
		own = func() (tls.Certificate, error) { return *w.nats.get().own, nil }
	}

	return roots, own
}

// peersTLS is the TLS configuration of each connection to a peer service; nil: the system's
// authorities.
func (w *renewals) peersTLS() func() *tls.Config {
	if w == nil || w.peers == nil {
		return nil
	}

	return func() *tls.Config {
		id := w.peers.get()
		now := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: id.roots}
		if id.own != nil {
			now.Certificates = []tls.Certificate{*id.own}
		}
		return now
	}
}

// keysTransport is the transport for the Auth Service's keys; nil: the default transport.
func (w *renewals) keysTransport() http.RoundTripper {
	config := w.peersTLS()
	if config == nil {
		return nil
	}

	// The configuration of a transport is fixed once it is used, so each connection makes its own.
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil // connections of a proxy would bypass DialTLSContext; the peer services are in the same network
	transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: config()}
		return dialer.DialContext(ctx, network, address)
	}

	return transport
}
