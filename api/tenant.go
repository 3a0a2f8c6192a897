package api

import (
	"github.com/seed-3f7a0631/tes/api/auth"
	"github.com/seed-3f7a0631/tes/jobs"
)

// owns refuses a security context with another tenant than the caller's token: no tenant may
// request work in the name of another. A token without a tenant belongs to the platform and may
// name any tenant.
func owns(c *auth.Caller, place string, config *jobs.RequestConfig) *Problem {
	if config == nil {
		return nil
	}
	return ownsContext(c, place, config.SecurityContext)
}

// ownsContext is owns for a definition's security context.
func ownsContext(c *auth.Caller, place string, s *jobs.SecurityContext) *Problem {
	// Absent members mean the token's own tenant.
	if c.Tenant == "" || s == nil || s.TenantID == "" || s.TenantID == c.Tenant {
		return nil
	}
	return violation(place+".executionConfig.securityContext.tenantId", "must be the token's tenant, or be left out")
}
