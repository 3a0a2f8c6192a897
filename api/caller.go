package api

import (
	"strconv"
	"strings"

	"github.com/seed-3f7a0631/tes/api/auth"
)

// auditName names a caller in the audit trail: the service, its tenant and the token's subject, as
// in "workflow-orchestrator (tenant acme, subject svc-1)". Missing parts are left out. A name with
// unusual characters is quoted, so that it cannot imitate another caller.
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

// longestName bounds a name in the audit trail, in bytes.
const longestName = 128

func unmistakable(name string) string {
	name = sanitize(name, longestName)
	// Quotes, spaces and parentheses occur in no plain name, so that a service called
	// "a (tenant b)" does not look like service a of tenant b.
	if strings.Trim(name, plainBytes) == "" {
		return name
	}
	return strconv.Quote(name)
}

const plainBytes = idBytes + "@/|+"
