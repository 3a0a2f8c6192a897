package automated

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
)

func TestHandlers(t *testing.T) {
	t.Parallel()

	call := func(h *Handlers, name string) (jobs.Result, error) {
		return h.Execute(t.Context(), jobs.Job{Config: jobs.ExecutionConfig{Handler: name}})
	}
	errBroken := errors.New("broken")

	var h Handlers
	h.Register("echo", jobs.ExecutorFunc(func(_ context.Context, job jobs.Job) (jobs.Result, error) {
		return jobs.Result{Output: json.RawMessage(`{"handler":"` + job.Config.Handler + `"}`)}, nil
	}))
	h.Register("broken", jobs.ExecutorFunc(func(context.Context, jobs.Job) (jobs.Result, error) {
		return jobs.Result{}, errBroken
	}))
	require.Equal(t, []string{"broken", "echo"}, h.Names())

	result, err := call(&h, "echo")
	require.NoError(t, err)
	require.JSONEq(t, `{"handler":"echo"}`, string(result.Output))
	_, err = call(&h, "broken")
	require.ErrorIs(t, err, errBroken)

	for _, unknown := range []string{"", "nobody"} {
		_, err = call(&h, unknown)
		var f *jobs.Failure
		require.ErrorAs(t, err, &f)
		require.Equal(t, "HANDLER_UNKNOWN", f.Code)
		require.False(t, *f.Retryable)
	}
	_, err = call(new(Handlers), "echo")
	require.Error(t, err)

	require.Panics(t, func() { h.Register("echo", Noop{}) })
	require.Panics(t, func() { h.Register("", Noop{}) })
	require.Panics(t, func() { h.Register("nil", nil) })

	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d"} {
		wg.Go(func() { h.Register(name, Noop{}) })
		wg.Go(func() { _, _ = call(&h, "echo") })
	}
	wg.Wait()
	require.Len(t, h.Names(), 6)
}

func TestNoop(t *testing.T) {
	t.Parallel()
	result, err := Noop{}.Execute(t.Context(), jobs.Job{})
	require.NoError(t, err)
	require.Equal(t, `{}`, string(result.Output))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Noop{}.Execute(ctx, jobs.Job{})
	require.ErrorIs(t, err, context.Canceled)
}
