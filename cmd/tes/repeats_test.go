package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Two hundred thousand refusals of a full disk are a few lines: the first of each kind,
// every ten seconds one more, and the number of those that were left out.
func TestAnOutageIsToldOnceAndCounted(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	now := time.Now()
	log := slog.New(newRepeats(slog.NewJSONHandler(&text, nil), func() time.Time { return now })).With("process", "p")
	lines := func() (all []map[string]any) {
		for line := range strings.Lines(text.String()) {
			var one map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &one))
			all = append(all, one)
		}
		text.Reset()
		return all
	}
	refuse := func(route, err string) {
		log.Error("request", "route", route, "status", 503, "error", err)
	}
	full := `insert tasks: ERROR: could not extend file "base/16386/2619": No space left on device (SQLSTATE 53100)`

	for i := range 1000 {
		refuse("POST /tasks", full)
		refuse("GET /tasks", "the database is not available: dial error")
		if i == 0 {
			got := lines()
			require.Len(t, got, 2)
			require.Contains(t, got[0]["error"], "No space left on device")
			require.NotContains(t, got[0], "left_out")
		}
	}
	require.Empty(t, lines())

	now = now.Add(repeatsEvery)
	refuse("POST /tasks", strings.Replace(full, "2619", "2620", 1)) // another file, the same trouble
	got := lines()
	require.Len(t, got, 1)
	require.EqualValues(t, 999, got[0]["left_out"])
	require.Equal(t, "p", got[0]["process"])

	// Whatever is not the server's state is told each time, and so is what is no trouble.
	for range 3 {
		log.Error("the database refused one of the creates", "error", "ERROR: invalid input (SQLSTATE 22P02)")
		log.Error("request", "status", 500, "error", errors.New("a bug"))
		log.Info("request", "route", "POST /tasks", "status", 503, "error", full)
		log.Error("the lanes stopped")
	}
	require.Len(t, lines(), 12)
}
