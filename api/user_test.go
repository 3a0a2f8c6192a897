package api_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// withPeople returns a bundle whose server verifies people's tokens, and a function that makes them.
func withPeople(t *testing.T, demand bool) (*testBundle, func(peertest.TokenOptions) []string) {
	t.Helper()
	people := startAuth(t)
	peers, err := peer.New(peer.Config{BaseURL: people.URL(), Policy: retry.Policy{Retries: -1}})
	require.NoError(t, err)
	t.Cleanup(peers.Close)
	b := setup(t, func(c *api.Config) { c.UserTokens = verdicts{peers.Auth}; c.RequireUserToken = demand })
	b.assigning(t)
	return b, func(who peertest.TokenOptions) []string {
		token, err := people.Mint(who)
		require.NoError(t, err)
		return []string{"X-User-Token", token}
	}
}

// unmoved demands that what act asks for changes nothing of these tasks. Others of the
// service go on meanwhile, so that not all of the database can be compared.
func (b *testBundle) unmoved(t *testing.T, act func(), paths ...string) {
	t.Helper()
	look := func() (tasks []object) {
		for _, path := range paths {
			tasks = append(tasks, b.ask(t, ui, "GET", path, nil).is(t, 200), b.ask(t, ui, "GET", path+"/events", nil).is(t, 200))
		}
		return tasks
	}
	before := look()
	act()
	require.Equal(t, before, look())
}

// TestUserTokenSaysTheRoles: with a token of the person's own, the roles and groups are
// those that the Auth Service answers. The body may ask for fewer.
func TestUserTokenSaysTheRoles(t *testing.T) {
	t.Parallel()
	b, token := withPeople(t, true)
	clerk := token(peertest.TokenOptions{Subject: "eve", Roles: []string{"clerk"}})
	chief := token(peertest.TokenOptions{Subject: "carl", Roles: []string{"clerk", "cfo"}})
	crew := token(peertest.TokenOptions{Subject: "jane", Groups: []string{"crew", "night"}})
	approve, _ := b.open(t, object{"candidateRoles": []any{"cfo"}})
	load, _ := b.open(t, object{"candidateGroups": []any{"crew"}})

	b.unmoved(t, func() {
		for _, at := range []string{approve + "/claim", tasksPath + "/claim-next"} {
			p := b.ask(t, ui, "POST", at, object{"userId": "eve", "roles": []any{"clerk", "cfo"}}, clerk...).fails(t, 403, "FORBIDDEN")
			require.Contains(t, p["detail"], "role cfo")
			require.Equal(t, []string{"body.roles[1]"}, violations(p))
			p = b.ask(t, ui, "POST", at, object{"userId": "jane", "groups": []any{"crew", "board"}}, crew...).fails(t, 403, "FORBIDDEN")
			require.Contains(t, p["detail"], "group board")
			require.Equal(t, []string{"body.groups[1]"}, violations(p))
		}
		// What the Auth Service does not say, nobody has.
		p := b.ask(t, ui, "POST", load+"/claim", object{"userId": "eve", "groups": []any{"crew"}}, clerk...).fails(t, 403, "FORBIDDEN")
		require.Equal(t, []string{"body.groups[0]"}, violations(p))
		b.ask(t, ui, "POST", approve+"/claim", object{"userId": "eve"}, clerk...).fails(t, 403, "FORBIDDEN")
		b.ask(t, ui, "POST", approve+"/claim", object{"userId": "carl", "roles": []any{"clerk"}}, chief...).fails(t, 403, "FORBIDDEN")
		r := b.ask(t, ui, "POST", tasksPath+"/claim-next", object{"userId": "carl", "roles": []any{"clerk"}}, chief...)
		require.Nil(t, r.is(t, 200)["task"])
	}, approve, load)

	b.ask(t, ui, "POST", approve+"/claim", object{"userId": "carl", "roles": []any{"cfo"}}, chief...).is(t, 200)
	next := b.ask(t, ui, "POST", tasksPath+"/claim-next", object{"userId": "jane"}, crew...).is(t, 200)["task"].(object)
	require.Equal(t, load, tasksPath+"/"+next["taskId"].(string), "without a word, all that the token has")

	// What follows a claim is for who claimed it.
	for _, verb := range []string{"unclaim", "complete"} {
		b.ask(t, ui, "POST", approve+"/"+verb, object{"userId": "eve"}, clerk...).fails(t, 403, "FORBIDDEN")
		b.ask(t, ui, "POST", approve+"/"+verb, object{"userId": "carl"}, clerk...).fails(t, 403, "FORBIDDEN")
	}
	b.ask(t, ui, "POST", approve+"/complete", object{"userId": "carl"}, chief...).is(t, 200)
}

// TestReassignTakesAPersonsOwnTask: with a token of the person's own, a task is given away
// by whose it is, by who could claim it, and by the roles that its rules name.
func TestReassignTakesAPersonsOwnTask(t *testing.T) {
	t.Parallel()
	b, token := withPeople(t, false)
	of := func(who string, roles, groups []string) []string {
		return token(peertest.TokenOptions{Subject: who, Roles: roles, Groups: groups})
	}
	jane, bob := of("jane", nil, nil), of("bob", []string{"clerk"}, []string{"others"})
	lead := of("lena", []string{"lead"}, nil)
	mine := object{"assigneeId": "bob", "reason": "I want it"}

	owned, task := b.open(t, object{"assignee": "jane"})
	require.Equal(t, "jane", task["assignee"])
	b.unmoved(t, func() {
		b.ask(t, ui, "POST", owned+"/reassign", mine, bob...).fails(t, 403, "FORBIDDEN")
		b.ask(t, ui, "POST", owned+"/reassign", mine, lead...).fails(t, 403, "FORBIDDEN") // nothing names the role
		b.ask(t, ui, "POST", owned+"/reassign", mine, append([]string{"If-Match", `"99"`}, jane...)...).fails(t, 412, "PRECONDITION_FAILED")
	}, owned)
	given := b.ask(t, ui, "POST", owned+"/reassign", mine, jane...).is(t, 200)
	require.Equal(t, "bob", given["assignee"])
	b.ask(t, ui, "POST", owned+"/reassign", object{"groupId": "crew"}, jane...).fails(t, 403, "FORBIDDEN") // it was theirs
	b.ask(t, ui, "POST", owned+"/reassign", object{"assigneeId": "ann"}).is(t, 200)                        // the caller's word, as ever

	for _, rules := range map[string]object{
		"by name":  {"candidateUsers": []any{"bob"}},
		"by role":  {"candidateRoles": []any{"clerk"}},
		"by group": {"candidateGroups": []any{"others"}},
	} {
		path, _ := b.open(t, merge(object{"reassignRoles": []any{"lead"}, "defaultGroup": "crew"}, rules))
		b.ask(t, ui, "POST", path+"/reassign", mine, jane...).fails(t, 403, "FORBIDDEN")
		b.ask(t, ui, "POST", path+"/reassign", mine, bob...).is(t, 200)
		b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane"}, lead...).is(t, 200)
	}

	// A claim keeps the other candidates out.
	claimed, _ := b.open(t, object{"candidateUsers": []any{"jane", "bob"}, "reassignRoles": []any{"lead"}})
	b.ask(t, ui, "POST", claimed+"/claim", object{"userId": "jane"}, jane...).is(t, 200)
	b.ask(t, ui, "POST", claimed+"/reassign", mine, bob...).fails(t, 403, "FORBIDDEN")
	b.ask(t, ui, "POST", claimed+"/reassign", object{"assigneeId": "ann"}, lead...).is(t, 200)

	// The roles are held to what names can be.
	for _, bad := range []any{[]any{"a\nb"}, []any{""}, []any{7}, make([]any, 33)} {
		rules := manual(object{"executionConfig": object{"executor": "manual", "assignmentRules": object{"reassignRoles": bad}}})
		b.ask(t, orchestrator, "POST", tasksPath, rules).fails(t, 422, "VALIDATION_ERROR")
	}
}
