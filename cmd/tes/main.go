package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/seed-3f7a0631/tes/db/localpg"
)

func main() {
	tune(os.Getenv)

	// The first signal begins an orderly stop.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()
	os.Exit(run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

// tune trades memory for processor time: with Go's default a quarter of the time went into garbage
// collection. GOGC and GOMEMLIMIT take precedence.
func tune(env func(string) string) {
	if env("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if env("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(2 << 30)
	}
}

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // the command failed
	exitUsage = 2 // the command line or the environment is invalid
)

// cmdContext is what every command gets: its context, configuration and streams.
type cmdContext struct {
	ctx    context.Context
	cfg    Config
	env    []string // the environment that cfg was read from
	stdout io.Writer
	stderr io.Writer

	level        *slog.LevelVar // of the log; changes at SIGHUP; nil before logger
	levelDefault slog.Level     // without TES_LOG_LEVEL
}

func (s *cmdContext) printf(format string, args ...any) { fmt.Fprintf(s.stdout, format, args...) }

type cli struct {
	Dev      devCmd         `cmd:"" help:"Run everything on this machine: database, bus, service, fake peer services."`
	Demo     demoCmd        `cmd:"" help:"Run everything in a throw-away directory, run some tasks, and check their results."`
	Serve    serveCmd       `cmd:"" help:"Run the service against the database and the bus that the environment names."`
	Migrate  migrateCmd     `cmd:"" help:"Migrate the database to the schema of this program."`
	Check    checkCmd       `cmd:"" help:"Check the database, and the deliveries of a consumer, against the rules that must always hold. Reads only."`
	Bench    benchCmd       `cmd:"" help:"Measure tes against a bare River client on the same PostgreSQL."`
	Health   healthcheckCmd `cmd:"" name:"healthcheck" help:"Ask the service at TES_HTTP whether it runs, for images without a shell. Exit code 0: it does."`
	Peers    peersCmd       `cmd:"" name:"neighbours" help:"Run fakes of the peer services, to try tes serve or compose without the real ones. Not for production."`
	Token    tokenCmd       `cmd:"" help:"Make a service token, signed with a private key file."`
	Openapi  openapiCmd     `cmd:"" help:"Print the OpenAPI document."`
	Asyncapi asyncapiCmd    `cmd:"" help:"Print the AsyncAPI document."`
	Version  versionCmd     `cmd:"" help:"Print the version."`

	WithPostgres withPostgresCmd `cmd:"" help:"Run a command with a throw-away PostgreSQL in TES_TEST_DATABASE_URL."`
}

const about = `The Task Execution Service: tasks for code, for other systems and for people, on PostgreSQL.

New here? Run: tes demo

Settings come from TES_* variables; tes serve --help lists them.`

// run is the whole program without the process around it, so that tests can call it.
func run(ctx context.Context, args, env []string, stdout, stderr io.Writer) int {
	var c cli
	exited := -1

	// Without kong.Exit, kong would end the process after --help. Tests call run in their own
	// process, so run keeps the exit code instead.
	parser, err := kong.New(&c,
		kong.Name("tes"), kong.Description(about), kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }), kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		fmt.Fprintln(stderr, "tes:", err)
		return exitError
	}

	if len(args) == 0 {
		args = []string{"--help"}
	}

	parsed, err := parser.Parse(args)
	if exited >= 0 {
		return exited
	}

	if err != nil {
		fmt.Fprintf(stderr, "tes: %v\ntes: try: %s\n", err, hint(parser, args))
		return exitUsage
	}

	// After the command line: tes --help must work in an invalid environment.
	cfg, err := readConfig(env)
	if err != nil {
		fmt.Fprintln(stderr, "tes:", err)
		return exitUsage
	}

	err = parsed.Run(&cmdContext{ctx: ctx, cfg: cfg, env: env, stdout: stdout, stderr: stderr})
	var usage *usageError
	var setting *localpg.SettingError
	var child *childError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &child):
		// The command of with-postgres has reported its failure itself.
		if child.stopped != nil {
			fmt.Fprintln(stderr, "tes:", child.stopped)
		}
		return child.code
	case errors.As(err, &usage), errors.As(err, &setting):
		fmt.Fprintln(stderr, "tes:", err)
		return exitUsage
	default:
		fmt.Fprintln(stderr, "tes:", err)
		return exitError
	}
}

// hint is the help command for an invalid command line.
func hint(parser *kong.Kong, args []string) string {
	for _, command := range parser.Model.Children {
		if len(args) > 0 && command.Name == args[0] {
			return "tes " + command.Name + " --help"
		}
	}
	return "tes --help"
}

// usageError is a mistake on the command line or in the environment. The program exits with
// exitUsage.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }
