package api

import (
	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/jobs"
)

// owns refuses a request whose security context names another tenant than the caller's
// token does: nobody asks for work in the name of a stranger. A token without a tenant is
// the platform's own, and may name one.
func owns(c *auth.Caller, place string, config *jobs.RequestConfig) *Problem {
	if config == nil {
		return nil
	}
	return ownsContext(c, place, config.SecurityContext)
}

// ownsContext is the same for a definition's.
func ownsContext(c *auth.Caller, place string, s *jobs.SecurityContext) *Problem {
	if c.Tenant == "" || s == nil || s.TenantID == "" || s.TenantID == c.Tenant {
		return nil
	}
	return violation(place+".executionConfig.securityContext.tenantId", "must be the token's own tenant, or be left out")
}
