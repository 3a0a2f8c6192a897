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

// lookEvery is how often, at most, files are read to see whether they have changed.
const lookEvery = time.Second

// longestFile bounds what is read of a certificate, key or secret, in bytes.
const longestFile = 1 << 20

// watched is a value that is made of the content of files. Whoever asks for the value has the
// files read again, if that was not done within lookEvery: there is no goroutine to stop, and
// the content is compared, so that neither the clock of a file system nor a link that was
// turned, as Kubernetes does, hides a change. While the new content cannot be used, the value
// stays what it was, and the reason is logged once. It is safe for concurrent use.
type watched[T any] struct {
	setting string   // names the variable, for people
	paths   []string // in the order in which parse gets their texts
	parse   func(texts [][]byte) (T, error)
	log     *slog.Logger

	value  atomic.Pointer[T]
	looked atomic.Int64 // when the files were read last, in ns

	looking sync.Mutex
	used    [sha256.Size]byte // digest of the content that the value was made of; guarded by looking
	wrong   error             // why the content cannot be used now; guarded by looking
}

// newWatched reads files for the first time. An error names the setting and the file.
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

// get is the value as the files have it, as far as that can be used.
func (w *watched[T]) get() T {
	if time.Now().UnixNano()-w.looked.Load() >= int64(lookEvery) && w.looking.TryLock() {
		_, _ = w.read()
		w.looking.Unlock()
	}
	return *w.value.Load()
}

// look reads the files now. It says whether the value is another one, and why the files
// cannot be used.
func (w *watched[T]) look() (changed bool, err error) {
	w.looking.Lock()
	defer w.looking.Unlock()
	return w.read()
}

// name is the setting.
func (w *watched[T]) name() string { return w.setting }

// read is done by whoever holds looking.
func (w *watched[T]) read() (changed bool, err error) {
	defer func() { w.looked.Store(time.Now().UnixNano()) }()
	texts, err := readAll(w.paths)
	if err != nil {
		return false, w.keep(err)
	}
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

// keep tells once why the value stays what it was.
func (w *watched[T]) keep(err error) error {
	if w.wrong == nil || w.wrong.Error() != err.Error() {
		w.log.Error("a setting's file cannot be used: what it held before stays in use", "setting", w.setting, "files", w.paths, "error", err)
	}
	w.wrong = err
	return err
}

func digest(texts [][]byte) (sum [sha256.Size]byte) {
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

// pemBegin begins each block of a PEM file.
const pemBegin = "-----BEGIN"

// errNotRegular is a pipe, a directory or a device: what was read of a pipe does not come
// twice, and whoever read it again would wait for ever.
var errNotRegular = errors.New("it is not a regular file")

// readRegular reads a file. A path that is the content itself, as NAME_FILE would make it of
// NAME, is not repeated in the error: the content may be a private key.
func readRegular(path string) ([]byte, error) {
	if strings.Contains(path, pemBegin) {
		return nil, errors.New("the value is the content of a PEM file, and must be the path of one: set the variable, without _FILE at its end, to the path")
	}
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
	text, err := io.ReadAll(io.LimitReader(file, longestFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(text) > longestFile {
		return nil, fmt.Errorf("%s: the file has more than %d bytes", path, longestFile)
	}
	return text, nil
}
