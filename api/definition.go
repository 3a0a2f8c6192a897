package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/seed-3f7a0631/tes/jobs"
)

// definitionHandlers serve /api/internal/task-definitions, except for pauses.
type definitionHandlers struct{ *core }

// DefinitionRequest is the body of PUT /api/internal/task-definitions/{id}.
type DefinitionRequest struct {
	ID              string                `json:"id,omitempty" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"Optional. Must equal the id in the path."`
	Name            string                `json:"name,omitempty" minLength:"1" maxLength:"256" doc:"Default: the id."`
	Description     string                `json:"description,omitempty" maxLength:"4000"`
	Type            jobs.Type             `json:"type"`
	Version         string                `json:"version" maxLength:"64" pattern:"^(0|[1-9]\\d*)\\.(0|[1-9]\\d*)\\.(0|[1-9]\\d*)(-[0-9A-Za-z.-]+)?(\\+[0-9A-Za-z.-]+)?$" patternDescription:"a semantic version" doc:"A semantic version, for people. The service compares revisions, never versions."`
	InputSchema     json.RawMessage       `json:"inputSchema,omitempty" doc:"A JSON Schema (2020-12) of at most 64 KiB. Every input is validated against it."`
	OutputSchema    json.RawMessage       `json:"outputSchema,omitempty" doc:"A JSON Schema (2020-12) of at most 64 KiB. Every output is validated against it."`
	Timeout         int64                 `json:"timeout,omitempty" minimum:"1" maximum:"2592000000" doc:"The timeout of one attempt in milliseconds. Default: 5 minutes for AUTOMATED, 1 minute for INTEGRATION, 30 days for MANUAL."`
	RetryPolicy     *jobs.RetryPolicy     `json:"retryPolicy,omitempty" doc:"Default: three retries, after 1, 2 and 4 seconds; none for MANUAL."`
	ExecutionConfig *jobs.ExecutionConfig `json:"executionConfig,omitempty"`
}

// DefinitionPath is the path of a definition. It is exported because huma ignores embedded
// unexported structs.
type DefinitionPath struct {
	ID string `path:"id" minLength:"1" maxLength:"128" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"A business key such as calculate-order-total."`
}

type putTaskDefinitionInput struct {
	DefinitionPath
	IfMatch string `header:"If-Match" maxLength:"1024" doc:"The last ETag that the caller has seen, a list of ETags, or *. A different current revision is a 412."`
	Body    DefinitionRequest
}

type putTaskDefinitionOutput struct {
	Status int
	ETag   string `header:"ETag" doc:"The revision, for If-Match."`
	Body   *jobs.Definition
}

type definitionOutput struct {
	ETag string `header:"ETag" doc:"The revision, for If-Match."`
	Body *jobs.Definition
}

// DefinitionPage is a page of definitions by id, each at its newest revision.
type DefinitionPage struct {
	Items      []jobs.Definition `json:"items"`
	NextCursor *string           `json:"nextCursor" doc:"The cursor of the next page; null on the last page."`
}

type definitionPageOutput struct{ Body *DefinitionPage }

type listTaskDefinitionsInput struct {
	Limit  int32  `query:"limit" minimum:"1" maximum:"200" default:"50" doc:"The largest number of items on a page."`
	Cursor string `query:"cursor" maxLength:"512" pattern:"^[A-Za-z0-9_-]+$" doc:"nextCursor of the previous page."`
}

var putTaskDefinitionDoc = doc{
	id: "putTaskDefinition", tag: tagDefinitions, summary: "Register a task definition",
	description: "The definition belongs to the tenant of the token that registers it, and no other tenant sees it. A token without a tenant " +
		"registers a definition of the platform, which all tenants may use. An id may exist in several tenants, each with its own " +
		"revisions. The same content again changes nothing; different content becomes the next revision, and existing tasks keep " +
		"their revision. A header whose value is *** keeps its value from the tenant's newest revision, as long as the scheme, host " +
		"and port of the URL stay the same.",
	status: http.StatusOK, also: http.StatusCreated, alsoText: "The first revision of this id in the tenant.",
	errors:  []int{412, 413, 415},
	request: exampleDefinition(false),
	answer:  exampleDefinition(true),
}

var getTaskDefinitionDoc = doc{
	id: "getTaskDefinition", tag: tagDefinitions, summary: "Get a task definition",
	description: "Returns the newest revision of the token's tenant or, if the tenant has none, the platform's. Values of headers are masked " +
		"(***).", errors: []int{404}, answer: exampleDefinition(true),
}

var listTaskDefinitionsDoc = doc{
	id: "listTaskDefinitions", tag: tagDefinitions, summary: "List task definitions",
	description: "Lists the definitions that the token's tenant uses, by id, each at its newest revision: the tenant's own, and those of the " +
		"platform whose id the tenant has not registered.",
	answer: map[string]any{"items": []any{exampleDefinition(true)}, "nextCursor": nil},
}

func (h *definitionHandlers) putTaskDefinition(ctx context.Context, in *putTaskDefinitionInput) (*putTaskDefinitionOutput, error) {
	caller, body := callerOf(ctx), &in.Body
	if body.ID != "" && body.ID != in.ID {
		return nil, violation("body.id", "must equal the id in the path, or be left out")
	}

	match, err := parseIfMatch(in.IfMatch)
	if err != nil {
		return nil, err
	}

	def := jobs.Definition{
		TenantID: caller.Tenant, ID: in.ID, Name: body.Name, Description: body.Description, Type: body.Type, Version: body.Version,
		InputSchema: given(body.InputSchema), OutputSchema: given(body.OutputSchema), Timeout: body.Timeout, RetryPolicy: body.RetryPolicy,
	}

	if body.ExecutionConfig != nil {
		def.ExecutionConfig = *body.ExecutionConfig
	}
	if p := ownsContext(caller, "body", def.ExecutionConfig.SecurityContext); p != nil {
		return nil, p
	}

	put, err := h.putDefinition(ctx, match, def)
	if err != nil {
		return nil, err
	}

	return putAnswer(put), nil
}

// putDefinition writes a definition if its revision matches If-Match; see core.write.
func (h *definitionHandlers) putDefinition(ctx context.Context, match ifMatch, def jobs.Definition) (jobs.Put, error) {
	actor := actorOf(ctx, "")
	// createdBy of a definition is shown for years, so it names tenant and subject too.
	actor.Name = auditName(callerOf(ctx))
	if version, ok := match.one(); ok && (version != 0 || !match.exists) {
		actor.IfMatch = version
		return h.tasks.Definitions.PutFor(ctx, actor, def)
	}

	// A list of revisions: the current one fences the write. Each further round means that the
	// definition has changed.
	for range len(match.versions) + 1 {
		revision, err := h.tasks.Definitions.Revision(ctx, def.TenantID, def.ID)
		switch {
		case err != nil:
			return jobs.Put{}, err
		case revision == 0 || match.versions != nil && !slices.Contains(match.versions, revision):
			return jobs.Put{}, jobs.ErrStale
		}
		// If-Match: * always matches here, because definitions are never deleted.
		if match.versions != nil {
			actor.IfMatch = revision
		}
		if put, err := h.tasks.Definitions.PutFor(ctx, actor, def); !errors.Is(err, jobs.ErrStale) {
			return put, err
		}
	}

	return jobs.Put{}, jobs.ErrStale
}

func putAnswer(put jobs.Put) *putTaskDefinitionOutput {
	// 201 for the first revision in the tenant only; see also in the doc.
	status := http.StatusOK
	if put.Created {
		status = http.StatusCreated
	}
	return &putTaskDefinitionOutput{Status: status, ETag: etag(put.Revision), Body: &put.Definition}
}

func (h *definitionHandlers) getTaskDefinition(ctx context.Context, in *struct{ DefinitionPath }) (*definitionOutput, error) {
	def, err := h.tasks.Definitions.Get(ctx, callerOf(ctx).Tenant, in.ID)
	if err != nil {
		return nil, err
	}
	return &definitionOutput{ETag: etag(def.Revision), Body: &def}, nil
}

// lengthOfDefinition estimates the bytes of a definition in a response.
func lengthOfDefinition(def *jobs.Definition) int {
	text, err := json.Marshal(def)
	if err != nil {
		// Writing the response will report the error.
		return mostPage
	}
	return len(text)
}

func (h *definitionHandlers) listTaskDefinitions(ctx context.Context, in *listTaskDefinitionsInput) (*definitionPageOutput, error) {
	last, err := after(in.Cursor, "definitions")
	if err != nil {
		return nil, err
	}

	// The key is text that PostgreSQL must be able to store. The hash does not prove its origin.
	if !plainPath(string(last)) {
		return nil, violation("query.cursor", "the cursor is not valid")
	}

	// Definitions can be 128 KiB long, so a page is read in small portions.
	from := string(last)
	defs, more, err := fill(int(in.Limit), 8, func(last *jobs.Definition, n int32) ([]jobs.Definition, error) {
		if last != nil {
			from = last.ID
		}
		return h.tasks.Definitions.List(ctx, callerOf(ctx).Tenant, from, n)
	}, lengthOfDefinition)
	if err != nil {
		return nil, err
	}

	out := &DefinitionPage{Items: append([]jobs.Definition{}, defs...)}
	if more {
		next := cursor([]byte(defs[len(defs)-1].ID), "definitions")
		out.NextCursor = &next
	}

	return &definitionPageOutput{Body: out}, nil
}
