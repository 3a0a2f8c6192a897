package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/integration"
)

// testBundle is an Integration Service that answers what it is told to.
type testBundle struct {
	jobs.Executor
	service *service
	job     jobs.Job
}

func setup(t *testing.T) *testBundle {
	t.Helper()
	s := &service{}
	return &testBundle{integration.New(s), s, jobs.Job{
		TaskID: uuid.MustParse("019b7e1c-5a00-7abc-8def-0123456789ab"), Attempt: 2, CorrelationID: "c-1", Input: json.RawMessage(`{"order": 7}`),
		Config: jobs.ExecutionConfig{Integration: &jobs.IntegrationCall{
			Type: "REST", Method: "create_invoice", Instance: "books", Connection: "prod", CredentialRef: "vault:books",
		}},
	}}
}

// asks has the job ask like this.
func (b *testBundle) asks(call jobs.IntegrationCall, input string) {
	b.job.Config.Integration, b.job.Input = &call, json.RawMessage(input)
}

// service stands where the Integration Service is called; package peer has the real
// one.
type service struct {
	asked  string
	call   integration.Call
	answer integration.Answer
	err    error

	questions  int // about connections
	connection string
	unknown    error
}

func (s *service) Connection(_ context.Context, _, _ string) (string, error) {
	s.questions++
	return s.connection, s.unknown
}

func (s *service) Invoke(_ context.Context, name string, call integration.Call) (integration.Answer, error) {
	s.asked, s.call = name, call
	return s.answer, s.err
}

func TestCallIsWhatTheDefinitionSays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.Execute(t.Context(), b.job)
	require.NoError(t, err)
	require.Equal(t, "books", b.service.asked)
	require.Equal(t, integration.Call{
		Method: "create_invoice", Parameters: json.RawMessage(`{"order": 7}`), Connection: "prod", CredentialRef: "vault:books",
		IdempotencyKey: "019b7e1c-5a00-7abc-8def-0123456789ab:2", CorrelationID: "c-1",
	}, b.service.call)
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer integration.Answer
		want   jobs.Result
	}{
		"at once":          {integration.Answer{Data: json.RawMessage(`{"id": 1}`)}, jobs.Result{Output: json.RawMessage(`{"id": 1}`)}},
		"with no data":     {integration.Answer{}, jobs.Result{}},
		"with a list":      {integration.Answer{Data: json.RawMessage(`[1]`)}, jobs.Result{Output: json.RawMessage(`{"data":[1]}`)}},
		"by event, later":  {integration.Answer{InvocationID: "inv-1"}, jobs.Result{Await: &jobs.Await{InvocationID: "inv-1"}}},
		"by event, surely": {integration.Answer{InvocationID: "inv-1", Data: json.RawMessage(`{"accepted": true}`)}, jobs.Result{Await: &jobs.Await{InvocationID: "inv-1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.service.answer = tc.answer
			got, err := b.Execute(t.Context(), b.job)
			require.NoError(t, err)
			require.Len(t, got.Output, len(tc.want.Output))
			require.Equal(t, string(tc.want.Output), string(got.Output))
			require.Equal(t, tc.want.Await, got.Await)
		})
	}
}

// What the service's client says must reach the engine as it is: a failure is the
// policy's business, an outage spends no attempt.
func TestErrorsKeepTheirMeaning(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.service.err = &jobs.Failure{Code: "RATE_LIMIT_ERROR"}
	_, err := b.Execute(t.Context(), b.job)
	var failure *jobs.Failure
	require.ErrorAs(t, err, &failure)
	require.Equal(t, "RATE_LIMIT_ERROR", failure.Code)

	b.service.err = &jobs.Outage{PeerService: "integration", Err: errors.New("refused")}
	_, err = b.Execute(t.Context(), b.job)
	var outage *jobs.Outage
	require.ErrorAs(t, err, &outage)
}

func TestDefinitionWithoutAnIntegrationFailsForGood(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.job.Config.Integration = nil
	_, err := b.Execute(t.Context(), b.job)
	var failure *jobs.Failure
	require.ErrorAs(t, err, &failure)
	require.False(t, *failure.Retryable)
	require.Empty(t, b.service.asked)
}
