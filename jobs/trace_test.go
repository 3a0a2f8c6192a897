package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/seed-3f7a0631/tes/db"
)

const (
	askedTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	askedSpan   = "00f067aa0ba902b7"
	traceparent = "00-" + askedTrace + "-" + askedSpan + "-01"
	unsampled   = "00-" + askedTrace + "-" + askedSpan + "-00"
)

func asked(header string) func(*Request) { return func(req *Request) { req.Traceparent = header } }

// recording is a process that tells of its attempts, and what it told.
func recording() (*tracetest.SpanRecorder, func(*Config)) {
	told := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(told), sdktrace.WithIDGenerator(wished{}))
	return told, func(cfg *Config) { cfg.Tracer = provider.Tracer("test") }
}

// wished gives spans the ids that they ask for, and others any.
type wished struct{}

func (wished) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if id, span, ok := PresetSpanIDs(ctx); ok {
		return id, span
	}
	return trace.TraceID{1, byte(rand.IntN(256))}, trace.SpanID{1, byte(rand.IntN(256))}
}

func (w wished) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	_, span := w.NewIDs(ctx)
	return span
}

// attempts are the spans of attempts that were told, once there are n; more is
// never right.
func attempts(t *testing.T, told *tracetest.SpanRecorder, n int) []sdktrace.ReadOnlySpan {
	t.Helper()
	var found []sdktrace.ReadOnlySpan
	waitFor(t, fmt.Sprintf("%d attempts to be told", n), func() bool {
		found = slices.DeleteFunc(told.Ended(), func(s sdktrace.ReadOnlySpan) bool { return s.Name() != "task.attempt" })
		return len(found) >= n
	})
	require.Len(t, found, n)
	return found
}

func attr(s sdktrace.ReadOnlySpan, name string) string {
	for _, a := range s.Attributes() {
		if a.Key == attribute.Key(name) {
			return a.Value.String()
		}
	}
	return ""
}

func outcomes(found []sdktrace.ReadOnlySpan) (out []string) {
	for _, s := range found {
		out = append(out, attr(s, "tes.task.attempt")+" "+attr(s, "tes.task.outcome"))
	}
	return out
}

// One trace over all attempts: each is a child of the request's span, has the id that
// is known beforehand, and is linked to the one before.
func TestAttemptsAreSpansOfOneTrace(t *testing.T) {
	t.Parallel()
	const canary = "canary-5b1e"
	told, traced := recording()
	b := setup(t, traced)
	b.work(noop(func(ctx context.Context, job Job) (Result, error) {
		_, child := trace.SpanFromContext(ctx).TracerProvider().Tracer("handler").Start(ctx, "child")
		child.End()
		if job.Attempt < 3 {
			return Result{}, &Failure{Code: "FLAKY", Message: canary, Details: json.RawMessage(`{"secret": "` + canary + `"}`), StackTrace: canary}
		}
		return Result{Output: json.RawMessage(`{"secret": "` + canary + `"}`)}, nil
	}))
	task := b.create(asked(traceparent), policy(RetryPolicy{MaxRetries: 2, RetryInterval: 1}), func(req *Request) {
		req.Input, req.Context = json.RawMessage(`{"secret": "`+canary+`"}`), json.RawMessage(`{"secret": "`+canary+`"}`)
	})
	b.becomes(task.TaskID, Completed)

	found := attempts(t, told, 3)
	require.Equal(t, []string{"1 FAILED", "2 FAILED", "3 COMPLETED"}, outcomes(found))
	for i, s := range found {
		require.Equal(t, askedTrace, s.SpanContext().TraceID().String())
		require.Equal(t, askedSpan, s.Parent().SpanID().String())
		require.Equal(t, attemptSpanID(task.TaskID, int32(i+1)), s.SpanContext().SpanID())
		require.Equal(t, task.TaskID.String(), attr(s, "tes.task.id"))
		require.Equal(t, "AUTOMATED", attr(s, "tes.task.type"))
		require.Equal(t, "adhoc", attr(s, "tes.task.definition"))
		lane := LaneAutomated
		if i > 0 {
			lane = LaneRetry
			require.Len(t, s.Links(), 1)
			require.Equal(t, found[i-1].SpanContext().SpanID(), s.Links()[0].SpanContext.SpanID())
			require.False(t, s.StartTime().Before(found[i-1].EndTime()))
		}
		require.Equal(t, lane, attr(s, "tes.task.lane"))
		if i < 2 {
			require.Equal(t, "FLAKY", attr(s, "error.type"))
			require.Equal(t, codes.Error, s.Status().Code)
		}
		require.False(t, s.EndTime().Before(s.StartTime()))
	}
	children := 0
	for _, s := range told.Ended() {
		require.NotContains(t, fmt.Sprint(s.Name(), s.Attributes(), s.Status(), s.Events(), s.Links()), canary)
		if s.Name() == "child" {
			children++
			require.True(t, slices.ContainsFunc(found, func(a sdktrace.ReadOnlySpan) bool { return a.SpanContext().Equal(s.Parent()) }))
		}
	}
	require.Equal(t, 3, children)
	require.Equal(t, 3, ask[int](b, "SELECT count(*) FROM river_job WHERE metadata ->> 'traceparent' = $1", traceparent), "every attempt's job tells of it")
}

// Whoever ends an attempt tells of it, once, wherever it ran.
func TestWhoEndsAnAttemptTellsOfIt(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		end  func(t *testing.T, b *testBundle) db.Task
		want []string
	}{
		"a worker completes": {func(t *testing.T, b *testBundle) db.Task {
			task := b.create(remote, asked(traceparent))
			lease := b.dequeueOne("w")
			require.Equal(t, "00-"+askedTrace+"-"+attemptSpanID(task.TaskID, 1).String()+"-01", lease.Traceparent, "its spans are the attempt's children")
			for range 2 { // the second is the first, sent twice
				_, err := b.Leases.Complete(b.ctx, "", lease.Token, json.RawMessage(`{}`))
				require.NoError(t, err)
			}
			return task
		}, []string{"1 COMPLETED"}},
		"a worker fails, and another completes": {func(t *testing.T, b *testBundle) db.Task {
			task := b.create(remote, asked(traceparent), policy(RetryPolicy{MaxRetries: 1, RetryInterval: 1}))
			_, err := b.Leases.Fail(b.ctx, "", b.dequeueOne("w").Token, &Failure{Code: "X"}, 0)
			require.NoError(t, err)
			_, err = b.Leases.Complete(b.ctx, "", b.dequeueOne("w").Token, nil)
			require.NoError(t, err)
			return task
		}, []string{"1 FAILED", "2 COMPLETED"}},
		"a worker gives back, and another completes": {func(t *testing.T, b *testBundle) db.Task {
			task := b.create(remote, asked(traceparent))
			_, err := b.Leases.Release(b.ctx, "", b.dequeueOne("w").Token, 0, "")
			require.NoError(t, err)
			_, err = b.Leases.Complete(b.ctx, "", b.dequeueOne("w").Token, nil)
			require.NoError(t, err)
			return task
		}, []string{"1 COMPLETED"}},
		"a lease runs out": {func(t *testing.T, b *testBundle) db.Task {
			task := b.create(remote, asked(traceparent))
			late := b.dequeueOne("w")
			b.expire(task.TaskID)
			b.work(nil)
			b.until(task.TaskID, "free again", func(task db.Task) bool { return task.Status == db.TaskStatusPENDING })
			_, err := b.Leases.Complete(b.ctx, "", late.Token, nil)
			require.ErrorIs(t, err, ErrLeaseLost)
			_, err = b.Leases.Complete(b.ctx, "", b.dequeueOne("w").Token, nil)
			require.NoError(t, err)
			return task
		}, []string{"1 LEASE_EXPIRED", "2 COMPLETED"}},
		"a response comes": {func(t *testing.T, b *testBundle) db.Task {
			task := b.awaits(asked(traceparent))
			said, err := b.Respond(b.ctx, answer(task))
			require.NoError(t, err)
			require.Equal(t, "completed", said)
			return task
		}, []string{"1 COMPLETED"}},
		"it is cancelled under its executor": {func(t *testing.T, b *testBundle) db.Task {
			begun, over := make(chan struct{}), make(chan struct{})
			b.work(noop(func(ctx context.Context, _ Job) (Result, error) {
				close(begun)
				<-ctx.Done()
				close(over)
				return Result{Output: json.RawMessage(`{"late": true}`)}, nil
			}))
			task := b.create(asked(traceparent))
			receive(t, begun)
			_, err := b.Cancel(b.ctx, task.TaskID, Actor{Name: "o"})
			require.NoError(t, err)
			receive(t, over)
			return task
		}, []string{"1 CANCELLED"}},
		"it is ended by hand": {func(t *testing.T, b *testBundle) db.Task {
			task := b.create(remote, asked(traceparent))
			b.dequeueOne("w")
			_, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "o"}, Update{Status: Failed, Error: &Failure{Code: "NO"}})
			require.NoError(t, err)
			return task
		}, []string{"1 FAILED"}},
		"it is ended by hand before it begins": {func(t *testing.T, b *testBundle) db.Task {
			task := b.create(remote, asked(traceparent))
			_, err := b.SetStatus(b.ctx, task.TaskID, Actor{Name: "o"}, Update{Status: Failed})
			require.NoError(t, err)
			return task
		}, []string{"1 FAILED"}},
		"its timeout passes": {func(t *testing.T, b *testBundle) db.Task {
			free := make(chan struct{})
			b.work(noop(func(context.Context, Job) (Result, error) {
				<-free
				return Result{}, nil
			}))
			task := b.create(asked(traceparent), timeout(20*time.Millisecond))
			b.becomes(task.TaskID, TimedOut)
			close(free)
			return task
		}, []string{"1 TIMED_OUT"}},
		"a neighbour is away at first": {func(t *testing.T, b *testBundle) db.Task {
			var been atomic.Bool
			b.work(noop(func(context.Context, Job) (Result, error) {
				if !been.Swap(true) {
					return Result{}, &Outage{PeerService: "n", Err: errors.New("refused")}
				}
				return Result{}, nil
			}))
			task := b.create(asked(traceparent))
			b.until(task.TaskID, "given back", func(task db.Task) bool { return strings.Contains(b.story(task.TaskID), "released") })
			b.exec("UPDATE river_job SET scheduled_at = now(), state = 'available' WHERE id = $1", b.get(task.TaskID).JobID)
			b.becomes(task.TaskID, Completed)
			return task
		}, []string{"1 COMPLETED"}},
		"a person completes": {func(t *testing.T, b *testBundle) db.Task {
			b.work(assigning("jane"))
			task := b.create(manual, asked(traceparent))
			b.becomes(task.TaskID, Assigned)
			_, err := b.Worklist.Complete(b.ctx, task.TaskID, Actor{Name: "ui"}, "jane", nil, "")
			require.NoError(t, err)
			return task
		}, []string{"1 COMPLETED"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			told, traced := recording()
			b := setup(t, traced)
			task := tc.end(t, b)
			found := attempts(t, told, len(tc.want))
			require.Equal(t, tc.want, outcomes(found))
			for i, s := range found {
				require.Equal(t, askedTrace, s.SpanContext().TraceID().String())
				require.Equal(t, askedSpan, s.Parent().SpanID().String())
				require.Equal(t, attemptSpanID(task.TaskID, int32(i+1)), s.SpanContext().SpanID())
			}
			if task.Type == db.TaskTypeMANUAL {
				assigned := told.Ended()[0]
				require.Equal(t, "task.assign", assigned.Name())
				require.Equal(t, "ASSIGNED", attr(assigned, "tes.task.outcome"))
				require.Equal(t, askedSpan, assigned.Parent().SpanID().String())
			}
		})
	}
}

// A task that came by no traced request has one trace too.
func TestTaskWithoutATraceparentHasATrace(t *testing.T) {
	t.Parallel()
	told, traced := recording()
	b := setup(t, traced)
	b.work(noop(func(_ context.Context, job Job) (Result, error) {
		if job.Attempt < 2 {
			return Result{}, errors.New("once")
		}
		return Result{}, nil
	}))
	task := b.create(policy(RetryPolicy{MaxRetries: 1, RetryInterval: 1}))
	for _, s := range attempts(t, told, 2) {
		require.Equal(t, trace.TraceID(task.TaskID), s.SpanContext().TraceID())
		require.False(t, s.Parent().IsValid())
	}
}

// Whoever asked has decided that this trace is not taken. What is called must know it.
func TestUnsampledTraceIsNotTold(t *testing.T) {
	t.Parallel()
	told, traced := recording()
	b := setup(t, traced)
	seen := make(chan string, 1)
	b.work(noop(func(ctx context.Context, _ Job) (Result, error) {
		seen <- Traceparent(ctx)
		return Result{}, nil
	}))
	b.becomes(b.create(asked(unsampled)).TaskID, Completed)
	header := receive(t, seen)
	require.Equal(t, "00-"+askedTrace, header[:35])
	require.Equal(t, "-00", header[52:])
	b.create(remote, asked(unsampled))
	require.Equal(t, unsampled, b.dequeueOne("w").Traceparent)
	b.Drain(b.ctx)
	require.Empty(t, told.Ended())
}

// Without tracing the asking span goes on as it came.
func TestWithoutTracingTheAskingSpanGoesOn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	seen := make(chan string, 1)
	b.work(noop(func(ctx context.Context, _ Job) (Result, error) {
		seen <- Traceparent(ctx)
		return Result{}, nil
	}))
	b.create(asked(traceparent))
	require.Equal(t, traceparent, receive(t, seen))
	b.create()
	require.Empty(t, receive(t, seen))
	b.create(remote, asked(traceparent))
	require.Equal(t, traceparent, b.dequeueOne("w").Traceparent)
}

func TestAttemptSpanIDs(t *testing.T) {
	t.Parallel()
	seen := map[trace.SpanID]bool{}
	for range 100 {
		task := uuid.Must(uuid.NewV7())
		for attempt := range int32(10) {
			id := attemptSpanID(task, attempt)
			require.True(t, id.IsValid())
			require.Equal(t, id, attemptSpanID(task, attempt))
			seen[id] = true
		}
	}
	require.Len(t, seen, 1000)
}

// Whatever is sent as a header, what is kept is as W3C asks, or nothing.
func FuzzTraceparent(f *testing.F) {
	for _, seed := range []string{traceparent, unsampled, "", "ff" + traceparent[2:], traceparent + "-x", strings.ToUpper(traceparent), "cc" + traceparent[2:] + "-what"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		kept := Traceparent(ContextWithTraceparent(context.Background(), header))
		if kept == "" {
			return
		}
		require.Regexp(t, `^00-[0-9a-f]{32}-[0-9a-f]{16}-0[0-3]$`, kept)
		require.True(t, strings.HasPrefix(header[2:], kept[2:53]))
		require.Equal(t, kept, Traceparent(ContextWithTraceparent(context.Background(), kept)))
	})
}
