// Command go is a tes worker: TES_URL=… TES_TOKEN_FILE=… go run ./docs/workers/go
// The worker reads the file for each call, so that you can renew the token; TES_TOKEN is a token
// itself. Ctrl-C or SIGTERM releases the task at hand. Replace work.
package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

var (
	url    = cmp.Or(os.Getenv("TES_URL"), "http://127.0.0.1:8080") + "/api/internal/leases"
	worker = cmp.Or(os.Getenv("WORKER_ID"), fmt.Sprintf("go-%d", os.Getpid()))
	client = http.Client{Timeout: 90 * time.Second} // longer than any dequeue waits
)

const lastWords = 10 * time.Second // to wait for an absent server when the worker stops

type lease struct {
	LeaseToken string `json:"leaseToken"`
	Message    struct {
		TaskID            string          `json:"taskId"`
		Input             json.RawMessage `json:"input"`
		VisibilityTimeout int64           `json:"visibilityTimeout"` // ms
	} `json:"message"`
}

// work executes a task. ctx ends if the task was cancelled or its lease is lost.
func work(_ context.Context, _ lease) (output any, err error) { //nolint:unparam // yours can fail
	return map[string]any{"by": worker}, nil
}

// post sends the call again until there is an answer, or ctx ends: every call may be repeated. 401
// means an expired token, 429 and 5xx a busy server: the lease is not concerned.
func post(ctx context.Context, path string, body, answer any) (status int) {
	text, _ := json.Marshal(body)
	for ctx.Err() == nil {
		token := []byte(os.Getenv("TES_TOKEN"))
		if file := os.Getenv("TES_TOKEN_FILE"); file != "" {
			token, _ = os.ReadFile(file) //nolint:gosec // the person who starts the worker names the file; a missing file is a 401
		}
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, url+path, bytes.NewReader(text))
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if status = 0; err == nil {
			status, err = resp.StatusCode, json.NewDecoder(resp.Body).Decode(answer)
			_ = resp.Body.Close()
			if err == nil && status < 500 && status != http.StatusUnauthorized && status != http.StatusTooManyRequests {
				return status
			}
		}
		fmt.Fprintln(os.Stderr, worker, "asks again:", status, err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return 0
}

func run(stop context.Context, l lease) {
	path := "/" + l.LeaseToken
	ctx, lost := context.WithCancel(stop)
	go func() { // three heartbeats in each visibility timeout
		for beat := time.Tick(time.Duration(l.Message.VisibilityTimeout) * time.Millisecond / 3); ctx.Err() == nil; {
			select {
			case <-ctx.Done():
				return
			case <-beat:
			}
			var answer struct{ Directive string }
			if status := post(ctx, path+"/heartbeat", struct{}{}, &answer); status >= 400 || answer.Directive == "CANCEL" {
				lost()
			}
		}
	}()
	output, err := work(ctx, l)
	over := ctx.Err() != nil && stop.Err() == nil
	lost()
	var answer any
	end, body := "/complete", map[string]any{"output": output}
	switch {
	case over:
		return // another attempt has the task, or the task has ended
	case err != nil && stop.Err() != nil:
		end, body = "/release", map[string]any{"reason": "the worker stops"}
	case err != nil: // the task's retry policy decides what follows
		end, body = "/fail", map[string]any{"errorCode": "WORK_FAILED", "errorMessage": err.Error()}
	}
	last, cancel := context.WithCancel(context.WithoutCancel(stop))
	defer cancel()
	defer context.AfterFunc(stop, func() { time.AfterFunc(lastWords, cancel) })()
	fmt.Println(worker, l.Message.TaskID, end, post(last, path+end, body, &answer))
}

func main() {
	stop, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	for stop.Err() == nil {
		var answer struct{ Leases []lease }
		if status := post(stop, "", map[string]any{"workerId": worker, "requestId": rand.Text(), "waitMs": 5000}, &answer); status >= 400 {
			panic(status) // 403 or 422: a repetition would not help
		}
		for _, l := range answer.Leases {
			run(stop, l)
		}
	}
}
