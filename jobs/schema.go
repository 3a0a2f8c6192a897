package jobs

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/seed-3f7a0631/tes/jobs/schema"
)

// Schema is the compiled JSON Schema of a definition's input or output. A nil *Schema
// accepts every document.
type Schema = schema.Schema

// Violation is an invalid place in a document or in a request.
type Violation = schema.Violation

// checkDocument checks a document against the schema of its definition. The error is an *Invalid with
// paths below member, or the error of ctx; nil for a valid document.
func checkDocument(ctx context.Context, of *Schema, member string, doc json.RawMessage) error {
	broken, err := of.Validate(ctx, doc)
	if err != nil || len(broken) == 0 {
		return err
	}
	return &Invalid{Message: violationText(member, broken), Violations: prefixPaths("/"+member, broken)}
}

// violationText is the sentence above the places.
func violationText(what string, broken []Violation) string {
	text := "the " + what + " does not match the definition's schema"
	if len(broken) == schema.MaxViolations {
		text += fmt.Sprintf("; these are the first %d places, and there may be more", len(broken))
	}
	return text
}

// badOutput checks the output of an attempt against the schema of its definition. The error is a
// *Failure that no retry repairs, or the error of ctx; nil for a valid output.
func badOutput(ctx context.Context, of *Schema, what string, output json.RawMessage) error {
	broken, err := of.Validate(ctx, orEmpty(output))
	if err != nil || len(broken) == 0 {
		return err
	}
	no := false
	details, _ := json.Marshal(broken) // of strings
	return &Failure{Code: CodeOutput, Message: violationText(what, broken), Details: details, Retryable: &no}
}
