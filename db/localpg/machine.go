package localpg

import (
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"time"
)

// machine is the environment of Start: everything that one computer can answer in only one
// way. Tests use other machines.
type machine struct {
	goos, goarch string
	euid         int
	tmpDir       string // parent of throw-away clusters; TMPDIR

	userByName func(name string) (*user.User, error)
	userByID   func(uid string) (*user.User, error)
	chown      func(file *os.File, uid, gid int) error // by descriptor, because a path may have been replaced
	musl       func() bool

	lookPath func(name string) (string, error)
	globs    []string // where packages install PostgreSQL

	npm           []string // the command to download
	pins          []pin
	headerTimeout time.Duration // until a mirror begins its response
	stallTimeout  time.Duration // between two parts of the response

	freePort     func() (int, error)
	readyTimeout time.Duration // without any answer from postgres
	pipeGuard    bool          // the guard stops postgres: no parent-death signal on this system

	// at is called when a stage of the start has begun; only tests set at.
	at func(stage string)
}

const (
	stageSockets = "sockets" // the directory of the socket is open and not yet changed
	stageInitdb  = "initdb"
	stageServer  = "server"
)

func thisMachine() *machine {
	return &machine{
		goos:       runtime.GOOS,
		goarch:     runtime.GOARCH,
		euid:       os.Geteuid(),
		tmpDir:     os.TempDir(),
		userByName: user.Lookup,
		userByID:   user.LookupId,
		chown:      (*os.File).Chown,
		musl: func() bool {
			loaders, _ := filepath.Glob("/lib/ld-musl-*")
			return len(loaders) > 0
		},
		lookPath: exec.LookPath,
		globs: []string{
			"/usr/lib/postgresql/*/bin",      // Debian, Ubuntu
			"/usr/pgsql-*/bin",               // the PostgreSQL project's RPMs
			"/usr/libexec/postgresql*",       // Alpine
			"/usr/local/pgsql/bin",           // built from source
			"/opt/local/lib/postgresql*/bin", // MacPorts
			"/opt/homebrew/opt/postgresql*/bin",
			"/usr/local/opt/postgresql*/bin",
			"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
			"/Applications/Postgres.app/Contents/Versions/*/bin",
		},
		npm:           []string{"npm"},
		pins:          pins,
		headerTimeout: 15 * time.Second,
		stallTimeout:  30 * time.Second,
		freePort:      freePort,
		readyTimeout:  60 * time.Second,
		pipeGuard:     !hasParentDeathSignal,
		at:            func(string) {},
	}
}

// freePort asks the kernel for a free port. Another process may take the port before
// postgres does: the caller tries again.
func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}
