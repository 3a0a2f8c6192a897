package api

import (
	"strconv"
	"strings"

	"github.com/seed-3f7a0631/tes/api/auth"
)

// auditName names a caller for the audit: the service, its tenant and the token's subject, as
// in "workflow-orchestrator (tenant acme, subject svc-1)". What a token lacks is left out.
// A name that is not plain is quoted: it could otherwise be read as another caller's.
func auditName(c *auth.Caller) string {
	var more []string
	if c.Tenant != "" {
		more = append(more, "tenant "+unmistakable(c.Tenant))
	}
	if c.Subject != "" {
		more = append(more, "subject "+unmistakable(c.Subject))
	}
	if more == nil {
		return unmistakable(c.Name)
	}
	return unmistakable(c.Name) + " (" + strings.Join(more, ", ") + ")"
}

// longestName bounds a name in the audit.
const longestName = 128

func unmistakable(name string) string {
	name = sanitize(name, longestName)
	if strings.Trim(name, plainBytes) == "" {
		return name
	}
	return strconv.Quote(name)
}

const plainBytes = idBytes + "@/|+"
