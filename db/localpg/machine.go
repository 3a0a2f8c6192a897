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

// machine is everything that Start asks of the computer it runs on and that one
// computer cannot answer in more than one way. Tests hand in another.
type machine struct {
	goos, goarch string
	euid         int
	tmpDir       string // of throw-away clusters; TMPDIR

	userByName func(name string) (*user.User, error)
	userByID   func(uid string) (*user.User, error)
	chown      func(file *os.File, uid, gid int) error // by descriptor: a name may mean another thing by then
	musl       func() bool

	lookPath func(name string) (string, error)
	globs    []string // where packagers put PostgreSQL's bin directory

	npm           []string // the command that fetches
	pins          []pin
	headerTimeout time.Duration // until a mirror begins to answer
	stallTimeout  time.Duration // between two pieces of its answer

	freePort     func() (int, error)
	readyTimeout time.Duration // without any sign of life from postgres
	pipeGuard    bool          // no parent-death signal here: the guard must do it

	// at is a signal that only tests listen to: it is called when a stage of the
	// start has begun.
	at func(stage string)
}

const (
	stageSockets = "sockets" // their directory was looked at, and not yet touched
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

// freePort asks the kernel for a port. It may be gone by the time postgres binds
// it: the caller tries again.
func freePort() (int, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}
