package jobs

import (
	"context"
	"slices"

	"github.com/seed-3f7a0631/tes/db"
)

// A process claims the tasks that it can run. A task whose executor or Go handler no process has
// waits, and does not fail: a deploy that brings the executor comes in time.

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

// takes reports whether the process claims jobs of a kind: integration and manual jobs if it has
// their executor, KindAutomated if it has an executor whose jobs wait under that kind.
func (a ability) takes(kind string) bool {
	if one := executorOf[kind]; one != "" {
		return a.has(one, "")
	}

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

// some lists the kinds of the jobs that wait for a process with a certain executor or handler, as
// far as this process has them: see waitingKind and LaneRefile.
func (a ability) some() []string {
	var kinds []string
	for _, name := range executors[Automated] {
		one, ok := a.executors[name]
		switch {
		case !ok:
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

// kinds lists every kind that the process claims, for the other processes to know.
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
	kind string // under which a process waits for it that can
}

// flushMisfiled gives jobs back under the kinds of the processes that can run them. The jobs keep
// their places in the queue, and no attempt counts.
func (r *Runner) flushMisfiled(batch []misfiledJob) {
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
