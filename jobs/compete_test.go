package jobs

import (
	"context"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestProcessesShareTheWorkAndDoItOnce(t *testing.T) {
	t.Parallel()
	for name, pure := range map[string]bool{"with effects": false, "pure": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const tasks, callers = 600, 12
			b := setup(t)
			var mu sync.Mutex
			ran, by := map[uuid.UUID]int{}, map[string]int{}
			processes := []*testBundle{b, join(t, b.pool, "p2")}
			for _, p := range processes {
				p.work(map[string]Registration{"noop": {Pure: pure, Executor: ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
					mu.Lock()
					defer mu.Unlock()
					ran[job.TaskID]++
					by[p.ProcessID()]++
					return Result{}, nil
				})}}, func(cfg *RunnerConfig) { cfg.Slots = map[string]int{LaneAutomated: 50} })
			}
			var all sync.WaitGroup
			for i := range callers {
				all.Go(func() {
					p := processes[i%2]
					for range tasks / callers {
						if _, _, err := p.Create(p.ctx, request()); err != nil {
							t.Errorf("create: %v", err)
						}
					}
				})
			}
			all.Wait()
			waitFor(t, "all to be completed", func() bool {
				return ask[int](b, "SELECT count(*) FROM task WHERE status = 'COMPLETED'") == tasks
			})
			require.Len(t, ran, tasks)
			for id, n := range ran {
				require.Equal(t, 1, n, "task %s", id)
			}
			require.Len(t, by, 2, "both have worked: %v", by)
			require.Equal(t, tasks, ask[int](b, "SELECT count(*) FROM task_attempt WHERE outcome = 'COMPLETED' AND attempt = 1"))
			require.Equal(t, 3*tasks, ask[int](b, "SELECT count(*) FROM task_event"))
			require.Equal(t, tasks, ask[int](b, "SELECT count(*) FROM river_job WHERE state = 'completed'"))
		})
	}
}
