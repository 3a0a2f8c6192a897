package bench

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// result is the output of tes bench --json; scripts rely on its names. Sections that were not
// measured are left out.
type result struct {
	Drain           *comparison               `json:"drain,omitempty"`
	DrainPublished  *comparison               `json:"drainPublished,omitempty"`
	HTTP            *comparison               `json:"http,omitempty"`
	Latency         *latencyResult            `json:"latency,omitempty"`
	Events          *eventsResult             `json:"events,omitempty"`
	Backlog         *backlogResult            `json:"backlog,omitempty"`
	WALBytesPerTask float64                   `json:"walBytesPerTask,omitempty"`
	Limits          map[string]*limitResult   `json:"limits"`
	Machine         machineInfo               `json:"machine"`
	Rounds          map[string][]roundFigures `json:"rounds"`
}

// roundFigures are the raw figures of one round, by name: per second, unless the name ends in a
// unit.
type roundFigures map[string]float64

// comparison compares tes with bare River. Each member is the median of the rounds, so Ratio need
// not be the quotient of the other two.
type comparison struct {
	TasksPerSecond float64 `json:"tasksPerSecond"`
	RiverPerSecond float64 `json:"riverPerSecond"`
	Ratio          float64 `json:"ratio"`
}

// latencyResult holds the latencies of single tasks on an idle machine, in milliseconds: start is
// from the create's return to the handler's start, event from there to the bus's acknowledgement of
// the task's last event.
type latencyResult struct {
	StartP50 float64 `json:"startP50Ms"`
	StartP99 float64 `json:"startP99Ms"`
	EventP50 float64 `json:"eventP50Ms"`
	EventP99 float64 `json:"eventP99Ms"`
	N        int     `json:"n"`
}

// eventsResult is the rate of the relay alone.
type eventsResult struct {
	PerSecond float64 `json:"perSecond"`
}

// backlogResult is the claim rate with few and with many pending tasks, and with four ageing
// priorities relative to one priority.
type backlogResult struct {
	SmallPerSecond float64 `json:"smallPerSecond"`
	LargePerSecond float64 `json:"largePerSecond"`
	Ratio          float64 `json:"ratio"`
	PriorityRatio  float64 `json:"priorityRatio"`
}

// machineInfo describes the machine and the server.
type machineInfo struct {
	Cores      int               `json:"cores"`
	Go         string            `json:"go"`
	PostgreSQL string            `json:"postgres"`
	Settings   map[string]string `json:"settings"` // of PostgreSQL, where they differ from what is compiled in
}

// limitResult is one figure with its limit.
type limitResult struct {
	Value   float64  `json:"value"`
	AtLeast *float64 `json:"atLeast,omitempty"`
	AtMost  *float64 `json:"atMost,omitempty"`
	OK      bool     `json:"ok"`
}

// add keeps the raw figures of a round.
func (r *result) add(section string, round roundFigures) {
	if r.Rounds == nil {
		r.Rounds = map[string][]roundFigures{}
	}
	r.Rounds[section] = append(r.Rounds[section], round)
}

// addPair keeps a round of n tasks against n River jobs.
func (r *result) addPair(section string, n int, tes, river timed) {
	pair := roundFigures{}
	tes.put(pair, "tes", n)
	river.put(pair, "river", n)
	r.add(section, pair)
}

// addRatio keeps a round that compares two parts of n tasks each.
func (r *result) addRatio(section string, n int, one string, a timed, other string, b timed) {
	pair := roundFigures{"ratio": rounded(b.took.Seconds() / a.took.Seconds())}
	a.put(pair, one, n)
	b.put(pair, other, n)
	r.add(section, pair)
}

// column is one raw figure of every round of a section.
func (r *result) column(section, name string) []float64 {
	var out []float64
	for _, round := range r.Rounds[section] {
		if v, ok := round[name]; ok {
			out = append(out, v)
		}
	}
	return out
}

// compare sums up a section whose rounds have the columns tes and river.
func (r *result) compare(section string) *comparison {
	ours, river := r.column(section, "tes"), r.column(section, "river")

	// The median of the ratios, and not the ratio of the medians: both sides of a round met the
	// same machine.
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / river[i]
	}

	return &comparison{TasksPerSecond: rounded(median(ours)), RiverPerSecond: rounded(median(river)), Ratio: rounded(median(ratios))}
}

// rounded keeps four digits. The noise is in the second.
func rounded(v float64) float64 {
	if v == 0 {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// evaluate compares the figures with the limits of docs/decisions.
func (r *result) evaluate() {
	r.Limits = map[string]*limitResult{}
	least := func(name string, value, limit float64) {
		r.Limits[name] = &limitResult{Value: value, AtLeast: &limit, OK: value >= limit}
	}

	most := func(name string, value, limit float64) {
		r.Limits[name] = &limitResult{Value: value, AtMost: &limit, OK: value <= limit}
	}

	if r.Drain != nil {
		least("drain.ratio", r.Drain.Ratio, 0.75)
	}
	if r.DrainPublished != nil {
		least("drainPublished.ratio", r.DrainPublished.Ratio, 0.5)
	}
	if r.HTTP != nil {
		least("http.ratio", r.HTTP.Ratio, 1.5)
	}

	if r.Latency != nil {
		most("latency.startP50Ms", r.Latency.StartP50, 5)
		most("latency.startP99Ms", r.Latency.StartP99, 15)
		most("latency.eventP50Ms", r.Latency.EventP50, 8)
	}

	if r.Events != nil {
		least("events.perSecond", r.Events.PerSecond, 40_000)
	}

	if r.Backlog != nil {
		least("backlog.ratio", r.Backlog.Ratio, 0.9)
		least("backlog.priorityRatio", r.Backlog.PriorityRatio, 0.9)
	}

	if r.WALBytesPerTask != 0 {
		most("walBytesPerTask", r.WALBytesPerTask, 6000)
	}
}

// foreignMost is the number of cores that other programs may use before the figures are not to be
// trusted.
const foreignMost = 0.1

// foreign is the largest number of cores that other programs used in any timed part.
func (r *result) foreign() (most float64) {
	for _, rounds := range r.Rounds {
		for _, round := range rounds {
			for name, value := range round {
				if strings.HasSuffix(name, foreignCores) {
					most = max(most, value)
				}
			}
		}
	}

	return most
}

// table prints the result as text.
func (r *result) table(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	line := func(what, limit, format string, args ...any) {
		// A line without a limit has no mark.
		mark, bound := "", ""
		if l := r.Limits[limit]; l != nil {
			mark = map[bool]string{true: "✓", false: "✗"}[l.OK]
			if l.AtLeast != nil {
				bound = fmt.Sprintf("at least %.6g", *l.AtLeast)
			} else {
				bound = fmt.Sprintf("at most %.6g", *l.AtMost)
			}
		}

		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", mark, what, fmt.Sprintf(format, args...), bound)
	}

	peer := func(what, name string, p *comparison) {
		if p != nil {
			line(what, name+".ratio", "%.2f × River: %.0f against %.0f a second", p.Ratio, p.TasksPerSecond, p.RiverPerSecond)
		}
	}

	peer("drain", "drain", r.Drain)
	peer("drain, until published", "drainPublished", r.DrainPublished)
	peer("HTTP create", "http", r.HTTP)
	if l := r.Latency; l != nil {
		line("created → started, p50", "latency.startP50Ms", "%.1f ms", l.StartP50)
		line("created → started, p99", "latency.startP99Ms", "%.1f ms", l.StartP99)
		line("started → on the bus, p50", "latency.eventP50Ms", "%.1f ms", l.EventP50)
		line("started → on the bus, p99", "", "%.1f ms", l.EventP99)
	}

	if r.Events != nil {
		line("relay alone", "events.perSecond", "%.0f events a second", r.Events.PerSecond)
	}

	if l := r.Backlog; l != nil {
		line("many pending / few", "backlog.ratio", "%.2f: %.0f against %.0f a second", l.Ratio, l.LargePerSecond, l.SmallPerSecond)
		line("four priorities, ageing / one", "backlog.priorityRatio", "%.2f", l.PriorityRatio)
	}

	if r.WALBytesPerTask != 0 {
		line("WAL, create to COMPLETED", "walBytesPerTask", "%.0f bytes a task", r.WALBytesPerTask)
	}

	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}

	var settings []string
	for _, name := range slices.Sorted(maps.Keys(r.Machine.Settings)) {
		settings = append(settings, name+"="+r.Machine.Settings[name])
	}

	if foreign := r.foreign(); foreign > foreignMost {
		fmt.Fprintf(to, "\nOther programs used up to %.1f cores meanwhile: do not rely on these figures.\n", foreign)
	}

	_, err := fmt.Fprintf(to, "\n%d cores, %s, PostgreSQL %s (%s)\n", r.Machine.Cores, r.Machine.Go, r.Machine.PostgreSQL, strings.Join(settings, ", "))
	return err
}
