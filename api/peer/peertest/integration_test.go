package peertest_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

type published struct {
	subject string
	body    []byte
	at      time.Time
}

func TestInvocations(t *testing.T) {
	t.Parallel()
	b := setup(t, peertest.Config{})
	const path = "/api/integrations/xero_main/invoke"

	status, body := b.call(t, "POST", path, `{"method":"look_up","parameters":{"a":[1]}}`)
	require.Equal(t, 200, status)
	require.JSONEq(t, `{"status":"SUCCESS","data":{"echo":{"a":[1]}}}`, body)

	// The same key is the same invoice.
	status, first := b.call(t, "POST", path, `{"method":"create_invoice","parameters":{"contact_id":"CONT123"}}`, "Idempotency-Key", "t1:1")
	require.Equal(t, 200, status)
	_, again := b.call(t, "POST", path, `{"method":"create_invoice","parameters":{"contact_id":"CONT123"}}`, "Idempotency-Key", "t1:1")
	require.Equal(t, first, again)
	_, other := b.call(t, "POST", path, `{"method":"create_invoice","parameters":{"contact_id":"CONT123"}}`, "Idempotency-Key", "t1:2")
	require.NotEqual(t, first, other)
	var invoice struct {
		Status string
		Data   map[string]string
	}
	require.NoError(t, json.Unmarshal([]byte(first), &invoice))
	require.Equal(t, "SUCCESS", invoice.Status)
	require.Equal(t, "DRAFT", invoice.Data["status"])
	require.NotEmpty(t, invoice.Data["invoice_id"])
	require.Regexp(t, `^INV-\d{6}$`, invoice.Data["invoice_number"])

	status, body = b.call(t, "POST", path, `{"method":"create_invoice","parameters":{"contact_id":"CONT-REJECTED"}}`)
	require.Equal(t, 422, status)
	var refused struct {
		Error     struct{ Code string }
		Retryable *bool
	}
	require.NoError(t, json.Unmarshal([]byte(body), &refused))
	require.Equal(t, "VALIDATION_ERROR", refused.Error.Code)
	require.False(t, *refused.Retryable)

	for _, bad := range []string{`{}`, `{`, `[]`, `{"method":"create_invoice","parameters":[]}`} {
		status, _ = b.call(t, "POST", path, bad)
		require.Contains(t, []int{400, 422}, status, bad)
	}
	status, _ = b.call(t, "POST", "/api/integrations/%2e%2e/invoke", `{"method":"m"}`)
	require.Equal(t, 400, status)
}

func TestAcceptedInvocations(t *testing.T) {
	t.Parallel()
	const path = "/api/integrations/gmail_support/invoke"
	const mail = `{"method":"send_email","parameters":{"to_address":"a@example.com"}}`

	listen := func() (peertest.Config, <-chan published) {
		heard := make(chan published, 8)
		return peertest.Config{Respond: func(_ context.Context, subject string, body []byte) error {
			heard <- published{subject, body, time.Now()}
			return nil
		}}, heard
	}

	t.Run("AreAnsweredByEvent", func(t *testing.T) {
		t.Parallel()
		cfg, heard := listen()
		b := setup(t, cfg)
		began := time.Now()
		status, body := b.call(t, "POST", path, mail, "Idempotency-Key", "task-1:3", "X-Correlation-Id", "corr-1")
		require.Equal(t, 202, status)
		var taken struct{ InvocationID string }
		require.NoError(t, json.Unmarshal([]byte(body), &taken))

		event := <-heard
		require.GreaterOrEqual(t, event.at.Sub(began), peertest.ResponseDelay)
		require.Equal(t, "integration.response_received", event.subject)
		var envelope struct {
			Type      string
			ID        string
			Timestamp time.Time
			Data      struct {
				TaskID, InvocationID, IntegrationID, Status string
				Data                                        map[string]any
			}
			Metadata struct{ CorrelationID, TaskID, Source string }
		}
		require.NoError(t, json.Unmarshal(event.body, &envelope))
		require.Equal(t, "integration.response_received", envelope.Type)
		require.NotEmpty(t, envelope.ID)
		require.False(t, envelope.Timestamp.IsZero())
		require.Equal(t, "task-1", envelope.Data.TaskID)
		require.Equal(t, taken.InvocationID, envelope.Data.InvocationID)
		require.Equal(t, "gmail_support", envelope.Data.IntegrationID)
		require.Equal(t, "SUCCESS", envelope.Data.Status)
		require.Equal(t, "SENT", envelope.Data.Data["status"])
		require.Equal(t, "corr-1", envelope.Metadata.CorrelationID)
		require.Equal(t, "task-1", envelope.Metadata.TaskID)
		require.Equal(t, "integration-service", envelope.Metadata.Source)
	})

	// Steered to 202, any method is taken and none is ever answered: what is
	// heard is the e-mail that was sent after steering back.
	t.Run("OrNotAtAll", func(t *testing.T) {
		t.Parallel()
		cfg, heard := listen()
		b := setup(t, cfg)
		b.there.Steer(peertest.Integration, peertest.Steering{Mode: peertest.ModeOK, Status: 202})
		for _, body := range []string{mail, `{"method":"create_invoice"}`} {
			status, answer := b.call(t, "POST", path, body, "Idempotency-Key", "silent:1")
			require.Equal(t, 202, status)
			require.Contains(t, answer, "invocationId")
		}
		b.there.Steer(peertest.Integration, peertest.Steering{})
		b.call(t, "POST", path, mail, "Idempotency-Key", "nonsense")
		b.call(t, "POST", path, mail, "Idempotency-Key", "loud:1")
		require.Contains(t, string((<-heard).body), `"taskId":"loud"`)
		require.Empty(t, heard)
	})

	t.Run("CloseForgetsThem", func(t *testing.T) {
		t.Parallel()
		cfg, heard := listen()
		b := setup(t, cfg)
		status, _ := b.call(t, "POST", path, mail, "Idempotency-Key", "task-1:1")
		require.Equal(t, 202, status)
		require.NoError(t, b.there.Close(b.ctx))
		require.Empty(t, heard)
	})
}
