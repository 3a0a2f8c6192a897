package api_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api"
)

// announced sends the head of a request whose body does not come, and answers what is
// answered. The server of a test has no read timeout: an answer that waits for the body
// never comes.
func announced(t *testing.T, address, head string) (net.Conn, *http.Response) {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(address, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(conn, strings.ReplaceAll(head, "\n", "\r\n")+"\r\n")
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err, head)
	_, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	return conn, resp
}

// TestRefusalsDoNotWaitForTheBody: a request that is refused by what its head says is
// refused at once, and the connection is not held for a body that nobody wants.
func TestRefusalsDoNotWaitForTheBody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bearer := func(service string) string { return "Authorization: Bearer " + b.auth.Token(service) + "\n" }
	const json = "Host: tes\nContent-Type: application/json\n"
	for name, tc := range map[string]struct {
		head   string
		status int
	}{
		"no token":        {"POST " + tasksPath + " HTTP/1.1\n" + json, 401},
		"a bad token":     {"POST " + tasksPath + " HTTP/1.1\n" + json + "Authorization: Bearer x\n", 401},
		"another caller":  {"POST " + tasksPath + " HTTP/1.1\n" + json + bearer(monitoring), 403},
		"another scope":   {"POST " + tasksPath + "/batch HTTP/1.1\n" + json + bearer(ui), 403},
		"no such path":    {"POST /api/internal/nowhere HTTP/1.1\n" + json, 404},
		"another method":  {"POST " + tasksPath + "/metrics HTTP/1.1\n" + json, 405},
		"a body too long": {"POST " + tasksPath + " HTTP/1.1\n" + json + bearer(orchestrator), 413},
		"another type":    {"POST " + tasksPath + " HTTP/1.1\nHost: tes\nContent-Type: text/plain\n" + bearer(orchestrator), 415},
		"a path with NUL": {"POST " + tasksPath + "/%00/cancel HTTP/1.1\n" + json, 400},
		"a GET":           {"GET " + definitionsPath + " HTTP/1.1\n" + json + bearer(orchestrator), 200},
		"being alive":     {"GET /livez HTTP/1.1\n" + json, 200},
	} {
		for _, length := range []string{"Content-Length: 20\n", "Transfer-Encoding: chunked\n", "Content-Length: 20\nExpect: 100-continue\n"} {
			if tc.status == 413 {
				length = "Content-Length: 20000000\n"
			}
			conn, resp := announced(t, b.url, tc.head+length)
			require.Equal(t, tc.status, resp.StatusCode, name)
			_, err := conn.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF, "%s: the connection is let go", name)
		}
	}

	starting := httptest.NewServer(api.Starting())
	t.Cleanup(starting.Close)
	_, resp := announced(t, starting.URL, "POST "+tasksPath+" HTTP/1.1\n"+json+"Content-Length: 20\n")
	require.Equal(t, 503, resp.StatusCode)
}

// TestRefusedConnectionsAreUsedAgain: where the body did come, a refusal does not cost the
// client its connection.
func TestRefusedConnectionsAreUsedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(b.url, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	from := bufio.NewReader(conn)
	body := `{"n": 1}`
	for range 20 {
		_, err = io.WriteString(conn, "POST "+tasksPath+" HTTP/1.1\r\nHost: tes\r\nContent-Type: application/json\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
		require.NoError(t, err)
		resp, err := http.ReadResponse(from, nil)
		require.NoError(t, err)
		_, err = io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, 401, resp.StatusCode)
	}
}
