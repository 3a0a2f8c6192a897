package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// lookEvery is the shortest interval between two readings of a value's files.
const lookEvery = time.Second

// longestFile bounds a certificate, key or secret file, in bytes.
const longestFile = 1 << 20

// watched is a value that is derived from files. get reads the files again if the last reading is
// older than lookEvery, so there is no goroutine to stop. Contents are compared, not times, so that
// neither a coarse file-system clock nor a replaced symbolic link, as in Kubernetes, hides a
// change. While the new content is invalid the value stays unchanged, and the reason is logged
// once. watched is safe for concurrent use.
type watched[T any] struct {
	setting string   // the setting's name
	paths   []string // in the order of parse's argument
	parse   func(texts [][]byte) (T, error)
	log     *slog.Logger

	value  atomic.Pointer[T]
	looked atomic.Int64 // the last reading, Unix time in ns

	looking sync.Mutex
	used    [sha256.Size]byte // digest of the value's content; guarded by looking
	wrong   error             // why the current content is invalid; guarded by looking
}

// newWatched reads the files for the first time. An error names the setting and the file.
func newWatched[T any](log *slog.Logger, setting string, paths []string, parse func(texts [][]byte) (T, error)) (*watched[T], error) {
	w := &watched[T]{setting: setting, paths: paths, parse: parse, log: log}
	texts, err := readAll(paths)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}

	value, err := parse(texts)
	if err != nil {
		return nil, err
	}

	w.used = digest(texts)
	w.value.Store(&value)
	w.looked.Store(time.Now().UnixNano())
	return w, nil
}

// get is the current value, or the last valid one.
func (w *watched[T]) get() T {
	// Only one caller reads the files, and the others go on with the value that there is: a slow
	// disk delays one request, and not all.
	if time.Now().UnixNano()-w.looked.Load() >= int64(lookEvery) && w.looking.TryLock() {
		_, _ = w.read()
		w.looking.Unlock()
	}
	return *w.value.Load()
}

// look reads the files now. It returns whether the value has changed, and why the files are
// invalid.
func (w *watched[T]) look() (changed bool, err error) {
	w.looking.Lock()
	defer w.looking.Unlock()
	return w.read()
}

// name is the setting's name.
func (w *watched[T]) name() string { return w.setting }

// read reads the files. The caller holds looking.
func (w *watched[T]) read() (changed bool, err error) {
	defer func() { w.looked.Store(time.Now().UnixNano()) }()
	texts, err := readAll(w.paths)
	if err != nil {
		return false, w.keep(err)
	}

	// Parsing a certificate for every look would cost more than the digest of the files.
	sum := digest(texts)
	if sum != w.used {
		value, err := w.parse(texts)
		if err != nil {
			return false, w.keep(err)
		}
		w.value.Store(&value)
		w.used, changed = sum, true
		w.log.Info("a setting's file was read again", "setting", w.setting, "files", w.paths)
	}

	w.wrong = nil
	return changed, nil
}

// keep keeps the value and logs the reason once.
func (w *watched[T]) keep(err error) error {
	if w.wrong == nil || w.wrong.Error() != err.Error() {
		w.log.Error("a setting's file cannot be used: what it held before stays in use", "setting", w.setting, "files", w.paths, "error", err)
	}
	w.wrong = err
	return err
}

func digest(texts [][]byte) (sum [sha256.Size]byte) {
	// A digest of digests, so that a byte that moves from one file to the next makes a difference.
	all := sha256.New()
	for _, text := range texts {
		one := sha256.Sum256(text)
		all.Write(one[:])
	}
	copy(sum[:], all.Sum(nil))
	return sum
}

func readAll(paths []string) (texts [][]byte, err error) {
	for _, path := range paths {
		text, err := readRegular(path)
		if err != nil {
			return nil, err
		}
		texts = append(texts, text)
	}
	return texts, nil
}

// pemBegin is the beginning of each block of a PEM file.
const pemBegin = "-----BEGIN"

// errNotRegular is a pipe, a directory or a device. A pipe's content comes only once, and a second
// read would block for ever.
var errNotRegular = errors.New("it is not a regular file")

// readRegular reads a file. If the path is actually the content of a PEM file (NAME_FILE set like
// NAME), the error does not repeat it: it may be a private key.
func readRegular(path string) ([]byte, error) {
	if strings.Contains(path, pemBegin) {
		return nil, errors.New("the value is the content of a PEM file, and must be the path of one: set the variable, without _FILE at its end, to the path")
	}

	// Stat first: opening a pipe without a writer would block.
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("%w: name a file that the account of tes can read", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, errNotRegular)
	}

	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: name a file that the account of tes can read", err)
	}

	defer func() { _ = file.Close() }()

	// One byte more than allowed, to tell a file of exactly the limit from a longer one.
	text, err := io.ReadAll(io.LimitReader(file, longestFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}

	if len(text) > longestFile {
		return nil, fmt.Errorf("%s: the file has more than %d bytes", path, longestFile)
	}

	return text, nil
}
