package main

import (
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/certtest"
)

// tlsClient makes a connection for each request: every one is a handshake.
func tlsClient(t *testing.T, config *tls.Config) *http.Client {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

// get answers the status, and the serial number of the server's certificate.
func get(t *testing.T, with *http.Client, url string) (status int, serial string, err error) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	response, err := with.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.Copy(io.Discard, response.Body)
	require.Equal(t, 1, response.ProtoMajor)
	if response.TLS != nil {
		serial = response.TLS.PeerCertificates[0].SerialNumber.String()
	}
	return response.StatusCode, serial, nil
}

// presents waits until handshakes get this certificate.
func presents(t *testing.T, with *http.Client, url, serial string) {
	t.Helper()
	eventually(t, patience, func() error {
		_, got, err := get(t, with, url)
		if err == nil && got != serial {
			err = errors.New("it presents another certificate")
		}
		return err
	})
}

// The listener speaks TLS, 1.2 at least, and presents a renewed certificate from the next
// handshake on; while the new files do not fit, the old ones are in use, and that is said once.
func TestServeOverTLS(t *testing.T) {
	t.Parallel()
	b := setupServe(t, false)
	ca, dir := certtest.NewCA(t, "one"), t.TempDir()
	first, second := ca.Issue("tes", "127.0.0.1"), ca.Issue("tes", "127.0.0.1")
	env := append(b.env, "TES_TLS_CERT="+certtest.Write(t, dir, "cert", first.Cert), "TES_TLS_KEY="+certtest.Write(t, dir, "key", first.Key))
	p := start(t, env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	require.True(t, strings.HasPrefix(api, "https://127.0.0.1:"), api)
	knows := tlsClient(t, &tls.Config{RootCAs: ca.Pool()})
	status, serial, err := get(t, knows, api+"/readyz")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, first.Serial(t), serial)

	// Whoever does not know the authority, speaks no TLS, or an old one, is not served.
	_, _, err = get(t, tlsClient(t, &tls.Config{RootCAs: certtest.NewCA(t, "two").Pool()}), api+"/livez")
	require.ErrorContains(t, err, "unknown authority")
	_, _, err = get(t, tlsClient(t, &tls.Config{RootCAs: ca.Pool(), MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}), api+"/livez")
	require.ErrorContains(t, err, "protocol version")
	status, _, err = get(t, client, strings.Replace(api, "https:", "http:", 1)+"/livez")
	require.NoError(t, err)
	require.Equal(t, http.StatusBadRequest, status)

	code, stdout, stderr := tes(t, append(slices.Clone(env), "TES_HTTP="+strings.TrimPrefix(api, "https://")), "healthcheck")
	require.Equal(t, exitOK, code, stderr)
	require.Contains(t, stdout, "ok")

	// The key of another certificate: the old pair stays, whatever number of handshakes asks.
	certtest.Write(t, dir, "key", second.Key)
	const kept = `"msg":"a setting's file cannot be used: what it held before stays in use"`
	eventually(t, patience, func() error {
		presents(t, knows, api+"/livez", first.Serial(t))
		if !strings.Contains(p.stderr.String(), kept) {
			return errors.New("it does not say that the key does not fit")
		}
		return nil
	})
	certtest.Write(t, dir, "cert", second.Cert)
	presents(t, knows, api+"/livez", second.Serial(t))
	require.Equal(t, 1, strings.Count(p.stderr.String(), kept), p.stderr)
	require.Contains(t, p.stderr.String(), "TES_TLS_KEY: the key in ")
	require.NotContains(t, p.stderr.String(), "PRIVATE KEY")
	require.Equal(t, exitOK, p.stop(t))
}

// With TES_TLS_CLIENT_CA nobody is served without a certificate of its authorities, probes
// included; an authority that is taken away is believed no more.
func TestServeDemandsClientCertificates(t *testing.T) {
	t.Parallel()
	b := setupServe(t, false)
	ca, old, young, dir := certtest.NewCA(t, "servers"), certtest.NewCA(t, "old"), certtest.NewCA(t, "young"), t.TempDir()
	own := ca.Issue("tes", "127.0.0.1")
	env := append(b.env, "TES_TLS_CERT="+certtest.Write(t, dir, "cert", own.Cert), "TES_TLS_KEY="+certtest.Write(t, dir, "key", own.Key),
		"TES_TLS_CLIENT_CA="+certtest.Write(t, dir, "ca", old.PEM()))
	p := start(t, env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	as := func(ca2 *certtest.CA) *http.Client {
		return tlsClient(t, &tls.Config{
			RootCAs: ca.Pool(), Certificates: []tls.Certificate{ca2.Issue("caller").TLS(t)}, ClientSessionCache: tls.NewLRUClientSessionCache(8),
		})
	}
	asOld, asYoung := as(old), as(young)
	for _, path := range []string{"/livez", "/readyz", "/openapi.yaml"} {
		_, _, err := get(t, tlsClient(t, &tls.Config{RootCAs: ca.Pool()}), api+path)
		require.ErrorContains(t, err, "certificate required", path)
		_, _, err = get(t, asYoung, api+path)
		require.Error(t, err, path)
		status, _, err := get(t, asOld, api+path)
		require.NoError(t, err, path)
		require.Equal(t, http.StatusOK, status, path)
	}

	certtest.Write(t, dir, "ca", append(old.PEM(), young.PEM()...))
	eventually(t, patience, func() error { _, _, err := get(t, asYoung, api+"/livez"); return err })
	_, _, err := get(t, asOld, api+"/livez")
	require.NoError(t, err)
	certtest.Write(t, dir, "ca", young.PEM())
	eventually(t, patience, func() error {
		if _, _, err := get(t, asOld, api+"/livez"); err == nil {
			return errors.New("the old authority is believed still")
		}
		return nil
	})
	_, _, err = get(t, asYoung, api+"/livez")
	require.NoError(t, err)
	require.Equal(t, exitOK, p.stop(t))
}

// A setting that cannot be is told with its name and its file, and no secret, and ends serve
// with 2 before anything is started.
func TestTLSSettingsAreRefused(t *testing.T) {
	t.Parallel()
	ca, dir := certtest.NewCA(t, "one"), t.TempDir()
	one, two := ca.Issue("tes", "127.0.0.1"), ca.Issue("tes", "127.0.0.1")
	file := func(name string, text []byte) string { return certtest.Write(t, dir, name, text) }
	cert, key, other, bundle := file("cert", one.Cert), file("key", one.Key), file("other", two.Key), file("ca", ca.PEM())
	text, cut := file("text", []byte("no certificate\n")), file("cut", append(ca.PEM(), ca.PEM()[:200]...))
	pem := string(one.Key)
	for _, wrong := range []struct {
		env  []string
		says []string
	}{
		{[]string{"TES_TLS_CERT=" + cert}, []string{"tes: TES_TLS_CERT is set and TES_TLS_KEY is not: ", "set both or neither"}},
		{[]string{"TES_TLS_KEY=" + key}, []string{"tes: TES_TLS_KEY is set and TES_TLS_CERT is not: "}},
		{[]string{"TES_TLS_CERT=" + cert, "TES_TLS_KEY=" + other}, []string{"tes: TES_TLS_KEY: the key in " + other + " does not fit the certificate in " + cert + " (TES_TLS_CERT)", "name the key"}},
		{[]string{"TES_TLS_CERT=" + cert, "TES_TLS_KEY=/no/such"}, []string{"tes: TES_TLS_KEY: stat /no/such: no such file or directory: name a file"}},
		{[]string{"TES_TLS_CERT=" + dir, "TES_TLS_KEY=" + key}, []string{"tes: TES_TLS_CERT: " + dir + ": it is not a regular file"}},
		{[]string{"TES_TLS_CERT=" + text, "TES_TLS_KEY=" + key}, []string{"tes: TES_TLS_CERT: " + text + ": the file has no PEM block of a certificate"}},
		{[]string{"TES_TLS_CERT=" + cert, "TES_TLS_KEY=" + cert}, []string{"tes: TES_TLS_KEY: "}},
		{[]string{"TES_TLS_CERT=" + cert, "TES_TLS_KEY=" + text}, []string{"tes: TES_TLS_KEY: " + text + ": the file has no PEM block of a private key"}},
		{[]string{"TES_TLS_CERT=" + cert, "TES_TLS_KEY=" + pem}, []string{"tes: TES_TLS_KEY: the value is the content of a PEM file, and must be the path"}},
		{[]string{"TES_TLS_CERT=" + cert, "TES_TLS_KEY_FILE=" + key}, []string{"tes: TES_TLS_KEY: the value is the content of a PEM file", "without _FILE"}},
		{[]string{"TES_TLS_CLIENT_CA=" + bundle}, []string{"tes: TES_TLS_CLIENT_CA is set and TES_TLS_CERT is not: "}},
		{[]string{"TES_TLS_CERT=" + cert, "TES_TLS_KEY=" + key, "TES_TLS_CLIENT_CA=" + cut}, []string{"tes: TES_TLS_CLIENT_CA: " + cut + ": the file ends in the middle of a PEM block"}},
		{[]string{"TES_NATS_CA=" + bundle}, []string{"tes: TES_NATS_CA is set and TES_NATS_URL is not: "}},
		{[]string{"TES_NATS_CA=" + text, "TES_NATS_URL=tls://127.0.0.1:1"}, []string{"tes: TES_NATS_CA: " + text}},
		{[]string{"TES_NATS_CERT=" + cert, "TES_NATS_URL=tls://127.0.0.1:1"}, []string{"tes: TES_NATS_CERT is set and TES_NATS_KEY is not: "}},
		{[]string{"TES_NEIGHBOURS_CA=/no/such"}, []string{"tes: TES_NEIGHBOURS_CA: stat /no/such: "}},
		{[]string{"TES_NEIGHBOURS_CERT=" + cert, "TES_NEIGHBOURS_KEY=" + other}, []string{"tes: TES_NEIGHBOURS_KEY: the key in " + other}},
	} {
		env := environ(append(wrong.env, "TES_DATABASE_URL=postgres://tes@127.0.0.1:1/tes", "TES_NEIGHBOURS_URL=http://127.0.0.1:1", "TES_DATA_DIR="+dir)...)
		code, stdout, stderr := tes(t, env, "serve", "--http", "127.0.0.1:0")
		require.Equal(t, exitUsage, code, "%v\n%s", wrong.env, stderr)
		require.Empty(t, stdout)
		for _, text := range wrong.says {
			require.Contains(t, stderr, text)
		}
		require.NotContains(t, stderr, "PRIVATE KEY", "a key is told")
	}
}
