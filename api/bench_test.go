package api_test

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/jobs"
)

// BenchmarkCreateTask is the hot path without the network: 256 requests at a time,
// a commit for each, many to a flush.
func BenchmarkCreateTask(b *testing.B) {
	pool := dbtest.New(b)
	tasks := jobs.New(pool, jobs.Config{})
	peers, err := peertest.Start(peertest.Config{})
	require.NoError(b, err)
	v, err := auth.NewVerifier(auth.Config{JWKS: peers.URL() + "/.well-known/jwks.json"})
	require.NoError(b, err)
	defer func() {
		v.Close()
		require.NoError(b, peers.Close(b.Context()))
	}()
	apiServer, err := api.New(api.Config{Tasks: tasks, Reads: pool, Verifier: v, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(b, err)
	handler, token := apiServer.Handler(), "Bearer "+peers.Token(orchestrator)
	body := []byte(`{"taskDefinitionId":"calculate-order-total","workflowId":"order-workflow-123","priority":"MEDIUM","taskType":"AUTOMATED","correlationId":"6f1f0d5e-0d8e-4d0e-9a77-0a6c9b6f1a01","executionConfig":{"executor":"noop"},"input":{"orderId":"ORD-123","items":[{"id":"ITEM-1","quantity":2,"price":10.99},{"id":"ITEM-2","quantity":1,"price":24.99}],"taxRate":0.08}}`)
	b.ReportAllocs()
	b.SetParallelism(128)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := httptest.NewRequest(http.MethodPost, tasksPath, bytes.NewReader(body))
			r.Header.Set("Authorization", token)
			r.Header.Set("Content-Type", "application/json")
			w := &discard{header: http.Header{}}
			handler.ServeHTTP(w, r)
			if w.status != http.StatusCreated {
				b.Errorf("%d", w.status)
			}
		}
	})
}

type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) WriteHeader(status int)      { d.status = status }
func (d *discard) Write(p []byte) (int, error) { return io.Discard.Write(p) }
