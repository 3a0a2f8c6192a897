package localpg

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// fakeBinaries is a directory with a postgres that says its version, and an initdb
// that runs a script.
func fakeBinaries(t *testing.T, version, initdb string) string {
	t.Helper()
	dir := openDir(t)
	for name, script := range map[string]string{"postgres": "echo '" + version + "'", "initdb": initdb} {
		if script == "" {
			continue
		}
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700))
		require.NoError(t, os.Chmod(path, 0o755))
	}
	return dir
}

// bare is a machine without PostgreSQL and without a network.
func (b *testBundle) bare() {
	b.cfg.BinDir, b.cfg.Version, b.cfg.NoSystem, b.cfg.NoDownload = "", "", false, true
	b.cfg.CacheDir = filepath.Join(b.cfg.DataDir, "cache")
	b.globs = nil
	b.lookPath = func(string) (string, error) { return "", exec.ErrNotFound }
}

func TestMessageNothingFound(t *testing.T) {
	b := setup(t)
	b.bare()
	old := fakeBinaries(t, "postgres (PostgreSQL) 14.9 (Debian)", "exit")
	b.globs = []string{old, "/nosuch/*/bin"}
	require.Equal(t, "no PostgreSQL 15 or newer found. Looked in: PATH, pg_config, "+old+" (14.9), /nosuch/*/bin; "+
		"the download is switched off (TES_PG_DOWNLOAD=off). "+
		"Either set TES_DATABASE_URL, or install it (apt-get install -y postgresql | dnf install postgresql-server | "+
		"brew install postgresql@18 | apk add postgresql18), or set TES_PG_BIN", b.startError(t))

	b.cfg.NoSystem = true
	require.Contains(t, b.startError(t), "Looked in: nothing installed (TES_PG_SYSTEM=off); ")

	b.cfg.NoSystem, b.cfg.NoDownload = false, false
	b.npm = []string{"/nosuch/npm"}
	require.Contains(t, b.startError(t), "the download failed: ")
}

func TestMessageNoDownloadForThisMachine(t *testing.T) {
	b := setup(t)
	b.bare()
	b.cfg.NoDownload = false
	b.goos, b.musl = "linux", func() bool { return true }
	require.Contains(t, b.startError(t), "needs glibc, and this machine has musl: apk add postgresql18")
	b.goos = "plan9"
	require.Contains(t, b.startError(t), "there is no PostgreSQL 18 to download for plan9/")
}

func TestMessageBinariesThatWereNamed(t *testing.T) {
	b := setup(t)
	b.cfg.BinDir = openDir(t)
	require.Contains(t, b.startError(t), "TES_PG_BIN="+b.cfg.BinDir+": it must hold postgres and initdb")
	b.cfg.BinDir = fakeBinaries(t, "postgres (PostgreSQL) 14.9", "exit")
	require.Contains(t, b.startError(t), "it is PostgreSQL 14.9, and 15 or newer is needed")
	b.cfg.BinDir = fakeBinaries(t, "GNU cat 9.1", "exit")
	require.Contains(t, b.startError(t), `is no PostgreSQL: it says "GNU cat 9.1"`)
	b.cfg.Version = "14"
	require.Contains(t, b.startError(t), "TES_PG_VERSION=14: it must be one of 15, 16, 17, 18")
}

func TestNewestInstalledIsChosen(t *testing.T) {
	b := setup(t)
	b.bare()
	b.globs = []string{
		fakeBinaries(t, "postgres (PostgreSQL) 15.20", "exit"),
		fakeBinaries(t, "postgres (PostgreSQL) 17.1", "exit"),
		fakeBinaries(t, "postgres (PostgreSQL) 19beta1", ""), // without initdb
		fakeBinaries(t, "postgres (PostgreSQL) 16.3", "exit"),
	}
	b.lookPath = func(name string) (string, error) { return filepath.Join(b.globs[0], name), nil }
	got, err := b.find(t.Context(), b.cfg, b.acc, "", 0)
	require.NoError(t, err)
	require.Equal(t, binaries{dir: b.globs[1], version: "17.1", major: 17}, got)

	got, err = b.find(t.Context(), b.cfg, b.acc, "/data", 15)
	require.NoError(t, err)
	require.Equal(t, "15.20", got.version, "the data directory decides")

	b.cfg.Version = "16"
	got, err = b.find(t.Context(), b.cfg, b.acc, "", 0)
	require.NoError(t, err)
	require.Equal(t, "16.3", got.version)

	b.cfg.Version = "18"
	_, err = b.find(t.Context(), b.cfg, b.acc, "", 0)
	require.ErrorContains(t, err, "no PostgreSQL 18 found. Looked in: PATH (15.20), pg_config, ")
	require.ErrorContains(t, err, "(19beta1 without initdb)")
}

// dataOf makes a data directory as far as we look into one.
func (b *testBundle) dataOf(t *testing.T, major string) (data string) {
	t.Helper()
	data = filepath.Join(b.cfg.DataDir, "pg")
	require.NoError(t, os.Mkdir(data, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(data, "PG_VERSION"), []byte(major+"\n"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(data, "precious"), []byte("data"), 0o600))
	require.NoError(t, b.give(data, b.acc))
	return data
}

// Pitfall: data of another major version. Refuse, and touch nothing.
func TestMessageDataOfAnotherMajor(t *testing.T) {
	b := setup(t)
	b.bare()
	here := fakeBinaries(t, "postgres (PostgreSQL) 18.4", "exit")
	b.globs = []string{here}
	data := b.dataOf(t, "15")
	require.Equal(t, fmt.Sprintf("%s was made by PostgreSQL 15, and no 15 binaries are here (found 18.4 in %s). "+
		"Install 15, or move the directory away: tes dev --reset. Nothing was changed; "+
		"the download is switched off (TES_PG_DOWNLOAD=off)", data, here), b.startError(t))

	b.cfg.BinDir = here
	require.Contains(t, b.startError(t), "was made by PostgreSQL 15, and no 15 binaries are here (found 18.4 in ")

	entries, err := os.ReadDir(data)
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.FileExists(t, filepath.Join(data, "precious"))

	require.NoError(t, os.Remove(filepath.Join(data, "PG_VERSION")))
	require.Contains(t, b.startError(t), "is no data directory of PostgreSQL")
	require.FileExists(t, filepath.Join(data, "precious"))
}

// Pitfall: data of another owner. postgres would only speak of its configuration
// file.
func TestMessageDataOfAnotherOwner(t *testing.T) {
	b := setup(t)
	data := b.dataOf(t, "15")
	p := &place{data: data}
	owner := b.acc.uid

	_, err := p.major(account{uid: 54321})
	require.EqualError(t, err, fmt.Sprintf("%s belongs to uid %d, PostgreSQL would run as uid 54321: run as that user, or chown", data, owner))

	name := strconv.Itoa(owner)
	if found, err := user.LookupId(name); err == nil {
		name = found.Username
	}
	_, err = p.major(account{uid: 54321, drop: true})
	require.EqualError(t, err, fmt.Sprintf("%s belongs to uid %d, PostgreSQL would run as uid 54321: set TES_PG_USER=%s, or chown", data, owner, name))
}

// asRoot makes the machine believe that we are root, and that one account exists.
func (b *testBundle) asRoot(name, uid string) {
	b.euid = 0
	b.cfg.User = ""
	b.userByName = func(asked string) (*user.User, error) {
		if asked != name {
			return nil, user.UnknownUserError(asked)
		}
		return &user.User{Username: name, Uid: uid, Gid: uid}, nil
	}
}

func TestMessageRootWithoutAnAccount(t *testing.T) {
	b := setup(t)
	b.asRoot("daemon", "1")
	require.Equal(t, "running as root; PostgreSQL refuses root and neither account postgres nor nobody exists: set TES_PG_USER", b.startError(t))
	b.cfg.User = "nosuch"
	require.Equal(t, "TES_PG_USER=nosuch: there is no such account", b.startError(t))
	b.asRoot("toor", "0")
	b.cfg.User = "toor"
	require.Equal(t, "TES_PG_USER=toor: PostgreSQL refuses root; name another account", b.startError(t))
}

func TestMessageAccountWithoutBeingRoot(t *testing.T) {
	b := setup(t)
	b.euid = 54321
	b.cfg.User = "root"
	require.Equal(t, "TES_PG_USER=root: only root may run PostgreSQL under another account; unset it", b.startError(t))
}

// Pitfall: a directory that root can reach and its account cannot.
func TestMessageDirectoryThatTheAccountCannotReach(t *testing.T) {
	b := setup(t)
	b.asRoot("nobody", "54321")
	closed := filepath.Join(b.cfg.DataDir, "root")
	require.NoError(t, os.Mkdir(closed, 0o700))
	b.cfg.DataDir = filepath.Join(closed, "tes")
	require.Equal(t, closed+" (mode 700) cannot be searched by uid 54321: set TES_DATA_DIR to a place it can reach, e.g. /var/lib/tes", b.startError(t))
	require.NoDirExists(t, b.cfg.DataDir, "made before it looked")

	outer := b.tmpDir
	defer func() { b.tmpDir = outer }()
	b.tmpDir, b.cfg.Throwaway = closed, true
	require.Equal(t, closed+" (mode 700) cannot be searched by uid 54321: set TMPDIR to a place it can reach, e.g. /tmp", b.startError(t))
}

func TestMessageDirectoryThatCannotBeWritten(t *testing.T) {
	b := setup(t)
	inTheWay := filepath.Join(b.cfg.DataDir, "file")
	require.NoError(t, os.WriteFile(inTheWay, nil, 0o600))
	b.cfg.DataDir = filepath.Join(inTheWay, "tes")
	require.Contains(t, b.startError(t), "set TES_DATA_DIR to a place that can be written")
}

// Pitfall: a root that is none, as with --cap-drop=ALL.
func TestMessageRootWithoutCapabilities(t *testing.T) {
	b := setup(t)
	b.asRoot("nobody", "54321")
	b.chown = func(file *os.File, _, _ int) error {
		return &os.PathError{Op: "chown", Path: file.Name(), Err: syscall.EPERM}
	}
	require.Contains(t, b.startError(t), "root here may not change user (no CAP_SETUID/CAP_CHOWN): run as an ordinary user or set TES_DATABASE_URL")
}

// Pitfall: a container started with --user has a uid that nobody has named.
func TestMessageUIDWithoutAName(t *testing.T) {
	b := setup(t)
	b.userByID = func(uid string) (*user.User, error) { return nil, errors.New("unknown userid " + uid) }
	require.Contains(t, b.startError(t), fmt.Sprintf("wants a name for uid %d, and there is none: add a passwd entry, run as root, or set TES_DATABASE_URL", b.acc.uid))
}

func TestDefaultBaseDirIsAbsolute(t *testing.T) {
	t.Parallel()
	dir, err := DefaultBaseDir()
	require.NoError(t, err)
	require.True(t, filepath.IsAbs(dir))
}
