package bench

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBenchFigures(t *testing.T) {
	t.Parallel()
	require.InDelta(t, 2, median([]float64{3, 1, 2}), 0)
	require.InDelta(t, 1.5, median([]float64{2, 1}), 0)
	require.Zero(t, median(nil))
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[99-i] = float64(i)
	}

	require.InDelta(t, 99, percentile(hundred, 0.99), 0)
	require.InDelta(t, 99, percentile(hundred, 1), 0)
	require.InDelta(t, 0.6213, rounded(0.62125678), 1e-9)
	require.InDelta(t, 123500, rounded(123456), 1e-9)

	r := result{}
	r.add("drain", roundFigures{"tes": 10, "river": 20})
	r.add("drain", roundFigures{"tes": 30, "river": 20})
	r.add("drain", roundFigures{"tes": 20, "river": 10})
	r.Drain = r.compare("drain")
	require.Equal(t, comparison{TasksPerSecond: 20, RiverPerSecond: 20, Ratio: 1.5}, *r.Drain)
	r.Events = &eventsResult{PerSecond: 39_999}
	r.evaluate()
	require.True(t, r.Limits["drain.ratio"].OK)
	require.False(t, r.Limits["events.perSecond"].OK)
	require.Len(t, r.Limits, 2)
}
