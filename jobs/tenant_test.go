package jobs

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// What an executor is told of the tenant is the task's own, also where another was
// stored.
func TestExecutorsAreToldTheTasksTenant(t *testing.T) {
	t.Parallel()
	b := setup(t)
	told := make(chan *SecurityContext, 1)
	b.work(noop(ExecutorFunc(func(_ context.Context, job Job) (Result, error) {
		told <- job.Config.SecurityContext
		return Result{}, nil
	})))
	for _, tc := range []struct {
		tenant       string
		stored, want *SecurityContext
	}{
		{"acme", &SecurityContext{TenantID: "mallory", Roles: []string{"admin"}}, &SecurityContext{TenantID: "acme", Roles: []string{"admin"}}},
		{"acme", nil, &SecurityContext{TenantID: "acme"}},
		{"", &SecurityContext{TenantID: "acme"}, &SecurityContext{TenantID: "acme"}},
		{"", nil, nil},
	} {
		b.create(func(req *Request) { req.Tenant, req.Config.SecurityContext = tc.tenant, tc.stored })
		require.Equal(t, tc.want, receive(t, told))
	}
}
