package jobs

import (
	"slices"
	"strings"
)

// expectation is what a transition requires of its task: the fence. Where the task differs,
// the transition is not applied.
//
// Make it by one of the functions below; each says what it leaves unspecified. The zero value
// requires version 0, which no task has.
type expectation struct {
	job      int64
	attempt  int32
	version  int32
	statuses []Status // one of these
	expired  bool     // the task's lease has run out
}

// unspecified stands for a job, an attempt or a version that may be any. TaskMove knows it too.
const unspecified = -1

// noJob is the id of no job, noVersion the version of no task: a transition that requires one of
// them is not applied.
const (
	noJob     = -2
	noVersion = -2
)

// atAttempt requires that the task has this job and this attempt. It is the fence of whoever
// holds a lease, or a claimed job.
func atAttempt(job int64, attempt int32, statuses ...Status) expectation {
	return expectation{job: job, attempt: attempt, version: unspecified, statuses: statuses}
}

// atJob requires that the task has this job, in whichever attempt.
func atJob(job int64, statuses ...Status) expectation {
	return expectation{job: job, attempt: unspecified, version: unspecified, statuses: statuses}
}

// atVersion requires a version; 0, as of a request without If-Match, leaves it unspecified. A
// version below 0, which no task has, is required like any other.
func atVersion(version int32, statuses ...Status) expectation {
	switch {
	case version == 0:
		version = unspecified
	case version < 0:
		version = noVersion
	}
	return expectation{job: unspecified, attempt: unspecified, version: version, statuses: statuses}
}

// atJobAndVersion requires both.
func atJobAndVersion(job int64, version int32, statuses ...Status) expectation {
	return expectation{job: job, attempt: unspecified, version: version, statuses: statuses}
}

// unfenced says that the task may have gone on to another job or attempt.
func (e expectation) unfenced() bool {
	return e.version == unspecified && (e.job == unspecified || e.attempt == unspecified)
}

func (e expectation) hasStatus(s Status) bool { return slices.Contains(e.statuses, s) }

// statusList is the statuses as TaskMove takes them: between commas.
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
