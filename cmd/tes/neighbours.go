package main

import (
	"context"

	"github.com/seed-3f7a0631/tes/api"
	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/jobs/integration"
	"github.com/seed-3f7a0631/tes/jobs/manual"
)

// neighbours fits the clients of package peer to the interfaces that the
// executors declare; neither knows the other.
type neighbours struct{ *peer.Neighbours }

func (n neighbours) integration() integration.Service { return invoker{n.Integrations} }
func (n neighbours) directory() manual.Directory      { return directory{n.Users} }
func (n neighbours) userTokens() api.UserTokens       { return userTokens{n.Auth} }

type userTokens struct{ auth *peer.Auth }

func (u userTokens) Subject(ctx context.Context, token string) (string, error) {
	claims, err := u.auth.ValidateToken(ctx, token)
	return claims.Subject, err
}

type invoker struct{ *peer.Integrations }

func (i invoker) Invoke(ctx context.Context, id string, call integration.Call) (integration.Answer, error) {
	answer, err := i.Integrations.Invoke(ctx, id, peer.InvokeRequest{
		Method: call.Method, Parameters: call.Parameters, Connection: call.Connection, CredentialRef: call.CredentialRef,
		IdempotencyKey: call.IdempotencyKey, CorrelationID: call.CorrelationID,
	})
	return integration.Answer{Data: answer.Data, InvocationID: answer.InvocationID}, err
}

type directory struct{ users *peer.Users }

func (d directory) ByRole(ctx context.Context, role string, skills []string) ([]manual.Person, error) {
	users, err := d.users.ByRole(ctx, role, skills)
	people := make([]manual.Person, 0, len(users))
	for _, u := range users {
		if u.Available {
			people = append(people, manual.Person{ID: u.ID, Name: u.Name})
		}
	}
	return people, err
}

func (d directory) Name(ctx context.Context, id string) (string, error) {
	user, err := d.users.Get(ctx, id)
	return user.Name, err
}
