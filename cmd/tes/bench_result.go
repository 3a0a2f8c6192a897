package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// benchResult is what `tes bench --json` prints; scripts rely on its names. A
// section that was not asked for is left out.
type benchResult struct {
	Drain           *benchPeer              `json:"drain,omitempty"`
	DrainPublished  *benchPeer              `json:"drainPublished,omitempty"`
	HTTP            *benchPeer              `json:"http,omitempty"`
	Latency         *benchLatency           `json:"latency,omitempty"`
	Events          *benchEvents            `json:"events,omitempty"`
	Backlog         *benchBacklog           `json:"backlog,omitempty"`
	WALBytesPerTask float64                 `json:"walBytesPerTask,omitempty"`
	Limits          map[string]*benchLimit  `json:"limits"`
	Machine         benchMachine            `json:"machine"`
	Rounds          map[string][]benchRound `json:"rounds"`
}

// benchRound holds one round's raw figures, by name: per second, where the name
// says nothing else.
type benchRound map[string]float64

// benchPeer compares with bare River. Each member is the median of the rounds, so
// the ratio need not be the quotient of the other two.
type benchPeer struct {
	TasksPerSecond float64 `json:"tasksPerSecond"`
	RiverPerSecond float64 `json:"riverPerSecond"`
	Ratio          float64 `json:"ratio"`
}

// benchLatency is of single tasks on an idle machine, in milliseconds: from the
// answer to a create to the handler's start, and from there to the
// acknowledgement of the task's last event by the bus.
type benchLatency struct {
	StartP50 float64 `json:"startP50Ms"`
	StartP99 float64 `json:"startP99Ms"`
	EventP50 float64 `json:"eventP50Ms"`
	EventP99 float64 `json:"eventP99Ms"`
	N        int     `json:"n"`
}

// benchEvents is the relay's rate alone.
type benchEvents struct {
	PerSecond float64 `json:"perSecond"`
}

// benchBacklog is the claim rate with few and with many pending tasks, and with
// four priorities that age against one that does not.
type benchBacklog struct {
	SmallPerSecond float64 `json:"smallPerSecond"`
	LargePerSecond float64 `json:"largePerSecond"`
	Ratio          float64 `json:"ratio"`
	PriorityRatio  float64 `json:"priorityRatio"`
}

// benchMachine is what the figures were taken on.
type benchMachine struct {
	Cores      int               `json:"cores"`
	Go         string            `json:"go"`
	PostgreSQL string            `json:"postgres"`
	Settings   map[string]string `json:"settings"` // of PostgreSQL, where they differ from what is compiled in
}

// benchLimit is one figure with what it is held against.
type benchLimit struct {
	Value   float64  `json:"value"`
	AtLeast *float64 `json:"atLeast,omitempty"`
	AtMost  *float64 `json:"atMost,omitempty"`
	OK      bool     `json:"ok"`
}

// add keeps a round's raw figures.
func (r *benchResult) add(section string, round benchRound) {
	if r.Rounds == nil {
		r.Rounds = map[string][]benchRound{}
	}
	r.Rounds[section] = append(r.Rounds[section], round)
}

// addPair keeps a round of n tasks of ours against n jobs of River's.
func (r *benchResult) addPair(section string, n int, tes, river timed) {
	pair := benchRound{}
	tes.put(pair, "tes", n)
	river.put(pair, "river", n)
	r.add(section, pair)
}

// addRatio keeps a round in which one was held against another, of n tasks each.
func (r *benchResult) addRatio(section string, n int, one string, a timed, other string, b timed) {
	pair := benchRound{"ratio": round(b.took.Seconds() / a.took.Seconds())}
	a.put(pair, one, n)
	b.put(pair, other, n)
	r.add(section, pair)
}

// column is one raw figure of every round of a section.
func (r *benchResult) column(section, name string) []float64 {
	var out []float64
	for _, round := range r.Rounds[section] {
		if v, ok := round[name]; ok {
			out = append(out, v)
		}
	}
	return out
}

// peer sums up a section whose rounds have the columns tes and river.
func (r *benchResult) peer(section string) *benchPeer {
	ours, river := r.column(section, "tes"), r.column(section, "river")
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / river[i]
	}
	return &benchPeer{TasksPerSecond: round(median(ours)), RiverPerSecond: round(median(river)), Ratio: round(median(ratios))}
}

// round keeps four digits; the noise is in the second.
func round(v float64) float64 {
	if v == 0 {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

// judge holds the figures against the limits of docs/decisions.
func (r *benchResult) judge() {
	r.Limits = map[string]*benchLimit{}
	least := func(name string, value, limit float64) {
		r.Limits[name] = &benchLimit{Value: value, AtLeast: &limit, OK: value >= limit}
	}
	most := func(name string, value, limit float64) {
		r.Limits[name] = &benchLimit{Value: value, AtMost: &limit, OK: value <= limit}
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

// foreignMost is how many cores others may use before figures are not to be
// trusted.
const foreignMost = 0.1

// foreign is the most that others used in any timed part.
func (r *benchResult) foreign() (most float64) {
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

// table is the result for people.
func (r *benchResult) table(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	line := func(what, limit, format string, args ...any) {
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
	peer := func(what, name string, p *benchPeer) {
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
		fmt.Fprintf(to, "\nOthers used up to %.1f cores meanwhile: these figures say little.\n", foreign)
	}
	_, err := fmt.Fprintf(to, "\n%d cores, %s, PostgreSQL %s (%s)\n", r.Machine.Cores, r.Machine.Go, r.Machine.PostgreSQL, strings.Join(settings, ", "))
	return err
}
