package jobs

import (
	"fmt"
	"runtime/debug"
)

// Error codes of an attempt whose code did not return. Such an attempt is not retried: the
// same code would most likely fail in the same way.
const (
	codePanic  = "PANIC"
	codeGoexit = "GOEXIT"
)

// recovered turns a panic into a failure of the attempt, so that the process survives. Call
// recovered by defer.
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

// isolated calls foreign code in a goroutine of its own, and returns a panic or a
// runtime.Goexit as a *Failure. For callers that share their goroutine with a library's
// bookkeeping: River frees a worker's slot only when Work returns.
func isolated(call func() error) error {
	ended := make(chan error, 1)
	go func() {
		// Goexit skips the rest of this function and runs its deferred calls, which send this error.
		var err error = goexit()
		defer func() { ended <- err }()
		defer recovered(&err)
		err = call()
	}()
	return <-ended
}
