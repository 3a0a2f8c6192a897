package main

import (
	"encoding/json"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/seed-3f7a0631/tes/"

// floors, from the top down. A room may use the floors below its own, and the
// other rooms of its own floor as far as edges allows.
var floors = []string{"cmd", "api", "jobs", "outbox", "db", "sql"}

// edges are the rooms at the outside: only cmd joins them to the rest.
var edges = []string{
	"outbox/callback", "outbox/natsbus", "outbox/natsbus/natstest", "outbox/relay", "outbox/webhook",
	"api/peer", "api/peer/peertest", "api/peer/spans", "jobs/automated", "jobs/integration", "jobs/manual",
}

// doors are the packages through which alone each thing outside is reached; a
// room may also use a door's own test helpers.
var doors = map[string][]string{
	"github.com/nats-io/":            {"outbox/natsbus", "outbox/natsbus/natstest"},
	"github.com/synadia-io/":         {"outbox/natsbus"},
	"github.com/pressly/goose":       {"sql/migrations"},
	"github.com/danielgtaylor/huma":  {"api"},
	"github.com/go-chi/chi":          {"api"},
	"github.com/riverqueue/river":    {"jobs", "cmd/tes", "cmd/tes/bench", "sql/migrations"},
	"riverqueue.com/riverui":         {"cmd/tes"},
	"github.com/alecthomas/kong":     {"cmd/tes"},
	"github.com/failsafe-go/":        {"outbox/retry"},
	"cel.dev/":                       {"jobs/cel"},
	"github.com/rickar/cal":          {"jobs/calendar"},
	"github.com/santhosh-tekuri/":    {"jobs/schema"},
	"github.com/evanphx/":            {"jobs"},
	"github.com/standard-webhooks/":  {"outbox/webhook"},
	"code.dny.dev/ssrf":              {"outbox/egress"},
	"github.com/golang-jwt/":         {"api/auth", "api/auth/authtest", "api/peer/peertest"},
	"github.com/MicahParks/":         {"api/auth", "api/auth/authtest"},
	"github.com/schollz/progressbar": {"cmd/tes", "cmd/tes/bench"},
	"github.com/Shopify/toxiproxy":   {}, // the tests'

	// Any room may speak of spans; one makes them and takes them away.
	"go.opentelemetry.io/otel":           {"api", "jobs", "outbox/relay", "api/peer/spans"},
	"go.opentelemetry.io/otel/sdk":       {"api/peer/spans"},
	"go.opentelemetry.io/otel/exporters": {"api/peer/spans"},
	"go.opentelemetry.io/proto":          {"api/peer/spans"},
	"google.golang.org/protobuf":         {"api/peer/spans"},
}

type listed struct {
	ImportPath string
	Imports    []string
}

// TestFloors proves that arrows point down, that the edge packages are joined to
// the rest by cmd alone, and that each thing outside has one door.
func TestFloors(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...").Output()
	require.NoError(t, err)
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for decoder.More() {
		var pkg listed
		require.NoError(t, decoder.Decode(&pkg))
		seen++
		room := strings.TrimPrefix(pkg.ImportPath, module)
		for _, imported := range pkg.Imports {
			if inside, ok := strings.CutPrefix(imported, module); ok {
				require.Empty(t, upward(room, inside), "%s imports %s", room, inside)
				continue
			}
			for prefix, allowed := range doors {
				if strings.HasPrefix(imported, prefix) {
					require.Contains(t, allowed, room, "%s imports %s, whose door is %v", room, imported, allowed)
				}
			}
		}
	}
	require.Greater(t, seen, 10, "the packages were not found")
}

// upward says what is wrong with one import, or nothing.
func upward(room, imported string) string {
	from, to := floorOf(room), floorOf(imported)
	switch {
	case from < 0:
		return room + " stands on no floor"
	case strings.Contains(imported, "/testdata/"):
		return imported + " is the tests' alone"
	case to < from:
		return "an arrow points up"
	case slices.Contains(edges, imported) && from != 0 && !strings.HasPrefix(imported, room+"/") && path.Dir(room) != imported:
		return imported + " is joined to the rest by cmd alone"
	}
	return ""
}

func floorOf(room string) int {
	return slices.Index(floors, strings.SplitN(room, "/", 2)[0])
}

// TestUpward proves that the check can fail.
func TestUpward(t *testing.T) {
	t.Parallel()
	require.NotEmpty(t, upward("outbox", "jobs"))
	require.NotEmpty(t, upward("db", "outbox"))
	require.NotEmpty(t, upward("api", "outbox/natsbus"))
	require.NotEmpty(t, upward("util", "db"))
	require.NotEmpty(t, upward("cmd/tes", "cmd/tes/testdata/sabotage"))
	require.Empty(t, upward("jobs", "outbox"))
	require.Empty(t, upward("cmd/tes", "outbox/natsbus"))
}
