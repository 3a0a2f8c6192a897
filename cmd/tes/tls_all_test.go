package main

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/certtest"
)

// Serve speaks TLS to the peer services, the keys of Auth included, and to NATS, and shows each of
// them its certificate.
func TestServeSpeaksTLSToAll(t *testing.T) {
	t.Parallel()
	b := setupServe(t, false)
	ca, dir := certtest.NewCA(t, "one"), t.TempDir()
	both := func(name string) tls.Certificate { return ca.Issue(name, "127.0.0.1").TLS(t) }
	demand := &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{both("server")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(),
	}

	to, err := url.Parse(b.peers.URL())
	require.NoError(t, err)
	var mu sync.Mutex
	asked := map[string]string{} // by path, the name of the client
	proxy := httputil.NewSingleHostReverseProxy(to)
	there := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.URL.Path] = r.TLS.PeerCertificates[0].Subject.CommonName
		mu.Unlock()
		proxy.ServeHTTP(w, r)
	}))
	there.TLS = demand
	there.StartTLS()
	t.Cleanup(func() {
		there.CloseClientConnections()
		there.Close()
	})

	bus, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		TLS: true, TLSConfig: demand.Clone(), TLSTimeout: patience.Seconds(),
	})
	require.NoError(t, err)
	bus.Start()
	t.Cleanup(func() {
		bus.Shutdown()
		bus.WaitForShutdown()
	})
	require.True(t, bus.ReadyForConnections(patience))

	own := ca.Issue("tes")
	root, cert, key := certtest.Write(t, dir, "ca", ca.PEM()), certtest.Write(t, dir, "cert", own.Cert), certtest.Write(t, dir, "key", own.Key)
	env := append(b.env, "TES_NEIGHBOURS_URL="+there.URL, "TES_NEIGHBOURS_CA="+root, "TES_NEIGHBOURS_CERT="+cert, "TES_NEIGHBOURS_KEY="+key,
		"TES_NATS_URL="+bus.ClientURL(), "TES_NATS_CA="+root, "TES_NATS_CERT="+cert, "TES_NATS_KEY="+key)
	p := start(t, env, "serve", "--http", "127.0.0.1:0")
	api := serving(t, p)
	readyz(t, api, http.StatusOK, `"bus":"ok"`)
	orchestrator := b.peers.Token("workflow-orchestrator")
	must(t, http.StatusCreated, "PUT", api+definitionsPath+"/mail", orchestrator, object{
		"name": "Mail", "type": "INTEGRATION", "version": "1.0.0",
		"executionConfig": object{"integration": object{"type": "REST", "method": "lookup", "instance": "mail"}},
	})
	created := must(t, http.StatusCreated, "POST", api+tasksPath, orchestrator, object{
		"taskDefinitionId": "mail", "workflowId": "w", "input": object{"to": "a@example.com"},
	})
	reaches(t, api, orchestrator, created["taskId"], "COMPLETED")
	mu.Lock()
	require.Equal(t, "tes", asked["/.well-known/jwks.json"])
	require.Equal(t, "tes", asked["/api/integrations/mail/invoke"])
	mu.Unlock()
	eventually(t, patience, func() error {
		if n := number(t, b.dsn, "SELECT count(*) FROM outbox"); n > 0 {
			return errors.New("events are not published")
		}
		return nil
	})
	require.Equal(t, exitOK, p.stop(t))
}
