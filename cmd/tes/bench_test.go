package main

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/db/dbtest"
)

// What it measures is nobody's business here: the sizes are small and the machine
// is shared. That every count is right, the command says itself by its exit code.
func TestBench(t *testing.T) {
	t.Parallel()
	url := dbtest.URL(dbtest.New(t))
	p := start(t, environ("TES_DATABASE_URL="+url), "bench", "--quick", "--json")
	require.Equal(t, exitOK, p.wait(t, 5*time.Minute), p.stderr)

	var out struct {
		Drain, DrainPublished, HTTP map[string]float64
		Latency, Events, Backlog    map[string]float64
		WALBytesPerTask             float64
		Machine                     struct {
			Cores    int
			Postgres string
			Settings map[string]string
		}
		Limits map[string]struct {
			Value           float64
			AtLeast, AtMost *float64
			OK              *bool
		}
		Rounds map[string][]map[string]float64
	}
	require.NoError(t, json.Unmarshal([]byte(p.stdout.String()), &out), p.stdout)
	for _, figures := range []struct {
		of    map[string]float64
		names []string
	}{
		{out.Drain, []string{"ratio", "riverPerSecond", "tasksPerSecond"}},
		{out.DrainPublished, []string{"ratio", "riverPerSecond", "tasksPerSecond"}},
		{out.HTTP, []string{"ratio", "riverPerSecond", "tasksPerSecond"}},
		{out.Latency, []string{"eventP50Ms", "eventP99Ms", "n", "startP50Ms", "startP99Ms"}},
		{out.Events, []string{"perSecond"}},
		{out.Backlog, []string{"largePerSecond", "priorityRatio", "ratio", "smallPerSecond"}},
	} {
		require.Equal(t, figures.names, slices.Sorted(maps.Keys(figures.of)))
		for name, value := range figures.of {
			if name != "startP50Ms" && name != "startP99Ms" { // a handler may start before its create is answered
				require.Positive(t, value, name)
			}
		}
	}
	require.Positive(t, out.WALBytesPerTask)
	require.Positive(t, out.Machine.Cores)
	require.NotEmpty(t, out.Machine.Postgres)
	require.Contains(t, out.Machine.Settings, "fsync")
	require.Equal(t, []string{
		"backlog.priorityRatio", "backlog.ratio", "drain.ratio", "drainPublished.ratio", "events.perSecond", "http.ratio",
		"latency.eventP50Ms", "latency.startP50Ms", "latency.startP99Ms", "walBytesPerTask",
	}, slices.Sorted(maps.Keys(out.Limits)))
	for name, limit := range out.Limits {
		require.NotNil(t, limit.OK, name)
		require.NotEqual(t, limit.AtLeast == nil, limit.AtMost == nil, name)
	}
	require.Equal(t, []string{"backlog", "drain", "drainPublished", "events", "http", "latency", "priorities", "wal"}, slices.Sorted(maps.Keys(out.Rounds)))
	require.Zero(t, number(t, url, "SELECT count(*) FROM pg_database WHERE starts_with(datname, 'tes_bench_')"))
}

// An own cluster, and the table.
func TestBenchAlone(t *testing.T) {
	t.Parallel()
	p := start(t, environ(), "bench", "--quick", "--only", "wal", "--tasks", "100")
	require.Equal(t, exitOK, p.wait(t, 2*time.Minute), p.stderr)
	require.Regexp(t, `✓ +WAL, create to COMPLETED +[0-9]+ bytes a task +at most 6000`, p.stdout.String())
	require.Contains(t, p.stdout.String(), "fsync=on")
	require.NotContains(t, p.stdout.String(), "River")
	require.Empty(t, p.stderr.String())
}

func TestBenchMistakes(t *testing.T) {
	t.Parallel()
	says(t, exitUsage, environ(), []string{"bench", "--only", "drains"}, "--only", `"drains"`)
	says(t, exitUsage, environ(), []string{"bench", "--rounds=-1"}, "numbers from 1 on")
	says(t, exitUsage, environ(), []string{"bench", "--profile", "/no/such/place"}, "--profile")
}
