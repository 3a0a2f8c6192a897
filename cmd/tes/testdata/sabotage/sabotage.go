// Package sabotage is in no build but one of the tests' own, which has a few lines of
// tes replaced by calls of it (see ../../sabotage_test.go). Without its environment
// it does nothing.
package sabotage

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Environment.
const (
	// Dies is the point at which the process dies, Passes how often it is passed
	// before.
	Dies   = "SABOTAGE_DIES"
	Passes = "SABOTAGE_PASSES"
	// Broken is what the process does wrong.
	Broken = "SABOTAGE_BROKEN"
	// Told is a directory where processes note what they have told.
	Told = "SABOTAGE_TOLD"
)

var passed atomic.Int64

// At is kill -9 of this process, if it is to die at this point, with so many events
// in its hands.
func At(point string, events int) {
	if os.Getenv(Dies) != point {
		return
	}
	if before, _ := strconv.ParseInt(os.Getenv(Passes), 10, 64); passed.Add(1) <= before {
		return
	}
	fmt.Fprintf(os.Stderr, "\nsabotage: %d events %s\n", events, point)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// Is says whether this process is broken in that way.
func Is(broken string) bool { return os.Getenv(Broken) == broken }

// fence is what keeps the result of an attempt that is over out of TaskComplete.
var fence = strings.NewReplacer(
	"AND t.job_id = result.job_id", "",
	"ELSE t.status = 'RUNNING' AND t.attempt = result.attempt", "ELSE t.status = 'RUNNING'",
)

// Fenced is a statement, in one broken process without its fence.
func Fenced(statement string) string {
	if !Is("no fence") {
		return statement
	}
	without := fence.Replace(statement)
	if len(statement)-len(without) < 50 {
		panic("sabotage: the fence is not where it was")
	}
	return without
}

// Named is a message, in one broken process under another id if it was told before.
func Named(id string, header map[string]string, body []byte) (string, map[string]string, []byte) {
	if !Is("new event id on republish") || !toldBefore(id) {
		return id, header, body
	}
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	fresh := fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	header = maps.Clone(header)
	header["ce-id"] = fresh
	return fresh, header, bytes.ReplaceAll(body, []byte(id), []byte(fresh))
}

func toldBefore(id string) bool {
	file, err := os.OpenFile(filepath.Join(os.Getenv(Told), id), os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return errors.Is(err, fs.ErrExist)
	}
	return file.Close() != nil
}
