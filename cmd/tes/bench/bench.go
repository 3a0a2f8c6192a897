package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/schollz/progressbar/v3"

	"github.com/seed-3f7a0631/tes/db/localpg"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/natsbus"
)

// Options are the flags of tes bench.
type Options struct {
	JSON    bool     `name:"json" help:"Print JSON."`
	Only    []string `enum:"drain,drainPublished,http,latency,events,backlog,wal" help:"Measure only these, of drain, drainPublished, http, latency, events, backlog, wal." placeholder:"NAME,…"`
	Tasks   int      `help:"Tasks of a drain, and events of the relay's backlog. Default: 100000." placeholder:"N"`
	Rounds  int      `help:"How often each ratio is taken; the median counts. Default: 3." placeholder:"N"`
	Clients int      `help:"HTTP connections. Default: 64." placeholder:"N"`
	Quick   bool     `help:"Small sizes: proves that everything works, measures nothing."`
	Keep    bool     `help:"Leave the databases: for good on TES_DATABASE_URL, until Ctrl-C on an own cluster."`
	Profile string   `type:"existingdir" help:"Write a CPU profile of each of our timed parts into DIR." placeholder:"DIR"`
}

// Help is the long help text of tes bench.
func (Options) Help() string {
	return `It starts a PostgreSQL of its own, with fsync and synchronous_commit on, or makes
databases of its own on TES_DATABASE_URL and drops them afterwards. Leave the
machine alone meanwhile, and trust the ratios more than the rates. A limit that is
missed is marked and does not change the exit code; a wrong row count does.`
}

// Check returns an error for flags that the parser accepts and the suite cannot use. The zero
// value of a flag means its default.
func (o Options) Check() error {
	if min(o.Tasks, o.Rounds, o.Clients) < 0 {
		return errors.New("--tasks, --rounds and --clients are numbers from 1 on")
	}
	return nil
}

// Env is the surrounding program. All fields but DatabaseURL and ShowProgress must be set.
type Env struct {
	Stdout, Stderr io.Writer
	// ShowProgress draws a progress bar on Stderr.
	ShowProgress bool
	Log          *slog.Logger
	// PrintJSON writes a value to Stdout, indented.
	PrintJSON func(v any) error

	// DatabaseURL names the server to measure on. Empty: StartPostgres starts a private one.
	DatabaseURL string
	// StartPostgres starts a private, durable PostgreSQL with these settings.
	StartPostgres func(ctx context.Context, settings map[string]string) (*localpg.Cluster, error)
	// StartService starts the service as tes serve does.
	StartService func(ctx context.Context, cfg ServiceConfig) (*Service, error)
}

// ServiceConfig is the part of the service's configuration that the suite decides. The service
// listens on any free port of loopback and sends no spans.
type ServiceConfig struct {
	DatabaseURL string
	PeersURL    string       // base URL of the fake peer services
	Bus         *natsbus.Bus // stays open when the service stops
	Log         *slog.Logger
}

// Service is a running service.
type Service struct {
	URL       string
	Tasks     *jobs.Tasks
	Sessions  *pgxpool.Pool
	Published func() int64 // events that the relay has published so far
	Stop      func(context.Context) error
}

// sizes are the amounts of work. The full sizes are the ones that the limits were set for.
type sizes struct {
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

func (o *Options) sizes() sizes {
	size := sizes{
		tasks: 100_000, rounds: 3, clients: 64, single: 200, warmUp: 2 * time.Second, load: 10 * time.Second,
		small: 10_000, large: 1_000_000, mixed: 50_000, wal: 20_000,
	}

	if o.Quick {
		size = sizes{
			tasks: 2000, rounds: 1, clients: 8, single: 5, warmUp: 200 * time.Millisecond, load: 500 * time.Millisecond,
			small: 500, large: 20_000, mixed: 1000, wal: 1000, // large: tasks claimed beyond the timed ones run too
		}
	}

	for flag, into := range map[int]*int{o.Tasks: &size.tasks, o.Rounds: &size.rounds, o.Clients: &size.clients} {
		if flag > 0 {
			*into = flag
		}
	}

	return size
}

// The Go heap settings of both sides alike. Both hold little memory, so rare collections are
// cheap, and both gain from them.
const (
	gcPercent   = 400
	memoryLimit = 3 << 30 // bytes
)

// suite is one run of tes bench.
type suite struct {
	ctx     context.Context
	options Options
	env     Env
	size    sizes
	log     *slog.Logger
	server  *server
	bar     *progressbar.ProgressBar
	out     result
}

// sections in the order in which they run. A section with several names measures the wanted
// ones among them.
var sections = []struct {
	names []string
	run   func(*suite) error
}{
	{[]string{"drain", "drainPublished"}, (*suite).drains},
	{[]string{"http"}, (*suite).http},
	{[]string{"latency"}, (*suite).latency},
	{[]string{"events"}, (*suite).events},
	{[]string{"backlog"}, (*suite).backlog},
	{[]string{"wal"}, (*suite).wal},
}

// Run measures and prints. Options must have passed Check.
func Run(ctx context.Context, options Options, env Env) (err error) {
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(memoryLimit))

	b := &suite{ctx: ctx, options: options, env: env, size: options.sizes(), log: env.Log}
	b.bar = b.progressBar()
	if b.server, err = startServer(ctx, env); err != nil {
		return err
	}

	defer func() { err = errors.Join(err, b.server.stop(options.Keep)) }()

	if b.out.Machine, err = b.server.machine(ctx); err != nil {
		return err
	}

	if err := b.runSections(); err != nil {
		return err
	}

	if err := b.print(); err != nil {
		return err
	}

	// A private cluster ends with this process, so --keep has to wait.
	if options.Keep && b.server.cluster != nil {
		fmt.Fprintf(env.Stderr, "the databases stay until Ctrl-C: %s\n", b.server.url("postgres"))
		<-ctx.Done()
	}

	return nil
}

func (b *suite) runSections() error {
	defer func() { _ = b.bar.Clear() }() // nothing may be printed over the bar

	for _, section := range sections {
		if !slices.ContainsFunc(section.names, b.wants) {
			continue
		}
		if err := section.run(b); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(section.names, ", "), err)
		}
	}

	return nil
}

func (b *suite) print() error {
	b.out.evaluate()
	if b.options.JSON {
		return b.env.PrintJSON(b.out)
	}
	return b.out.table(b.env.Stdout)
}

func (b *suite) wants(name string) bool {
	return len(b.options.Only) == 0 || slices.Contains(b.options.Only, name)
}

func (b *suite) progressBar() *progressbar.ProgressBar {
	to := b.env.Stderr
	if !b.env.ShowProgress {
		to = io.Discard
	}
	return progressbar.NewOptions(1, progressbar.OptionSetWriter(to), progressbar.OptionSetVisibility(b.env.ShowProgress),
		progressbar.OptionSetWidth(24), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionClearOnFinish(),
		progressbar.OptionThrottle(200*time.Millisecond))
}

// step labels the progress bar and sets its length. Hot paths of timed parts never move the bar.
func (b *suite) step(total int, format string, args ...any) {
	b.bar.Reset()
	b.bar.ChangeMax(max(total, 1))
	b.bar.Describe(fmt.Sprintf(format, args...))
}

// settle collects garbage, so that every timed part begins with the same heap.
func settle() { runtime.GC() }

// median of a copy; 0 for no values.
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

// percentile of a copy, by the nearest rank; 0 for no values.
func percentile(values []float64, p float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

func perSecond(n int, took time.Duration) float64 { return float64(n) / took.Seconds() }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
