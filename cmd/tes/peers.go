package main

import (
	"context"
	"math"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/integration"
	"github.com/seed-3f7a0631/tes/jobs/manual"
	"github.com/seed-3f7a0631/tes/outbox/retry"
)

// peers adapts the clients of package peer to the interfaces that the executors declare. Neither
// side imports the other.
type peers struct{ *peer.Services }

func (n peers) integration() integration.Service { return invoker{n.Integrations} }
func (n peers) directory() manual.Directory      { return directory{n.Users} }
func (n peers) userTokens() api.UserTokens       { return userTokens{n.Auth} }

// allocator asks the Resource Service; nil: there is none.
type allocator struct{ resources *peer.Resources }

func (a allocator) allocate(ctx context.Context, job jobs.Job) (jobs.Allocation, error) {
	// Without a Resource Service a task gets its requirements, unreserved.
	want := job.Config.ResourceRequirements
	req := peer.AllocateRequest{TaskID: job.TaskID.String(), CPU: want.CPU, Memory: want.Memory, Disk: want.Disk}
	got := req.Defaults()
	if a.resources != nil {
		var err error
		if got, err = a.resources.Allocate(ctx, req); err != nil {
			return jobs.Allocation{}, err
		}
	}

	return jobs.Allocation{ID: got.ID, CPU: got.CPU, Memory: got.Memory, Disk: got.Disk}, nil
}

// readiness holds the tasks of an executor back in their queue while its peer service is
// unavailable, and then lets a single task through to find out whether the service is back.
func readiness(b *retry.Breaker) func() int {
	return func() int {
		switch b.Status().State {
		case retry.Open:
			return 0
		case retry.HalfOpen:
			return 1
		default:
			return math.MaxInt
		}
	}
}

func (n peers) notifier() jobs.Notifier { return notifier{n.Notifications} }

type notifier struct{ *peer.Notifications }

func (n notifier) Notify(ctx context.Context, notice jobs.Notice) error {
	return n.Notifications.Notify(ctx, peer.NotifyRequest{
		Channel: notice.Channel, UserID: notice.UserID, Template: notice.Template, Data: notice.Data, IdempotencyKey: notice.Key,
	})
}

type userTokens struct{ auth *peer.Auth }

func (u userTokens) Authenticate(ctx context.Context, token string) (api.Person, error) {
	claims, err := u.auth.ValidateToken(ctx, token)
	return api.Person{Subject: claims.Subject, Tenant: claims.TenantID, Roles: claims.Roles, Groups: claims.Groups}, err
}

type invoker struct{ *peer.Integrations }

func (i invoker) Invoke(ctx context.Context, id string, call integration.Call) (integration.Answer, error) {
	answer, err := i.Integrations.Invoke(ctx, id, peer.InvokeRequest{
		Method: call.Method, Parameters: call.Parameters, Connection: call.Connection, CredentialRef: call.CredentialRef,
		Async: call.Async, IdempotencyKey: call.IdempotencyKey, CorrelationID: call.CorrelationID,
	})
	return integration.Answer{Data: answer.Data, InvocationID: answer.InvocationID}, err
}

type directory struct{ users *peer.Users }

func (d directory) ByRole(ctx context.Context, role string, skills []string) ([]manual.Person, error) {
	users, err := d.users.ByRole(ctx, role, skills)

	// Absent people get no new tasks. The executor does not check the absence again.
	people := make([]manual.Person, 0, len(users))
	for _, u := range users {
		if u.Available {
			people = append(people, manual.Person{ID: u.ID, Name: u.Name, Roles: u.Roles, Skills: u.Skills})
		}
	}

	return people, err
}

func (d directory) Name(ctx context.Context, id string) (string, error) {
	user, err := d.users.Get(ctx, id)
	return user.Name, err
}
