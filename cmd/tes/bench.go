package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
)

// benchCmd measures this program against a bare River client on the same cluster
// in the same run. Rates depend on the machine; ratios hardly do.
type benchCmd struct {
	JSON    bool     `name:"json" help:"Print JSON."`
	Only    []string `enum:"drain,drainPublished,http,latency,events,backlog,wal" help:"Measure only these, of drain, drainPublished, http, latency, events, backlog, wal." placeholder:"NAME,…"`
	Tasks   int      `help:"Tasks of a drain, and events of the relay's backlog. Default: 100000." placeholder:"N"`
	Rounds  int      `help:"How often each ratio is taken; the median counts. Default: 3." placeholder:"N"`
	Clients int      `help:"HTTP connections. Default: 64." placeholder:"N"`
	Quick   bool     `help:"Small sizes: proves that everything works, measures nothing."`
	Keep    bool     `help:"Leave the databases: for good on TES_DATABASE_URL, until Ctrl-C on an own cluster."`
	Profile string   `type:"existingdir" help:"Write a CPU profile of each of our timed parts into DIR." placeholder:"DIR"`
}

// Help says what is measured, and how it is to be read.
func (benchCmd) Help() string {
	return `It starts a PostgreSQL of its own, with fsync and synchronous_commit on, or makes
databases of its own on TES_DATABASE_URL and drops them afterwards. Leave the
machine alone meanwhile, and trust the ratios more than the rates. A limit that is
missed is marked and does not change the exit code; a wrong row count does.`
}

// benchSizes is how much of everything. The full sizes are those of the limits.
type benchSizes struct {
	tasks   int           // of a drain; as many events for the relay
	rounds  int           // the median counts
	clients int           // HTTP connections
	single  int           // tasks of the latency section
	warmUp  time.Duration // of the HTTP section
	load    time.Duration // of the HTTP section
	small   int           // pending tasks: also how many are claimed for one rate
	large   int           // pending tasks
	mixed   int           // tasks of a run with four priorities
	wal     int           // tasks of the WAL section
}

func (c *benchCmd) sizes() benchSizes {
	size := benchSizes{
		tasks: 100_000, rounds: 3, clients: 64, single: 200, warmUp: 2 * time.Second, load: 10 * time.Second,
		small: 10_000, large: 1_000_000, mixed: 50_000, wal: 20_000,
	}
	if c.Quick {
		size = benchSizes{
			tasks: 2000, rounds: 1, clients: 8, single: 5, warmUp: 200 * time.Millisecond, load: 500 * time.Millisecond,
			small: 500, large: 20_000, mixed: 1000, wal: 1000, // large: what is claimed beyond a rate is run too
		}
	}
	for flag, into := range map[int]*int{c.Tasks: &size.tasks, c.Rounds: &size.rounds, c.Clients: &size.clients} {
		if flag > 0 {
			*into = flag
		}
	}
	return size
}

// The Go heap of both sides alike: what they hold is small, so rare collections
// are cheap, and both gain from them.
const (
	benchGC     = 400
	benchMemory = 3 << 30 // bytes
)

// bench is one run of the command.
type bench struct {
	*shell
	cmd    *benchCmd
	size   benchSizes
	log    *slog.Logger
	server *benchServer
	bar    *progressbar.ProgressBar
	out    benchResult
}

// benchSections in the order in which they run. A section with several names
// measures whichever of them is wanted.
var benchSections = []struct {
	names []string
	run   func(*bench) error
}{
	{[]string{"drain", "drainPublished"}, (*bench).drains},
	{[]string{"http"}, (*bench).http},
	{[]string{"latency"}, (*bench).latency},
	{[]string{"events"}, (*bench).events},
	{[]string{"backlog"}, (*bench).backlog},
	{[]string{"wal"}, (*bench).wal},
}

// Run measures and prints.
func (c *benchCmd) Run(s *shell) (err error) {
	if min(c.Tasks, c.Rounds, c.Clients) < 0 {
		return &usageError{"--tasks, --rounds and --clients are numbers from 1 on"}
	}
	defer debug.SetGCPercent(debug.SetGCPercent(benchGC))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(benchMemory))
	b := &bench{shell: s, cmd: c, size: c.sizes(), log: logger(s, slog.LevelWarn, "text")}
	b.bar = b.progressBar()
	if b.server, err = startBenchServer(s, b.log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.stop(c.Keep)) }()
	if b.out.Machine, err = b.server.machine(s.ctx); err != nil {
		return err
	}
	for _, section := range benchSections {
		if !slices.ContainsFunc(section.names, b.wants) {
			continue
		}
		if err := section.run(b); err != nil {
			_ = b.bar.Clear()
			return fmt.Errorf("%s: %w", strings.Join(section.names, ", "), err)
		}
	}
	_ = b.bar.Clear()
	b.out.judge()
	if c.JSON {
		err = printJSON(s, b.out)
	} else {
		err = b.out.table(s.stdout)
	}
	if c.Keep && b.server.cluster != nil && err == nil {
		fmt.Fprintf(s.stderr, "the databases stay until Ctrl-C: %s\n", b.server.url("postgres"))
		<-s.ctx.Done()
	}
	return err
}

func (b *bench) wants(name string) bool {
	return len(b.cmd.Only) == 0 || slices.Contains(b.cmd.Only, name)
}

// progressBar is on stderr, and only where somebody looks at it.
func (b *bench) progressBar() *progressbar.ProgressBar {
	shown := terminal(b.stderr)
	to := b.stderr
	if !shown {
		to = io.Discard
	}
	return progressbar.NewOptions(1, progressbar.OptionSetWriter(to), progressbar.OptionSetVisibility(shown),
		progressbar.OptionSetWidth(24), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionClearOnFinish(),
		progressbar.OptionThrottle(200*time.Millisecond))
}

// step names what is being done now, and how many times something will be done.
// The bar is never moved from a timed part's hot path.
func (b *bench) step(total int, format string, args ...any) {
	b.bar.Reset()
	b.bar.ChangeMax(max(total, 1))
	b.bar.Describe(fmt.Sprintf(format, args...))
}

// settle brings the Go side to the same state before every timed part.
func settle() { runtime.GC() }

// median of a copy; 0 of nothing.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// percentile of a copy, by the nearest rank; 0 of nothing.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

func perSecond(n int, took time.Duration) float64 { return float64(n) / took.Seconds() }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
