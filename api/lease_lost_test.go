package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs/check"
)

var (
	seed      = flag.Uint64("seed", 1, "what chance decides in the tests of this kind")
	lostTasks = flag.Int("lost-tasks", 300, "how many tasks TestLostDequeueAnswers has done")
)

// longestLoss is how long a task may wait because an answer was lost.
const longestLoss = 5 * time.Second

// losing is a proxy that loses the answers to a tenth of the dequeues after the server
// has given them.
func losing(t *testing.T, to string) (address string, lost *atomic.Int64) {
	t.Helper()
	lost = &atomic.Int64{}
	target, err := url.Parse(to)
	require.NoError(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	dice := rand.New(rand.NewPCG(*seed, 0))
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

// A lost answer costs a worker one more request, and no task a lease: all are done in
// their first attempt, long before a lease could run out, and none waits for it.
func TestLostDequeueAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const workers, batch, ahead = 8, 10, 40
	tasks := *lostTasks / batch * batch
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
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(tasks)*50*time.Millisecond)
	defer cancel()
	var all sync.WaitGroup
	failed := make(chan error, workers)
	room := make(chan struct{}, tasks+ahead) // one for each task that may be made
	for range ahead {
		room <- struct{}{}
	}
	var done atomic.Int64
	for w := range workers {
		all.Go(func() {
			for n := 0; done.Load() < int64(tasks); n++ {
				var answer struct{ Leases []struct{ LeaseToken string } }
				if err := post(ctx, "", object{"workerId": fmt.Sprint("w-", w), "requestId": fmt.Sprint(n), "maxTasks": 2, "waitMs": 500}, &answer); err != nil {
					failed <- err
					cancel()
					return
				}
				for _, l := range answer.Leases {
					if err := post(ctx, "/"+l.LeaseToken+"/complete", object{}, &struct{}{}); err != nil {
						failed <- err
						cancel()
						return
					}
					done.Add(1)
					room <- struct{}{}
				}
			}
		})
	}
	for range tasks / batch {
		var items []any
		for range batch {
			select {
			case <-room:
			case <-ctx.Done():
			}
			items = append(items, object{
				"taskDefinitionId": "render-report", "workflowId": "lost", "taskType": "AUTOMATED", "input": object{},
				"executionConfig": object{"executor": "worker", "visibilityTimeout": 600_000},
			})
		}
		b.ask(t, orchestrator, "POST", tasksPath+"/batch", object{"tasks": items}).is(t, 200)
	}
	all.Wait()
	close(failed)
	for err := range failed {
		require.NoError(t, err)
	}
	var first int
	var waits []float64 // p50, p99, the longest, in seconds
	require.NoError(t, b.pool.QueryRow(t.Context(), `
		SELECT
			count(*) FILTER (WHERE status = 'COMPLETED' AND attempt = 1 AND version = 3),
			percentile_disc(ARRAY[0.5, 0.99, 1]) WITHIN GROUP (ORDER BY extract(epoch FROM ended_at - created_at)::float8)
		FROM task`).Scan(&first, &waits))
	line, err := json.Marshal(object{
		"test": t.Name(), "seed": *seed, "tasks": tasks, "answersLost": lost.Load(),
		"p50Ms": int(waits[0] * 1000), "p99Ms": int(waits[1] * 1000), "longestMs": int(waits[2] * 1000),
	})
	require.NoError(t, err)
	fmt.Fprintf(os.Stdout, "%s\n", line)
	require.Equal(t, tasks, first)
	require.Positive(t, lost.Load())
	require.Less(t, waits[2], longestLoss.Seconds())
	report, err := check.Run(t.Context(), b.pool, check.Options{AtRest: true})
	require.NoError(t, err)
	require.Empty(t, report.Offending())
	require.Zero(t, report.Incomplete)
}
