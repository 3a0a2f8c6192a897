package jobs

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

func TestOpenTasksAreThosePeopleHaveToDo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tasks := b.openAll(3, Assignment{AssigneeID: "ann"})
	b.open(Assignment{CandidateUsers: []string{"ann"}})
	b.open(Assignment{AssigneeID: "eve"})
	_, err := b.Worklist.Claim(b.ctx, tasks[0].TaskID, asUI, ann)
	require.NoError(t, err)
	_, err = b.Worklist.Complete(b.ctx, tasks[1].TaskID, asUI, "ann", nil, "")
	require.NoError(t, err)
	open, err := b.Worklist.OpenTasks(b.ctx, []string{"ann", "bob"})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"ann": 2}, open)
	open, err = b.Worklist.OpenTasks(b.ctx, nil)
	require.NoError(t, err)
	require.Empty(t, open)
}

func TestFirstIDIsBelowThoseMadeThen(t *testing.T) {
	t.Parallel()
	before := firstIDAt(time.Now())
	id, err := uuid.NewV7()
	require.NoError(t, err)
	after := firstIDAt(time.Now().Add(time.Millisecond))
	require.Less(t, before.String(), id.String())
	require.Less(t, id.String(), after.String())
}
