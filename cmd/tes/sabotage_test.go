package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/cmd/tes/testdata/sabotage"
)

// edit is a place of the sources that the sabotaged build has otherwise. Its file is
// found by the text, so that code may move between the files and packages below dir.
type edit struct{ dir, was, is string }

// The points at which a process that relays may be killed.
const (
	beforePublish = "before publish"
	afterAck      = "after the acknowledgement"
	beforeMark    = "before the mark"
)

// The ways in which the sabotaged build may be broken.
const (
	noFence     = "no fence"
	markFirst   = "mark before publish"
	newEventID  = "new event id on republish"
	busUnsynced = "bus without sync"
)

// brokenTag is the build tag behind which the edited files stand: should one ever come
// into an ordinary build, that does not compile.
const brokenTag = "tesbroken"

// edits are all in which the sabotaged build differs. The ordinary build has no hook
// for any of it.
var edits = []edit{
	{"outbox", `
		last, err := s.bus.Publish(ctx, busMessages(messages))
		if err == nil {
`, `
		sabotage.At("before publish", len(messages))
		last, err := s.bus.Publish(ctx, busMessages(messages))
		if err == nil {
			sabotage.At("after the acknowledgement", len(messages))
`},
	{"outbox", `
	ranges, err := s.q.OutboxAdvance(ctx,`, `
	if acked.messages > 0 {
		sabotage.At("before the mark", acked.messages)
	}
	ranges, err := s.q.OutboxAdvance(ctx,`},
	{"outbox", `
			batches = s.batches
`, `
			batches = s.batches
			if sabotage.Is("mark before publish") {
				marked := next.ackFor(next.messages, 0)
				if _, err = s.q.OutboxAdvance(ctx, db.OutboxAdvanceParams{Term: s.term, Told: marked.ranges, LastSeqs: marked.seqs, UnderWay: inFlight}); err != nil {
					return err
				}
			}
`},
	{"outbox", `
		out[i] = messages[i].Message
`, `
		out[i] = messages[i].Message
		out[i].ID, out[i].Header, out[i].Body = sabotage.Named(out[i].ID, out[i].Header, out[i].Body)
`},
	{"outbox", `
		if seq, found := s.unmarkedSeqs[m.ID]; found {
`, `
		if seq, found := s.unmarkedSeqs[m.ID]; found && !sabotage.Is("new event id on republish") {
`},
	{"outbox/natsbus", `!cfg.NoSync,`, `!cfg.NoSync && !sabotage.Is("bus without sync"),`},
	{"db", `q.db.Query(ctx, taskComplete,`, `q.db.Query(ctx, sabotage.Fenced(taskComplete),`},
}

// sabotaged is a build of tes that dies where a test wants it to, or is broken in one
// of four ways; see package sabotage for how it is told.
func sabotaged(t *testing.T) (exe string) {
	t.Helper()
	exe, err := sabotagedBuild()
	require.NoError(t, err)
	return exe
}

// sabotagedDir is removed when all tests are over, or by the next that need one: it is
// locked as long as this process lives.
var sabotagedDir lockedDir

var sabotagedBuild = sync.OnceValues(func() (exe string, err error) {
	if sabotagedDir, err = lockedTemp(os.TempDir()); err != nil {
		return "", err
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		return "", err
	}
	texts, err := sabotagedSources(root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, text := range texts {
		place := filepath.Join(sabotagedDir.path, strings.ReplaceAll(file, "/", "-"))
		if err := os.WriteFile(place, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(root, file)] = place
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	list := filepath.Join(sabotagedDir.path, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		return "", err
	}
	// A test binary too, for the sake of its leash.
	exe = filepath.Join(sabotagedDir.path, "tes.test")
	said, err := exec.Command("go", "test", "-c", "-tags", brokenTag, "-overlay", list, "-o", exe, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the sabotaged tes: %w\n%s", err, said)
	}
	return exe, nil
})

// lockedDir is a temporary directory with an flock on it, which the kernel releases
// however its holder dies.
type lockedDir struct {
	path string
	file *os.File // keeps the lock; nil for none
}

func (d lockedDir) remove() {
	if d.file != nil {
		_ = os.RemoveAll(d.path)
		_ = d.file.Close()
	}
}

const lockedPrefix = "tes-sabotage-"

// lockedTemp makes one, and removes those of the dead.
func lockedTemp(parent string) (lockedDir, error) {
	all, _ := filepath.Glob(filepath.Join(parent, lockedPrefix+"*"))
	for _, path := range all {
		if left, err := lockDir(path); err == nil {
			left.remove()
		}
	}
	for {
		path, err := os.MkdirTemp(parent, lockedPrefix)
		if err != nil {
			return lockedDir{}, err
		}
		dir, err := lockDir(path)
		if err != nil {
			continue // swept by another before it was locked
		}
		if _, err := os.Stat(path); err == nil {
			return dir, nil
		}
		_ = dir.file.Close()
	}
}

func lockDir(path string) (lockedDir, error) {
	file, err := os.Open(path)
	if err != nil {
		return lockedDir{}, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return lockedDir{}, errors.Join(err, file.Close())
	}
	return lockedDir{path, file}, nil
}

// A test binary that was killed leaves its build to the next, which takes nobody's that
// is alive.
func TestSabotagedBuildsOfTheDeadAreRemoved(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	living, err := lockedTemp(parent)
	require.NoError(t, err)
	dead, err := lockedTemp(parent)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dead.path, "tes.test"), nil, 0o600))
	require.NoError(t, dead.file.Close())
	next, err := lockedTemp(parent)
	require.NoError(t, err)
	require.DirExists(t, living.path)
	require.NoDirExists(t, dead.path)
	living.remove()
	next.remove()
	left, err := os.ReadDir(parent)
	require.NoError(t, err)
	require.Empty(t, left)
}

// sabotagedSources are the edited files by their names.
func sabotagedSources(root string) (map[string]string, error) {
	texts := map[string]string{}
	for _, e := range edits {
		file, err := fileWith(filepath.Join(root, e.dir), e.was)
		if err != nil {
			return nil, err
		}
		name, err := filepath.Rel(root, file)
		if err != nil {
			return nil, err
		}
		text, edited := texts[name]
		if !edited {
			raw, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			text = "//go:build " + brokenTag + "\n\n" + strings.Replace(string(raw), "\nimport (\n", "\nimport (\n\t\""+module+"cmd/tes/testdata/sabotage\"\n", 1)
		}
		if !strings.Contains(text, e.was) {
			return nil, fmt.Errorf("two edits of %s overlap: %s", name, e.was)
		}
		texts[name] = strings.Replace(text, e.was, e.is, 1)
	}
	return texts, nil
}

// fileWith finds the one Go source below dir, tests aside, that has text once.
func fileWith(dir, text string) (found string, err error) {
	times := 0
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		raw, err := os.ReadFile(path)
		if n := strings.Count(string(raw), text); n > 0 {
			found, times = path, times+n
		}
		return err
	})
	if err == nil && times != 1 {
		err = fmt.Errorf("the sources below %s have this %d times, it should be once: %s", dir, times, text)
	}
	return found, err
}

// broken is the environment of a process that does something wrong.
func broken(how string) string { return sabotage.Broken + "=" + how }
