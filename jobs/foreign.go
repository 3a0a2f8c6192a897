package jobs

import (
	"fmt"
	"runtime/debug"
)

// Codes of an attempt whose code did not return. Neither is retried: the same code would
// most likely do the same again.
const (
	codePanic  = "PANIC"
	codeGoexit = "GOEXIT"
)

// recovered makes a panic a failure of the attempt, not of the process. Defer it.
func recovered(err *error) {
	if p := recover(); p != nil {
		no := false
		*err = &Failure{Code: codePanic, Message: fmt.Sprint(p), StackTrace: string(debug.Stack()), Retryable: &no}
	}
}

// goexit is the failure of code that ended its goroutine by runtime.Goexit, as
// testing.T.FailNow does.
func goexit() *Failure {
	no := false
	return &Failure{Code: codeGoexit, Message: "the code ended its goroutine instead of returning", Retryable: &no}
}

// isolated calls code of others in a goroutine of its own, and returns a panic or a
// runtime.Goexit as a *Failure. For callers that share their goroutine with a library's
// bookkeeping: River frees a worker's place only when Work returns.
func isolated(call func() error) error {
	ended := make(chan error, 1)
	go func() {
		var err error = goexit()
		defer func() { ended <- err }()
		defer recovered(&err)
		err = call()
	}()
	return <-ended
}
