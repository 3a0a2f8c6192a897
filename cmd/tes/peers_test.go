package main

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/manual"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// Who is not available is not given a task, also while the User Service is away and
// what it said before is gone by; where nobody is, the defaults are.
func TestTasksGoToWhoIsAvailable(t *testing.T) {
	t.Parallel()
	there, err := peertest.Start(peertest.Config{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, there.Close(context.WithoutCancel(t.Context()))) })
	clients, err := peer.New(peer.Config{BaseURL: there.URL(), Policy: retry.Policy{Retries: -1}})
	require.NoError(t, err)
	t.Cleanup(clients.Close)
	people := peers{clients}.directory()
	assign := func(role string) jobs.Assignment {
		job := jobs.Job{Config: jobs.ExecutionConfig{AssignmentRules: &jobs.AssignmentRules{Role: role, DefaultAssignee: "deputy"}}}
		result, err := manual.New(people, nil).Execute(t.Context(), job)
		require.NoError(t, err)
		return *result.Assign
	}

	there.Steer(peertest.User, peertest.Steering{Body: json.RawMessage(`[
		{"id": "ann", "name": "Ann", "roles": ["clerk"], "skills": [], "available": false},
		{"id": "bob", "name": "Bob", "roles": ["clerk"], "skills": [], "available": true},
		{"id": "cid", "name": "Cid", "roles": ["clerk"], "skills": []}
	]`)})
	got, err := people.ByRole(t.Context(), "clerk", nil)
	require.NoError(t, err)
	require.Equal(t, []manual.Person{{ID: "bob", Name: "Bob", Roles: []string{"clerk"}, Skills: []string{}}}, got)
	require.Equal(t, "bob", assign("clerk").AssigneeID)
	there.Steer(peertest.User, peertest.Steering{Mode: peertest.ModeGone})
	require.Equal(t, "bob", assign("clerk").AssigneeID)

	there.Steer(peertest.User, peertest.Steering{Body: json.RawMessage(`[{"id": "ann", "name": "Ann", "available": false}]`)})
	require.Equal(t, "deputy", assign("pilot").AssigneeID)
}
