package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// losing is a proxy that loses the answer to every tenth dequeue after the server
// has given it.
func losing(t *testing.T, to string) (address string, lost *atomic.Int64) {
	t.Helper()
	lost = &atomic.Int64{}
	target, err := url.Parse(to)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	dice := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the seed is the test's
	var mu sync.Mutex
	proxy.ModifyResponse = func(resp *http.Response) error {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasSuffix(resp.Request.URL.Path, "/leases") && dice.IntN(10) == 0 {
			_, _ = io.Copy(io.Discard, resp.Body) // the server has done its part
			lost.Add(1)
			return errors.New("lost")
		}
		return nil
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	return server.URL, lost
}

// A lost answer costs a worker one more request, and no task a lease: all are done
// in their first attempt, long before a lease could run out.
func TestLostDequeueAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const tasks, workers = 300, 8
	var items []any
	for range tasks {
		items = append(items, object{
			"taskDefinitionId": "render-report", "workflowId": "lost", "taskType": "AUTOMATED", "input": object{},
			"executionConfig": object{"executor": "worker", "visibilityTimeout": 600_000},
		})
	}
	b.ask(t, orchestrator, "POST", tasksPath+"/batch", object{"tasks": items}).is(t, 200)
	address, lost := losing(t, b.url)
	token := b.auth.Token("task-worker")
	post := func(ctx context.Context, path string, body object, into any) error {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		for {
			req, err := http.NewRequestWithContext(ctx, "POST", address+"/api/internal/leases"+path, strings.NewReader(string(text)))
			if err != nil {
				return err
			}
			req.Header.Set("Authorization", "Bearer "+token)
			req.Header.Set("Content-Type", "application/json")
			resp, err := http.DefaultClient.Do(req)
			var dropped net.Error
			if err != nil && (errors.Is(err, io.EOF) || errors.As(err, &dropped)) && ctx.Err() == nil {
				continue
			}
			if err != nil {
				return err
			}
			text, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %d %s %w", path, resp.StatusCode, text, err)
			}
			return json.Unmarshal(text, into)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	failed := make(chan error, workers)
	for w := range workers {
		all.Go(func() {
			for n := 0; ; n++ {
				var answer struct{ Leases []struct{ LeaseToken string } }
				if err := post(ctx, "", object{"workerId": fmt.Sprint("w-", w), "requestId": fmt.Sprint(n), "maxTasks": 2}, &answer); err != nil {
					failed <- err
					return
				}
				if len(answer.Leases) == 0 {
					return
				}
				for _, l := range answer.Leases {
					if err := post(ctx, "/"+l.LeaseToken+"/complete", object{}, &struct{}{}); err != nil {
						failed <- err
						return
					}
				}
			}
		})
	}
	all.Wait()
	close(failed)
	for err := range failed {
		require.NoError(t, err)
	}
	require.Positive(t, lost.Load())
	var done int
	require.NoError(t, b.pool.QueryRow(t.Context(), "SELECT count(*) FROM task WHERE status = 'COMPLETED' AND attempt = 1 AND version = 3").Scan(&done))
	require.Equal(t, tasks, done)
}
