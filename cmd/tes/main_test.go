package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-3f7a0631/tes/db/dbtest"
	"github.com/seed-3f7a0631/tes/outbox/natsbus/natstest"
)

// asTES makes this test binary the program itself, main and all, so that tests
// have processes to signal and to kill without building anything.
const asTES = "RUN_AS_TES"

// leash as the value of asTES: descriptor 3 is a pipe from the test, and the
// program is killed when it closes, however the test ended.
const leash = "leash"

// instead of tes, such a process may be what a test compares it with, or uses it by.
const instead = "RUN_INSTEAD"

var instances = map[string]func() error{"worker": beWorker, "river": beRiver}

func TestMain(m *testing.M) {
	if how := os.Getenv(asTES); how != "" {
		if how == leash {
			syscall.CloseOnExec(3)
			go func() {
				_, _ = io.Copy(io.Discard, os.NewFile(3, "leash"))
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}()
		}
		if other := os.Getenv(instead); other != "" {
			if err := instances[other](); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(exitError)
			}
			os.Exit(exitOK)
		}
		main()
	}
	dbtest.Main(m, func() error {
		sabotagedDir.remove()
		client.CloseIdleConnections()
		http.DefaultClient.CloseIdleConnections()
		return goleak.Find(natstest.Leaks()...)
	})
}

// patience bounds every wait of a test. None is expected to last, but the
// machine may be busy with other packages' tests.
const patience = time.Minute

// eventually polls for what happens elsewhere in its own time, until check has
// nothing to say against it.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	if err := poll(t.Context(), within, check); err != nil {
		require.NoError(t, err)
	}
}

func poll(ctx context.Context, within time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("after %v: %w", within, err)
		}
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
