package peer_test

import (
	"encoding/json"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer"
	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

func TestUsers(t *testing.T) {
	t.Parallel()
	away := peertest.Steering{Mode: peertest.ModeGone}

	t.Run("ByRole", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: once()})
		users, err := b.peer.Users.ByRole(b.ctx, "order-reviewer", []string{"tax", "de"})
		require.NoError(t, err)
		require.Equal(t, []peer.User{
			{ID: "order-reviewer-1", Name: "order-reviewer-1", Roles: []string{"order-reviewer"}, Skills: []string{"de", "tax"}, Available: true},
			{ID: "order-reviewer-2", Name: "order-reviewer-2", Roles: []string{"order-reviewer"}, Skills: []string{"de", "tax"}, Available: true},
		}, users)
		query, err := url.ParseQuery(b.there.Requests(peertest.User)[0].Query)
		require.NoError(t, err)
		require.Equal(t, url.Values{"role": {"order-reviewer"}, "skill": {"de", "tax"}}, query)
	})

	t.Run("ByRoleFromMemory", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: once()})
		before, err := b.peer.Users.ByRole(b.ctx, "r", []string{"x", "y"})
		require.NoError(t, err)
		b.there.Steer(peertest.User, away)
		after, err := b.peer.Users.ByRole(b.ctx, "r", []string{"y", "x"})
		require.NoError(t, err)
		require.Equal(t, before, after)
		_, err = b.peer.Users.ByRole(b.ctx, "r", nil)
		requireOutage(t, err, "user")
	})

	t.Run("Get", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: once()})
		for _, id := range []string{"alice", "john.doe@example.com", "a/../b", "%2e%2e", "ü x?y#z"} {
			user, err := b.peer.Users.Get(b.ctx, id)
			require.NoError(t, err, id)
			require.Equal(t, id, user.ID)
			require.True(t, user.Available)
		}
		for _, id := range []string{"", ".", ".."} {
			_, err := b.peer.Users.Get(b.ctx, id)
			requireFailure(t, err, "VALIDATION_ERROR", false)
		}
	})

	t.Run("GetFromMemory", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: once()})
		before, err := b.peer.Users.Get(b.ctx, "alice")
		require.NoError(t, err)
		b.there.Steer(peertest.User, away)
		after, err := b.peer.Users.Get(b.ctx, "alice")
		require.NoError(t, err)
		require.Equal(t, before, after)
		_, err = b.peer.Users.Get(b.ctx, "bob")
		requireOutage(t, err, "user")
	})

	// A no is an answer: memory does not overrule it.
	t.Run("NotFound", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: quick()})
		_, err := b.peer.Users.Get(b.ctx, "alice")
		require.NoError(t, err)
		b.there.Steer(peertest.User, peertest.Steering{Mode: peertest.ModeError, Status: 404})
		_, err = b.peer.Users.Get(b.ctx, "alice")
		requireFailure(t, err, "NOT_FOUND", false)
		require.Len(t, b.there.Requests(peertest.User), 2)
	})

	t.Run("Nameless", func(t *testing.T) {
		t.Parallel()
		b := setup(t, peer.Config{Policy: once()})
		b.there.Steer(peertest.User, peertest.Steering{Body: json.RawMessage(`{}`)})
		_, err := b.peer.Users.Get(b.ctx, "alice")
		requireFailure(t, err, "INTEGRATION_ERROR", false)
	})
}

func TestNotify(t *testing.T) {
	t.Parallel()
	b := setup(t, peer.Config{Policy: once()})
	about := peer.NotifyRequest{Channel: "in-app", UserID: "alice", Template: "task-assigned", Data: map[string]any{"taskId": "t1"}, IdempotencyKey: "notice-7:in-app"}
	require.NoError(t, b.peer.Notifications.Notify(b.ctx, about))
	sent := b.there.Requests(peertest.Notification)
	require.Len(t, sent, 1)
	require.JSONEq(t, `{"channel":"in-app","userId":"alice","template":"task-assigned","data":{"taskId":"t1"}}`, string(sent[0].Body))
	require.Equal(t, "notice-7:in-app", sent[0].Headers["Idempotency-Key"])

	about.Channel = "smoke"
	err := b.peer.Notifications.Notify(b.ctx, about)
	requireFailure(t, err, "VALIDATION_ERROR", false)

	b.there.Steer(peertest.Notification, peertest.Steering{Mode: peertest.ModeError})
	about.Channel = "push"
	requireOutage(t, b.peer.Notifications.Notify(b.ctx, about), "notification/push")
}

func TestAllocate(t *testing.T) {
	t.Parallel()
	b := setup(t, peer.Config{Policy: once()})
	got, err := b.peer.Resources.Allocate(b.ctx, peer.AllocateRequest{TaskID: "t1", CPU: "2"})
	require.NoError(t, err)
	require.NotEmpty(t, got.ID)
	got.ID = ""
	require.Equal(t, peer.Allocation{CPU: "2", Memory: "128Mi", Disk: "500Mi"}, got)
	require.JSONEq(t, `{"taskId":"t1","cpu":"2","memory":"128Mi","disk":"500Mi"}`, string(b.there.Requests(peertest.Resource)[0].Body))

	b.there.Steer(peertest.Resource, peertest.Steering{Mode: peertest.ModeError})
	got, err = b.peer.Resources.Allocate(b.ctx, peer.AllocateRequest{TaskID: "t1"})
	require.NoError(t, err)
	require.Equal(t, peer.Allocation{CPU: "0.1", Memory: "128Mi", Disk: "500Mi", Fallback: true}, got)

	b.there.Steer(peertest.Resource, peertest.Steering{
		Mode: peertest.ModeError, Status: 409, Body: json.RawMessage(`{"error":{"code":"QUOTA","message":"no more"}}`),
	})
	_, err = b.peer.Resources.Allocate(b.ctx, peer.AllocateRequest{TaskID: "t1"})
	requireFailure(t, err, "QUOTA", false)
}

func TestValidateToken(t *testing.T) {
	t.Parallel()
	b := setup(t, peer.Config{Policy: once()})
	token, err := b.there.Mint(peertest.TokenOptions{
		Subject: "alice", Tenant: "acme", Roles: []string{"reviewer"}, Permissions: []string{"tasks:complete"},
	})
	require.NoError(t, err)

	claims, err := b.peer.Auth.ValidateToken(b.ctx, token)
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Hour), claims.ExpiresAt, time.Minute)
	claims.ExpiresAt = time.Time{}
	require.Equal(t, peer.Claims{
		Valid: true, Subject: "alice", TenantID: "acme", Roles: []string{"reviewer"}, Permissions: []string{"tasks:complete"},
	}, claims)

	expired, err := b.there.Mint(peertest.TokenOptions{Subject: "alice", TTL: -time.Minute})
	require.NoError(t, err)
	for _, bad := range []string{expired, token + "x", "no.token.atall"} {
		claims, err = b.peer.Auth.ValidateToken(b.ctx, bad)
		require.NoError(t, err)
		require.Equal(t, peer.Claims{}, claims)
	}

	asked := len(b.there.Requests(peertest.Auth))
	for _, bad := range []string{"", string(make([]byte, 8<<10+1))} {
		claims, err = b.peer.Auth.ValidateToken(b.ctx, bad)
		require.NoError(t, err)
		require.False(t, claims.Valid)
	}
	require.Len(t, b.there.Requests(peertest.Auth), asked)

	b.there.Steer(peertest.Auth, peertest.Steering{Mode: peertest.ModeError})
	_, err = b.peer.Auth.ValidateToken(b.ctx, token)
	require.NoError(t, err, "it was asked about a moment ago")
	_, err = b.peer.Auth.ValidateToken(b.ctx, token+"y")
	requireOutage(t, err, "auth")
	require.NotContains(t, err.Error(), token)

	b.there.Steer(peertest.Auth, peertest.Steering{Body: json.RawMessage(`{"valid":true}`)})
	_, err = b.peer.Auth.ValidateToken(b.ctx, token+"y")
	requireFailure(t, err, "INTEGRATION_ERROR", false)
}

// Spans are asked for once, whatever the policy says of the others.
func TestTracing(t *testing.T) {
	t.Parallel()
	b := setup(t, peer.Config{Policy: quick()})
	require.NoError(t, b.peer.Tracing.Send(b.ctx, []map[string]any{{"name": "task"}}))
	b.there.Steer(peertest.Observability, peertest.Steering{Mode: peertest.ModeError})
	requireOutage(t, b.peer.Tracing.Send(b.ctx, []string{}), "observability")
	require.Len(t, b.there.Requests(peertest.Observability), 2)
}
