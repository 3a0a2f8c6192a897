package api_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/seed-3f7a0631/tes/api"
)

// mib is a payload that no compression makes small.
func mib(n int) object {
	var text strings.Builder
	for i := 0; text.Len() < n; i++ {
		fmt.Fprintf(&text, "%x", (uint64(i)+1)*0x9e3779b97f4a7c15)
	}
	return object{"blob": text.String()[:n]}
}

const megabyte = 1_000_000

// Sixty tasks of a megabyte are no answer of sixty: lists leave out what is long, and
// where it is asked for a page ends at 4 MiB, and the next goes on exactly there.
//
//nolint:paralleltest // it measures what is allocated while nothing else runs
func TestPagesAreBoundedInBytes(t *testing.T) {
	b := setup(t)
	const tasks = 60
	var want []string
	for i := range tasks {
		payload := mib(megabyte)
		if i%10 == 9 {
			payload = object{"blob": strings.Repeat("a", megabyte)} // stored in some 12 KiB
		}
		_, task := b.create(t, noop(object{"input": payload}))
		want = append(want, task["taskId"].(string))
	}

	page := b.ask(t, orchestrator, "GET", tasksPath+"/workflow/wf-1?limit=200", nil)
	require.Less(t, len(page.body), tasks*2000)
	items := page.is(t, 200)["items"].([]any)
	require.Len(t, items, tasks)
	for _, item := range items {
		require.Nil(t, item.(object)["input"])
		require.Equal(t, []any{"input"}, item.(object)["truncated"])
	}

	var got []string
	before := allocated()
	for cursor := ""; ; {
		r := b.ask(t, orchestrator, "GET", tasksPath+"/workflow/wf-1?limit=200&include=payloads"+cursor, nil)
		body := r.is(t, 200)
		require.LessOrEqual(t, len(r.body), 4<<20)
		items := body["items"].([]any)
		require.Len(t, items, min(4, tasks-len(got)))
		for _, item := range items {
			require.Nil(t, item.(object)["truncated"])
			require.Len(t, item.(object)["input"].(object)["blob"], megabyte)
			got = append(got, item.(object)["taskId"].(string))
		}
		if body["nextCursor"] == nil {
			break
		}
		cursor = "&cursor=" + body["nextCursor"].(string)
		if len(got) == 4 { // of one page, the client's reading of it included
			require.Less(t, allocated()-before, uint64(150<<20))
		}
	}
	require.Equal(t, want, got)

	one := b.ask(t, orchestrator, "GET", tasksPath+"/"+want[0], nil).is(t, 200)
	require.Len(t, one["input"].(object)["blob"], megabyte, "the task alone has all")
}

// allocated is what was ever allocated: a bound that no garbage collection blurs.
func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// Whatever the sizes, the pages together are the list: nothing twice, nothing left out;
// and exactly what is longer than 4 KiB is left out of them.
func TestPagesAreTheWholeList(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sizes := []int{1, 100, 4000, 4096 - len(`{"blob": ""}`), 4097 - len(`{"blob": ""}`), 6000, 30_000, 100_000, 900_000}
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		workflow := fmt.Sprintf("wf-%d", run)
		var want []string
		size := map[string]int{}
		for range rapid.IntRange(1, 12).Draw(rt, "tasks") {
			n := rapid.SampledFrom(sizes).Draw(rt, "size")
			payload := mib(n)
			if rapid.Bool().Draw(rt, "compressible") {
				payload = object{"blob": strings.Repeat("a", n)}
			}
			_, task := b.create(t, noop(object{"workflowId": workflow, "input": payload}))
			id := task["taskId"].(string)
			want, size[id] = append(want, id), n
		}
		limit := rapid.IntRange(1, 12).Draw(rt, "limit")
		for _, include := range []string{"", "&include=payloads"} {
			var got []string
			for cursor := ""; ; {
				r := b.ask(t, orchestrator, "GET", fmt.Sprintf("%s/workflow/%s?limit=%d%s%s", tasksPath, workflow, limit, include, cursor), nil)
				body := r.is(t, 200)
				require.LessOrEqual(rt, len(r.body), 4<<20)
				for _, item := range body["items"].([]any) {
					item := item.(object)
					id := item["taskId"].(string)
					got = append(got, id)
					if long := size[id]+len(`{"blob": ""}`) > 4096; long && include == "" {
						require.Nil(rt, item["input"], "%d bytes", size[id])
						require.Equal(rt, []any{"input"}, item["truncated"])
					} else {
						require.Len(rt, item["input"].(object)["blob"], size[id])
						require.NotContains(rt, item, "truncated")
					}
				}
				if body["nextCursor"] == nil {
					break
				}
				cursor = "&cursor=" + body["nextCursor"].(string)
			}
			require.Equal(rt, want, got)
		}
	})
}

// Outputs, contexts, and the payloads of events are left out alike.
func TestWhatListsLeaveOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, task := b.create(t, manual(object{"workflowContext": mib(5000)}))
	b.ask(t, ui, "POST", path+"/reassign", object{"assigneeId": "jane"}).is(t, 200)
	output := mib(5000)
	for i := range 40 { // short members, of which the event tells
		output[fmt.Sprintf("member-%d", i)] = strings.Repeat("x", 200)
	}
	b.put(t, path, object{"status": "COMPLETED", "output": output}).is(t, 200)

	for _, list := range []string{"/workflow/wf-1", "/user/jane", "/user/jane?claimable=true"} {
		service, and := ui, "?"
		if strings.Contains(list, "?") {
			and = "&"
		}
		item := b.ask(t, service, "GET", tasksPath+list, nil).is(t, 200)["items"].([]any)[0].(object)
		require.Equal(t, task["taskId"], item["taskId"])
		require.Equal(t, []any{"output", "workflowContext"}, item["truncated"])
		require.Equal(t, object{"n": 1.0}, item["input"])
		require.Nil(t, item["output"])
		require.Contains(t, item, "workflowContext")
		require.Nil(t, item["workflowContext"])
		item = b.ask(t, service, "GET", tasksPath+list+and+"include=payloads", nil).is(t, 200)["items"].([]any)[0].(object)
		require.NotContains(t, item, "truncated")
		require.Len(t, item["output"].(object)["blob"], 5000)
		require.Len(t, item["workflowContext"].(object)["blob"], 5000)
		b.ask(t, service, "GET", tasksPath+list+and+"include=everything", nil).fails(t, 422, "VALIDATION_ERROR")
	}

	for include, truncated := range map[string]any{"": []any{"payload"}, "?include=payloads": nil} {
		events := b.ask(t, orchestrator, "GET", path+"/events"+include, nil).is(t, 200)["items"].([]any)
		last := events[len(events)-1].(object)
		require.Equal(t, "completed", last["type"])
		require.Equal(t, truncated, last["truncated"])
		require.Equal(t, truncated == nil, last["payload"] != nil)
	}
}

// Definitions can be long too.
func TestPagesOfDefinitionsAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	schema := object{"type": "object", "description": strings.Repeat("x", 60_000)}
	const all = 40
	for i := range all {
		b.ask(t, orchestrator, "PUT", fmt.Sprintf("/api/internal/task-definitions/def-%02d", i), object{
			"type": "AUTOMATED", "version": "1.0.0", "executionConfig": object{"executor": "noop"}, "inputSchema": schema, "outputSchema": schema,
		}).is(t, 201)
	}
	pages := 0
	seen := 0
	for cursor := ""; ; {
		r := b.ask(t, orchestrator, "GET", "/api/internal/task-definitions?limit=200"+cursor, nil)
		pages++
		require.LessOrEqual(t, len(r.body), 4<<20)
		body := r.is(t, 200)
		for _, item := range body["items"].([]any) {
			require.Equal(t, fmt.Sprintf("def-%02d", seen), item.(object)["id"])
			seen++
		}
		if body["nextCursor"] == nil {
			break
		}
		cursor = "&cursor=" + body["nextCursor"].(string)
	}
	require.Equal(t, all, seen)
	require.Equal(t, 2, pages)
}

// hangUp asks for a long answer and reads none of it, with as little room for it as the
// kernel gives.
func (b *testBundle) hangUp(t *testing.T, path string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(b.url, "http://"))
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).SetReadBuffer(4<<10))
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: tes\r\nAuthorization: Bearer %s\r\nX-Request-Id: the-slow-one\r\n\r\n", path, b.auth.Token(orchestrator))
	require.NoError(t, err)
	_, err = bufio.NewReaderSize(conn, 16).ReadByte()
	require.NoError(t, err)
	return conn
}

// line waits for the line of a request in the log.
func (b *testBundle) line(t *testing.T, id string) (line object) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); <-tick.C {
		for text := range strings.Lines(b.log.String()) {
			if strings.Contains(text, `"msg":"request"`) && strings.Contains(text, id) {
				require.NoError(t, json.Unmarshal([]byte(text), &line))
				return line
			}
		}
	}
	require.FailNow(t, "no such line", b.log.String())
	return nil
}

// Whoever reads its answer too slowly is cut, and whoever leaves is gone: neither is an
// error of ours, nor a panic with the answer in it, and both are counted.
func TestClientsThatDoNotRead(t *testing.T) {
	t.Parallel()
	for name, leaves := range map[string]bool{"slow": false, "gone": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			patience := 100 * time.Millisecond
			if leaves {
				patience = time.Hour
			}
			b := setup(t, func(cfg *api.Config) { cfg.AnswerTime = patience })
			for range 4 {
				b.create(t, noop(object{"input": mib(megabyte)}))
			}
			conn := b.hangUp(t, tasksPath+"/workflow/wf-1?include=payloads")
			defer conn.Close()
			if leaves {
				require.NoError(t, conn.Close())
			}
			line := b.line(t, "the-slow-one")
			require.Equal(t, "INFO", line["level"])
			require.Equal(t, true, line["client_gone"])
			require.NotContains(t, b.log.String(), "ERROR")
			require.NotContains(t, b.log.String(), "panic")
			require.Less(t, len(b.log.String()), 64<<10)
			counts := b.ask(t, monitoring, "GET", tasksPath+"/metrics", nil).is(t, 200)["refusals"].(object)
			if leaves {
				require.EqualValues(t, 1, counts["clientsGone"])
				require.EqualValues(t, 0, counts["slowReaders"])
				return
			}
			require.Equal(t, "the client read too slowly", line["cut"])
			require.EqualValues(t, 1, counts["slowReaders"])
			got, err := io.Copy(io.Discard, conn)
			require.Less(t, got, int64(4*megabyte), "it was cut")
			_ = err // a reset, or the end
		})
	}
}
