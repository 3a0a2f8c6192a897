package jobs

import (
	"slices"
	"strings"
)

// expectation is the fence of a transition: the job, attempt, version and statuses that the
// task must have. A transition is rejected if its task differs.
//
// Use the functions below, because the zero value matches no task: every task has a version
// above 0.
type expectation struct {
	job      int64
	attempt  int32
	version  int32
	statuses []Status // one of these
	expired  bool     // the task's lease has run out
}

// unspecified matches any job, attempt or version. TaskMove has the same number.
const unspecified = -1

// noJob and noVersion match no task: a transition that requires noJob or noVersion is rejected.
const (
	noJob     = -2
	noVersion = -2
)

// atAttempt requires a job and an attempt: the fence for the holder of a lease or a claimed job.
func atAttempt(job int64, attempt int32, statuses ...Status) expectation {
	return expectation{job: job, attempt: attempt, version: unspecified, statuses: statuses}
}

// atJob requires a job, in any attempt.
func atJob(job int64, statuses ...Status) expectation {
	return expectation{job: job, attempt: unspecified, version: unspecified, statuses: statuses}
}

// atVersion requires a version. 0, from a request without If-Match, matches any version; a
// negative version matches no task.
func atVersion(version int32, statuses ...Status) expectation {
	switch {
	case version == 0:
		version = unspecified
	// A client's -1 must not become unspecified.
	case version < 0:
		version = noVersion
	}
	return expectation{job: unspecified, attempt: unspecified, version: version, statuses: statuses}
}

// atJobAndVersion requires a job and a version, in any attempt.
func atJobAndVersion(job int64, version int32, statuses ...Status) expectation {
	return expectation{job: job, attempt: unspecified, version: version, statuses: statuses}
}

// unfenced reports whether the expectation would still match after the task has got another job
// or attempt.
func (e expectation) unfenced() bool {
	return e.version == unspecified && (e.job == unspecified || e.attempt == unspecified)
}

func (e expectation) hasStatus(s Status) bool { return slices.Contains(e.statuses, s) }

// statusList returns the statuses for TaskMove, separated by commas.
func (e expectation) statusList() string {
	if len(e.statuses) == 1 {
		return string(e.statuses[0])
	}
	names := make([]string, len(e.statuses))
	for i, s := range e.statuses {
		names[i] = string(s)
	}
	return strings.Join(names, ",")
}
