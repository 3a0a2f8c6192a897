package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/seed-3f7a0631/tes/db"
	"github.com/seed-3f7a0631/tes/jobs"
)

// documentVersion is the version of the interface, not of the program: the document must not change
// with each build.
const documentVersion = "1.0.0"

const (
	tagTasks       = "Tasks"
	tagLeases      = "Leases"
	tagDefinitions = "Task definitions"
	tagMetrics     = "Metrics"
	tagDeadLetters = "Dead letters"
	tagPauses      = "Pauses"
)

const security = "serviceJWT"

// OpenAPI returns the document (3.1, YAML) that is checked in as openapi.yaml. It needs no
// database.
func OpenAPI() ([]byte, error) {
	a, err := build(Config{})
	if err != nil {
		return nil, err
	}
	return a.documents.yaml, nil
}

// doc is the part of an operation's documentation that its Go types do not express.
type doc struct {
	id, tag, summary, description string

	status   int    // of a success; default: 200
	also     int    // another status with the same body; 0: none
	alsoText string // the meaning of the other status
	errors   []int  // besides 401, 403, 422, 429, 500, 503
	request  any    // an example of the body; nil: the operation has no body
	optional bool   // the body is optional
	bulk     bool   // the body is a list whose items the handler validates
	ownKey   bool   // the write handles Idempotency-Key itself, without keyed
	answer   any    // an example of the response
}

// route registers an operation: its documentation, its access check, its body guard, and the
// conversion of errors to HTTP.
func route[I, O any](a *API, method, path string, who access, d doc, handle func(context.Context, *I) (*O, error)) {
	op := d.operation(method, path, who)
	op.Middlewares = huma.Middlewares{a.gate.admit(who), guardParams}
	if d.request != nil {
		// huma would decode before jsonguard checks, so takeBody reads the body, and huma a copy.
		most := a.maxBody
		if d.bulk {
			most *= bulkBody
			op.SkipValidateBody = true
		}
		op.Middlewares = append(op.Middlewares, takeBody(most))
		// takeBody has a deadline of its own.
		op.BodyReadTimeout = -1
		op.MaxBodyBytes = most + 1
	}

	// Inputs of operations on behalf of a person embed OnBehalf.
	if method != http.MethodGet && !d.ownKey {
		_, onBehalf := reflect.TypeFor[I]().FieldByName("OnBehalf")
		op.Middlewares = append(op.Middlewares, a.keys.keyed(d.id, onBehalf))
	}

	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err := a.keys.conclude(ctx, out, op.DefaultStatus, err); err != nil {
			return nil, problemOf(ctx, err)
		}
		return out, nil
	})
}

// bulkBody is the factor by which a list body may exceed Config.MaxBody.
const bulkBody = 8

func (d doc) operation(method, path string, who access) huma.Operation {
	status := d.status
	if status == 0 {
		status = http.StatusOK
	}

	op := huma.Operation{
		OperationID: d.id, Method: method, Path: path, Tags: []string{d.tag}, Summary: d.summary, Description: d.description,
		DefaultStatus: status,
		Errors:        append([]int{http.StatusUnauthorized, http.StatusForbidden, http.StatusUnprocessableEntity, http.StatusTooManyRequests, http.StatusServiceUnavailable}, d.errors...),
		Security:      who.security(),
		Extensions:    map[string]any{"x-callers": []string{"*"}},
		Responses:     map[string]*huma.Response{},
	}

	if who.callers != nil {
		op.Extensions["x-callers"] = who.callers
	}

	// huma fills in schema and headers of responses that it finds here.
	op.Responses[strconv.Itoa(status)] = &huma.Response{
		Description: http.StatusText(status), Headers: map[string]*huma.Param{}, Content: map[string]*huma.MediaType{"application/json": {Example: d.answer}},
	}

	if d.also != 0 {
		// Shared maps: huma's additions to the first response apply to the second.
		shared := op.Responses[strconv.Itoa(status)]
		op.Responses[strconv.Itoa(d.also)] = &huma.Response{Description: d.alsoText, Content: shared.Content, Headers: shared.Headers}
	}

	if method != http.MethodGet && !d.ownKey {
		op.Parameters = append(op.Parameters, keyParam())
		op.Responses[strconv.Itoa(status)].Headers[replayedHeader] = replayedParam()
		// Any keyed write can be a 409: the key was used for a different request.
		if !slices.Contains(op.Errors, http.StatusConflict) {
			op.Errors = append(op.Errors, http.StatusConflict)
		}
	}

	if d.request != nil {
		op.Errors = append(op.Errors, http.StatusBadRequest)
		op.RequestBody = &huma.RequestBody{Required: !d.optional, Content: map[string]*huma.MediaType{"application/json": {Example: d.request}}}
	}

	return op
}

// describe returns the head of the document and huma's settings.
func describe() huma.Config {
	cfg := huma.DefaultConfig("Task Execution Service", documentVersion)
	// The default hook would add a $schema member to every body.
	cfg.CreateHooks = nil
	cfg.DocsPath, cfg.OpenAPIPath, cfg.SchemasPath = "", "", ""
	cfg.RejectUnknownQueryParameters = true
	cfg.Formats = formats
	cfg.Info.Description = "The internal endpoints of the Task Execution Service. Times are RFC 3339 in UTC; durations are integers of milliseconds. " +
		"Every error is a problem document (RFC 9457) with a stable code. Callers may have a rate limit: their responses have " +
		"RateLimit-Policy and RateLimit, and a request over the limit is a 429 RATE_LIMITED with Retry-After. A batch counts as its " +
		"items. HEAD is supported wherever GET is, and returns the same headers without a body. A query parameter with one value may " +
		"be given once; status and type of lists may be given several times and match any of their values. A header must have a " +
		"value: an empty If-Match, Idempotency-Key or X-User-Token is a 422. If-Match follows RFC 9110: a list of entity tags, of " +
		"which one must be the current one, or *; a weak tag never matches."
	cfg.Tags = []*huma.Tag{
		{Name: tagTasks, Description: "Create and read tasks, and change their status."},
		{Name: tagLeases, Description: "Execute tasks in remote workers, in any language."},
		{Name: tagDefinitions, Description: "The definitions of tasks."},
		{Name: tagDeadLetters, Description: "Redrive and discard tasks that have failed for good."},
		{Name: tagPauses, Description: "Pause and resume queues, definitions and tasks."},
		{Name: tagMetrics, Description: "Numbers of tasks, queues and attempts."},
	}

	cfg.Components.SecuritySchemes = map[string]*huma.SecurityScheme{security: {
		Type: "http", Scheme: "bearer", BearerFormat: "JWT",
		Description: "A service token of the Auth Service (ES256, RS256 or EdDSA; iss auth-service, aud api). service_name must be one of the operation's x-callers (*: any service), and scope must contain the named scope.",
	}}
	// Types of package jobs and db keep their Go form. The aliases decide how the document shows them.
	r := huma.NewMapRegistry("#/components/schemas/", schemaName)
	r.RegisterTypeAlias(reflect.TypeFor[json.RawMessage](), reflect.TypeFor[freeObject]())
	r.RegisterTypeAlias(reflect.TypeFor[jobs.Status](), reflect.TypeFor[statusName]())
	r.RegisterTypeAlias(reflect.TypeFor[jobs.Type](), reflect.TypeFor[typeName]())
	r.RegisterTypeAlias(reflect.TypeFor[jobs.Priority](), reflect.TypeFor[priorityName]())
	r.RegisterTypeAlias(reflect.TypeFor[db.TaskLane](), reflect.TypeFor[laneName]())
	r.RegisterTypeAlias(reflect.TypeFor[jobs.HeaderValue](), reflect.TypeFor[headerValue]())
	cfg.Components.Schemas = r
	return cfg
}

// schemaName maps Go types to the names that the document publishes.
func schemaName(t reflect.Type, hint string) string {
	base := t
	for base.Kind() == reflect.Pointer {
		base = base.Elem()
	}

	switch base {
	case reflect.TypeFor[jobs.Definition]():
		return "TaskDefinition"
	case reflect.TypeFor[jobs.RequestConfig]():
		return "TaskExecutionConfig"
	case reflect.TypeFor[jobs.Assign]():
		return "ExpressionMember"
	case reflect.TypeFor[jobs.HTTPCall]():
		return "HttpCall"
	case reflect.TypeFor[FieldViolation]():
		return "FieldFlaw" // the published name
	}
	return huma.DefaultSchemaNamer(t, hint)
}

// freeObject is a JSON object with arbitrary members.
type freeObject struct{}

// Schema implements huma.SchemaProvider.
func (freeObject) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, AdditionalProperties: true}
}

// The enums. Each has a name, so that a generated client has a type for each.
type (
	statusName   struct{}
	typeName     struct{}
	priorityName struct{}
	laneName     struct{}
)

// Schema implements huma.SchemaProvider.
func (statusName) Schema(r huma.Registry) *huma.Schema {
	return named(r, "TaskStatus", "The status of a task. COMPLETED, FAILED, CANCELLED and TIMED_OUT are final.", jobs.Statuses)
}

// Schema implements huma.SchemaProvider.
func (typeName) Schema(r huma.Registry) *huma.Schema {
	return named(r, "TaskType", "The kind of executor: code, another system, or a person.", []jobs.Type{jobs.Automated, jobs.Integration, jobs.Manual})
}

// Schema implements huma.SchemaProvider.
func (priorityName) Schema(r huma.Registry) *huma.Schema {
	return named(r, "TaskPriority", "The order within a queue.", []jobs.Priority{jobs.Low, jobs.Medium, jobs.High, jobs.Critical})
}

// Schema implements huma.SchemaProvider.
func (laneName) Schema(r huma.Registry) *huma.Schema {
	return named(r, "TaskLane", "A queue of the interface document.", jobs.Lanes)
}

// headerValue is a string or a reference to a secret.
type headerValue struct{}

// Schema implements huma.SchemaProvider.
func (headerValue) Schema(r huma.Registry) *huma.Schema {
	const name = "HeaderValue"
	if r.Map()[name] == nil {
		text := &huma.Schema{Type: huma.TypeString, MaxLength: new(4096), Description: "The value. Responses have *** instead."}
		ref := &huma.Schema{
			Type: huma.TypeObject, AdditionalProperties: false, Required: []string{"secretRef"}, Description: "A reference to a secret, resolved at each attempt.",
			Properties: map[string]*huma.Schema{"secretRef": {Type: huma.TypeString, Pattern: "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$", Description: "The name of the secret."}},
		}
		for _, s := range []*huma.Schema{text, ref.Properties["secretRef"], ref} {
			s.PrecomputeMessages()
		}
		r.Map()[name] = &huma.Schema{OneOf: []*huma.Schema{text, ref}}
	}

	return &huma.Schema{Ref: "#/components/schemas/" + name}
}

// orNull is a schema of an enum or null. A named schema could not be nullable.
func orNull[T ~string](description string, values ...T) *huma.Schema {
	s := &huma.Schema{Type: huma.TypeString, Nullable: true, Description: description}
	for _, v := range values {
		s.Enum = append(s.Enum, string(v))
	}
	s.Enum = append(s.Enum, nil)
	s.PrecomputeMessages()
	return s
}

func named[T ~string](r huma.Registry, name, description string, values []T) *huma.Schema {
	if r.Map()[name] == nil {
		s := &huma.Schema{Type: huma.TypeString, Description: description}
		for _, v := range values {
			s.Enum = append(s.Enum, string(v))
		}
		s.PrecomputeMessages()
		r.Map()[name] = s
	}

	return &huma.Schema{Ref: "#/components/schemas/" + name}
}

// limit adds bounds that the types of package jobs do not declare, because these types are also read
// from the database, after they were validated.
func limit(r huma.Registry) {
	for _, t := range []reflect.Type{reflect.TypeFor[jobs.RequestConfig](), reflect.TypeFor[jobs.ExecutionConfig](), reflect.TypeFor[jobs.RetryPolicy](), reflect.TypeFor[DequeueSelection]()} {
		r.Schema(t, true, "")
	}

	// A renamed member must not lose its bound silently.
	at := func(schema, member string) *huma.Schema {
		s := r.Map()[schema].Properties[member]
		if s == nil {
			// Found at once: every start, and so every test, comes here.
			panic(fmt.Sprintf("api: %s has no member %s any more", schema, member))
		}
		return s
	}

	for _, config := range []string{"TaskExecutionConfig", "ExecutionConfig"} {
		s := at(config, "executor")
		s.Enum = []any{"expression", "http", "noop", "go", "worker", "integration", "manual"}
		span(at(config, "visibilityTimeout"), 1000, 43_200_000)
		list(at(config, "expression"), 128)
		at(config, "handler").MaxLength = new(128)
	}

	span(at("TaskExecutionConfig", "timeout"), 1, 2_592_000_000)
	at("HttpCall", "url").Pattern = "^https?://[!-~]+$"
	at("HttpCall", "headers").MaxProperties = new(64)
	channel := at("Notifications", "channels").Items
	channel.Enum = []any{"in-app", "email", "push", "chat"}
	for _, member := range []string{"skills", "candidateUsers", "candidateRoles", "candidateGroups", "reassignRoles"} {
		at("AssignmentRules", member).Items.MaxLength = new(256)
	}

	at("SOAPCall", "order").Items.MaxLength = new(128)
	notified := at("Escalation", "notify").Items
	notified.MinLength, notified.MaxLength = new(1), new(256)
	at("DequeueSelection", "taskDefinitionIds").Items.MaxLength = new(128)
	// Messages contain the bounds, so they are computed again.
	for _, s := range r.Map() {
		s.PrecomputeMessages()
	}
}

func span(s *huma.Schema, low, high float64) { s.Minimum, s.Maximum = &low, &high }

func list(s *huma.Schema, most int) { s.MaxItems = &most }
