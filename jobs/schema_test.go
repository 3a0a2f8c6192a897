package jobs

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/jobs/schema"
)

func TestMisfit(t *testing.T) {
	t.Parallel()
	require.NoError(t, checkDocument(t.Context(), nil, "input", json.RawMessage(`{"any":1}`)))

	s, err := schema.Compile(json.RawMessage(`{"items":{"type":"string"}}`))
	require.NoError(t, err)

	var bad *Invalid
	require.ErrorAs(t, checkDocument(t.Context(), s, "input", json.RawMessage(`["a",1]`)), &bad)
	require.Equal(t, "the input does not match the definition's schema", bad.Message)
	require.Equal(t, []Violation{{Path: "/input/1", Message: "must be string, is number"}}, bad.Violations)

	require.ErrorAs(t, checkDocument(t.Context(), s, "output", json.RawMessage(`[`+strings.Repeat("1,", 5000)+`1]`)), &bad)
	require.Equal(t, "the output does not match the definition's schema; these are the first 16 places, and there may be more", bad.Message)
	require.Len(t, bad.Violations, 16)

	var failure *Failure
	require.ErrorAs(t, badOutput(t.Context(), s, "response", json.RawMessage(`[1]`)), &failure)
	require.Equal(t, CodeOutput, failure.Code)
	require.False(t, *failure.Retryable)

	left, leave := context.WithCancel(t.Context())
	leave()
	require.ErrorIs(t, checkDocument(left, s, "input", json.RawMessage(`[1]`)), context.Canceled)
}
