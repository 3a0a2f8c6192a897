package jobs

import (
	"context"
	"slices"

	"github.com/seed-3f7a0631/tes/db"
)

// A process claims only tasks whose executor and Go handler the process has. A task without such a
// process waits and does not fail: a later deploy may bring the executor.

// ability is the set of executors of this process.
type ability struct{ executors map[string]Registration }

// has reports whether the process has the executor and, for Go code, the handler.
func (a ability) has(executor, handler string) bool {
	one, ok := a.executors[executor]
	if !ok || executor != executorGo {
		return ok
	}
	return one.Handlers != nil && slices.Contains(one.Handlers(), handler)
}

// takes reports whether the process claims jobs of a kind. Integration and manual jobs need their
// executor. KindAutomated needs any automated executor but "go", whose jobs wait under kinds of
// their own.
func (a ability) takes(kind string) bool {
	if one := executorOf[kind]; one != "" {
		return a.has(one, "")
	}

	// The claimer of kindSome asks some at each claim: the list of Go handlers may change.
	if kind != KindAutomated {
		return true
	}

	for _, name := range executors[Automated] {
		if _, ok := a.executors[name]; ok && name != executorGo {
			return true
		}
	}

	return false
}

// some lists the kinds of jobs that only certain processes can run, and this process can: a kind
// for each automated executor and each Go handler. See waitingKind and LaneRefile.
func (a ability) some() []string {
	var kinds []string
	for _, name := range executors[Automated] {
		one, ok := a.executors[name]
		switch {
		case !ok:
		// Only flushMisfiled gives jobs such a kind: new jobs of these executors are KindAutomated.
		case name != executorGo:
			kinds = append(kinds, someKind(name, ""))
		case one.Handlers != nil:
			for _, handler := range one.Handlers() {
				kinds = append(kinds, someKind(name, handler))
			}
		}
	}

	return kinds
}

// kinds lists every kind that the process claims. The process's sign of life stores the list.
func (r *Runner) kinds() []string {
	kinds := r.ability.some()
	for _, c := range r.claimers {
		if c.some == nil && !slices.Contains(kinds, c.kind) {
			kinds = append(kinds, c.kind)
		}
	}
	return kinds
}

// misfiledJob is a job that this process has claimed and cannot run.
type misfiledJob struct {
	job  int64
	kind string // claimed by the processes that can run the job
}

// flushMisfiled returns claimed jobs to their queues, under kinds that processes with the right
// executor claim. The jobs keep their positions in the queue, and no attempt is counted.
func (r *Runner) flushMisfiled(batch []misfiledJob) {
	// Not the runner's context: a stopping process must still return its claims.
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	p := db.LaneRefileParams{ExecutorID: r.tasks.cfg.ProcessID}
	for _, one := range batch {
		p.JobIds, p.Kinds = append(p.JobIds, one.job), append(p.Kinds, one.kind)
	}

	lanes, err := r.tasks.q.LaneRefile(ctx, p)
	if err != nil {
		r.logTrouble("return jobs that other processes can run", err) // the sweep gives their tasks new jobs
		return
	}

	slices.Sort(lanes)
	lanes = slices.Compact(lanes)
	for _, lane := range lanes {
		r.tasks.notifier.queueNotified(lane)
	}

	if err := r.tasks.q.LaneNotify(ctx, lanes); err != nil {
		r.tasks.cfg.Logger.Debug("lanes were not notified; they poll", "error", err)
	}
}
