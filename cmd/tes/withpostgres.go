package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/seed-3f7a0631/tes/db/localpg"
)

// withPostgresCmd runs a command with a throw-away PostgreSQL, so that the packages of a test run
// share a cluster.
type withPostgresCmd struct {
	Command []string `arg:"" passthrough:"" help:"The command; TES_TEST_DATABASE_URL names the server."`
}

// Run runs the command and exits with its exit code.
func (c *withPostgresCmd) Run(s *cmdContext) error {
	// kong leaves the separator in the command.
	command := c.Command
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}

	if len(command) == 0 {
		return &usageError{"no command: say tes with-postgres -- go test ./..."}
	}

	// Unsafe turns fsync off: the data ends with the command. Many packages' tests run at once,
	// each with pools of its own, so the server takes many connections.
	cluster, err := localpg.Start(s.ctx, localpg.Config{
		DataDir: s.cfg.DataDir, Throwaway: true, Unsafe: true, Owner: "tes with-postgres", BinDir: s.cfg.PGBin, Version: s.cfg.PGVersion,
		User: s.cfg.PGUser, NoSystem: s.cfg.PGSystem == "off", NoDownload: s.cfg.PGDownload == "off", Mirror: s.cfg.PGMirror,
		Settings: map[string]string{"max_connections": "500", "shared_buffers": "256MB"},
	})
	if err != nil {
		return err
	}

	// The command gets the interrupt first, and has 30 seconds to end before it is killed: go test
	// prints its stacks, and the tests remove their databases.
	child := exec.CommandContext(s.ctx, command[0], command[1:]...)
	child.Env = append(os.Environ(), "TES_TEST_DATABASE_URL="+cluster.DatabaseURL("postgres"))
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, s.stdout, s.stderr
	child.Cancel = func() error { return child.Process.Signal(os.Interrupt) }
	child.WaitDelay = 30 * time.Second
	err = child.Run()

	// Stop the server also after Ctrl-C, which has ended s.ctx.
	stopped := cluster.Stop(context.WithoutCancel(s.ctx))
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		// As shells do: 128 and the number of the signal that killed the command.
		code := exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			code = 128 + int(status.Signal())
		}
		return &childError{code, stopped}
	}

	return join(err, stopped)
}

// childError is the exit code of the command. The command has reported its failure.
type childError struct {
	code    int
	stopped error // the error of stopping the server, if any
}

func (e *childError) Error() string { return "the command failed" }
