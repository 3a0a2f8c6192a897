package api_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTaskEventsAndAttempts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, task := b.create(t, noop())
	none := b.ask(t, ui, "GET", path+"/attempts", nil).is(t, 200)
	require.Equal(t, object{"items": []any{}, "nextCursor": nil}, none)
	put := func(body object) { b.ask(t, orchestrator, "PUT", path+"/status", body).is(t, 200) }
	put(object{"status": "RUNNING"})
	put(object{"status": "PENDING"})
	put(object{"status": "RUNNING"})

	t.Run("the running one has a lease", func(t *testing.T) {
		page := b.ask(t, ui, "GET", path+"/attempts", nil).is(t, 200)
		require.Nil(t, page["nextCursor"])
		items := page["items"].([]any)
		require.Len(t, items, 2)
		first, second := items[0].(object), items[1].(object)
		require.EqualValues(t, 1, first["attempt"])
		require.Equal(t, "RELEASED", first["outcome"])
		require.NotNil(t, first["endedAt"])
		require.NotContains(t, first, "lease")
		require.EqualValues(t, 2, second["attempt"])
		for _, name := range []string{"endedAt", "outcome", "error"} {
			value, there := second[name]
			require.True(t, there && value == nil, name)
		}
		lease := second["lease"].(object)
		require.Equal(t, "person", lease["kind"])
		require.Equal(t, second["executorId"], lease["owner"])
		require.NotNil(t, lease["expiresAt"])
		require.NotNil(t, lease["deadlineAt"])
	})

	put(object{"status": "FAILED", "error": object{"code": "BROKEN", "message": "it broke"}})
	attempts := b.ask(t, ui, "GET", path+"/attempts", nil).is(t, 200)["items"].([]any)
	last := attempts[1].(object)
	require.Equal(t, "FAILED", last["outcome"])
	require.Equal(t, "BROKEN", last["error"].(object)["code"])
	require.NotContains(t, last, "lease")

	events := b.ask(t, ui, "GET", path+"/events", nil).is(t, 200)["items"].([]any)
	var story []any
	for i, e := range events {
		e := e.(object)
		require.Len(t, e, 8)
		require.EqualValues(t, i+1, e["seq"])
		require.NotEmpty(t, e["at"])
		require.NotEmpty(t, e["actor"])
		story = append(story, []any{e["type"], e["attempt"], e["was"], e["now"]})
	}
	require.Equal(t, []any{
		[]any{"created", 0.0, nil, "PENDING"},
		[]any{"started", 1.0, "PENDING", "RUNNING"},
		[]any{"released", 1.0, "RUNNING", "PENDING"},
		[]any{"started", 2.0, "PENDING", "RUNNING"},
		[]any{"failed", 2.0, "RUNNING", "FAILED"},
	}, story)
	require.Equal(t, task["createdAt"], events[0].(object)["at"])
	require.Equal(t, orchestrator, events[0].(object)["actor"])
	require.Nil(t, events[0].(object)["payload"])
	require.IsType(t, object{}, events[1].(object)["payload"])

	t.Run("pages", func(t *testing.T) {
		for list, want := range map[string][]any{"/events": events, "/attempts": attempts} {
			var got []any
			query := "?limit=2"
			for range 5 {
				page := b.ask(t, ui, "GET", path+list+query, nil).is(t, 200)
				got = append(got, page["items"].([]any)...)
				if page["nextCursor"] == nil {
					break
				}
				query = "?limit=2&cursor=" + page["nextCursor"].(string)
			}
			require.Equal(t, want, got, list)
		}
	})

	t.Run("a cursor is for its own list", func(t *testing.T) {
		other, _ := b.create(t, noop())
		next := b.ask(t, ui, "GET", path+"/events?limit=1", nil).is(t, 200)["nextCursor"].(string)
		for _, place := range []string{path + "/attempts", other + "/events"} {
			b.ask(t, ui, "GET", place+"?cursor="+next, nil).fails(t, 422, "VALIDATION_ERROR")
		}
		for _, query := range []string{"limit=0", "limit=201", "cursor=a", "status=FAILED", "cursor=%00"} {
			b.ask(t, ui, "GET", path+"/events?"+query, nil).fails(t, 422, "VALIDATION_ERROR")
		}
	})
}

func TestReadsOfUnknownAndForeignTasks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, _ := b.create(t, noop())
	for _, read := range []string{"/why", "/events", "/attempts"} {
		b.ask(t, ui, "GET", path+read, nil).is(t, 200)
		b.askWith(t, b.tenant(t, ui, "a"), "GET", path+read, nil).fails(t, 404, "NOT_FOUND")
		for _, id := range []string{"x", "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", "0198f2a47d3e7c119a530a6c9b6f1a01"} {
			b.ask(t, ui, "GET", tasksPath+"/"+id+read, nil).fails(t, 404, "NOT_FOUND")
		}
	}
}
