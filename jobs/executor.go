package jobs

import (
	"context"
	"encoding/json"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/outbox/redact"
)

// An Executor does the work of one attempt. It must return soon after ctx ends:
// ctx ends at the attempt's deadline, when the task is cancelled, and when the
// lease is lost. What it returns then is ignored.
//
// ctx holds the attempt's span, where there is tracing: a Go handler makes children
// by trace.SpanFromContext(ctx).TracerProvider().
//
// A nil error completes the task with Result.Output. A *Failure fails the
// attempt and the task's retry policy decides; an *Outage gives the task back
// to its lane and spends no attempt; any other error is a retryable failure
// with code EXECUTION_ERROR.
type Executor interface {
	Execute(ctx context.Context, job Job) (Result, error)
}

// ExecutorFunc is a Go handler as an Executor.
type ExecutorFunc func(ctx context.Context, job Job) (Result, error)

// Execute calls f.
func (f ExecutorFunc) Execute(ctx context.Context, job Job) (Result, error) { return f(ctx, job) }

// Job is one attempt at a task, as an executor sees it.
type Job struct {
	TaskID        uuid.UUID
	Attempt       int // 1 for the first
	WorkflowID    string
	StepID        string
	DefinitionID  string
	Owner         *string // whose definition it is, and whose secrets it may use: a tenant's, "" the platform's; nil: the task has no definition, and may use none
	Name          string  // of the definition
	Description   string  // of the definition
	Type          Type
	Priority      Priority
	CorrelationID string
	Input         json.RawMessage // as the orchestrator sent it; never nil
	Context       json.RawMessage // the workflow's context; may be nil
	Config        ExecutionConfig // the definition's, with what the request overrode
	CreatedAt     time.Time
	DueDate       *time.Time
	Deadline      time.Time   // when the attempt times out; zero if never, and while resources are asked for
	Allocation    *Allocation // nil where the definition requires no resources
}

// Result is what an attempt came to. At most one field is set.
type Result struct {
	Output json.RawMessage // a JSON object, or nil for none
	Await  *Await          // accepted elsewhere: the task stays RUNNING until the answer comes
	Assign *Assignment     // a person's turn: the task waits as ASSIGNED
}

// Await says that another system took the work and will answer by event.
type Await struct {
	InvocationID string
}

// Assignment says whose turn it is. At least one of AssigneeID, GroupID,
// CandidateUsers, CandidateRoles and CandidateGroups is set.
type Assignment struct {
	AssigneeID      string
	AssigneeName    string
	GroupID         string
	CandidateUsers  []string
	CandidateRoles  []string
	CandidateGroups []string
	DueDate         *time.Time
}

// checked refuses what no request could ask for. The executor's own stays as it was.
func (a Assignment) checked() (_ Assignment, err error) {
	no := false
	refuse := func(what string, err error) (Assignment, error) {
		return a, &Failure{Code: CodeAssignment, Message: "the assignment's " + what + ": " + err.Error(), Retryable: &no}
	}
	if a.DueDate, err = timeAt("", a.DueDate); err != nil {
		return refuse("due date", err)
	}

	for _, one := range []struct{ what, id string }{{"assignee", a.AssigneeID}, {"group", a.GroupID}} {
		if one.id == "" {
			continue
		}
		if err := GuardID(one.id); err != nil {
			return refuse(one.what, err)
		}
	}

	for _, id := range slices.Concat(a.CandidateUsers, a.CandidateRoles, a.CandidateGroups) {
		if err := GuardID(id); err != nil {
			return refuse("candidate", err)
		}
	}

	return a, nil
}

// Failure is the document's error of a task: an attempt that ran and failed.
type Failure struct {
	Code       string          `json:"code"`
	Message    string          `json:"message"`
	Details    json.RawMessage `json:"details,omitempty"`
	StackTrace string          `json:"stackTrace,omitempty"`
	Retryable  *bool           `json:"retryable,omitempty"` // nil leaves it to the policy

	// After is how long who failed asked to be left alone, as by Retry-After; 0 for nothing.
	// The wait before a retry is at least as long, up to the policy's maxRetryInterval.
	After time.Duration `json:"-"`
}

func (f *Failure) Error() string { return f.Code + ": " + f.Message }

// Redacted is the failure as it may be kept, told and logged: without credentials, and
// with texts of bounded length. It is what every failure becomes before it is written,
// whoever it came from.
func (f *Failure) Redacted() *Failure {
	return &Failure{
		Code: redactedText(f.Code, longestCode), Message: redactedText(f.Message, longestMessage), StackTrace: redactedText(f.StackTrace, longestStack),
		Details: redact.JSON(f.Details), Retryable: f.Retryable, After: f.After,
	}
}

// redactedText makes somebody's words about a failure fit to be kept: without credentials,
// for jsonb, and not endless. A credential may stand across the cut, so that more than is
// kept is looked through.
func redactedText(s string, longest int) string {
	return storableText(redact.Text(s[:min(len(s), 8*longest)]), longest)
}

// Outage says that a peer service could not be reached: its effect is unknown, so the task waits and
// the attempt does not count.
type Outage struct {
	PeerService string
	Err         error
}

func (o *Outage) Error() string { return o.PeerService + " is away: " + o.Err.Error() }
func (o *Outage) Unwrap() error { return o.Err }

// unansweredKey is under which an attempt's context has its *unanswered.
type unansweredKey struct{}

// unanswered says why the request that an attempt makes has no answer; it returns nil
// where that is no outage. The pointer is nil while no request is under way.
type unanswered = atomic.Pointer[func() *Outage]

// ReportRequest tells the engine, within Execute, that a request to a peer service is under way. Just
// before the attempt's deadline the engine calls why, which must be quick: an *Outage releases the
// attempt, nil leaves the attempt to its timeout. ReportOutage ends the request.
func ReportRequest(ctx context.Context, why func() *Outage) {
	if noted, ok := ctx.Value(unansweredKey{}).(*unanswered); ok {
		noted.Store(&why)
	}
}

// ReportOutage tells the engine, within Execute, that the request got no answer and will be repeated:
// should the attempt's deadline come first, o releases the attempt. A nil o means that the answer came.
func ReportOutage(ctx context.Context, o *Outage) {
	noted, ok := ctx.Value(unansweredKey{}).(*unanswered)
	switch {
	case !ok:
	case o == nil:
		noted.Store(nil)
	default:
		why := func() *Outage { return o }
		noted.Store(&why)
	}
}

// ExecutionConfig is a definition's executionConfig. Field names follow the
// interface document; unknown members are kept out at the door.
type ExecutionConfig struct {
	Executor             string                `json:"executor,omitempty"`
	SecurityContext      *SecurityContext      `json:"securityContext,omitempty"`
	ResourceRequirements *ResourceRequirements `json:"resourceRequirements,omitempty"`
	VisibilityTimeout    int64                 `json:"visibilityTimeout,omitempty"` // ms; default 30 s
	Expression           []Assign              `json:"expression,omitempty"`
	HTTP                 *HTTPCall             `json:"http,omitempty"`
	Handler              string                `json:"handler,omitempty"` // name of a registered Go handler, for executor "go"
	Integration          *IntegrationCall      `json:"integration,omitempty"`
	AssignmentRules      *AssignmentRules      `json:"assignmentRules,omitempty"`
	Notifications        *Notifications        `json:"notifications,omitempty"`
	Escalation           *Escalation           `json:"escalation,omitempty"`
	SLA                  *SLA                  `json:"sla,omitempty"`
}

// SecurityContext says on whose behalf a task is done, and with what rights. All but the
// tenant is the word of whoever asked for the task, or registered its definition: we hand
// it on to whoever does the work, and hold none of it against anything. TenantID is the
// task's own where it has one: see of. A task that is asked for on the bus belongs to it.
type SecurityContext struct {
	UserID        string   `json:"userId,omitempty" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]*$"`
	TenantID      string   `json:"tenantId,omitempty" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]*$" doc:"The tenant of the caller's token; a token without a tenant may name any. Executors and workers get the tenant of the task."`
	Roles         []string `json:"roles,omitempty" maxItems:"256" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$"`
	Permissions   []string `json:"permissions,omitempty" maxItems:"256" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$"`
	SecurityLevel string   `json:"securityLevel,omitempty" enum:"LOW,MEDIUM,HIGH"`
	RunAs         string   `json:"runAs,omitempty" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]*$" doc:"Passed to executors and workers as the caller gave it, like userId, roles, permissions and securityLevel. tes does not check them."`
}

// of is the context as a task of a tenant hands it on: it names that tenant, whatever the
// request or the definition says, and whatever was stored before this was held against the
// caller's token. A task of no tenant may name one. Settings are shared, so it is a copy.
func (c *SecurityContext) of(tenant string) *SecurityContext {
	if tenant == "" || c != nil && c.TenantID == tenant {
		return c
	}

	var out SecurityContext
	if c != nil {
		out = *c
	}

	out.TenantID = tenant
	return &out
}

// Assign computes one member of the output: CEL over input, context and the
// output so far.
type Assign struct {
	Name  string `json:"name" minLength:"1" maxLength:"128"`
	Value string `json:"value" minLength:"1" maxLength:"8192"`
}

// HTTPCall is the http executor's request. The task's input is the body unless
// the method has none (GET, HEAD, DELETE).
type HTTPCall struct {
	Method  string                 `json:"method,omitempty" enum:"GET,HEAD,POST,PUT,PATCH,DELETE" default:"POST"`
	URL     string                 `json:"url" minLength:"1" maxLength:"2048"`
	Headers map[string]HeaderValue `json:"headers,omitempty" doc:"A value is a text, which is never shown again (*** stands for it), or {\"secretRef\": \"name\"}, a secret that is looked up at each attempt."`
}

// IntegrationCall names what the Integration Service is to do.
type IntegrationCall struct {
	Type          string `json:"type,omitempty" enum:"REST,SOAP,DATABASE,MESSAGE_QUEUE,FILE_TRANSFER,CUSTOM" default:"REST"`
	Method        string `json:"method" minLength:"1" maxLength:"128"`
	Instance      string `json:"instance" pattern:"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"`
	Async         bool   `json:"async,omitempty"`
	Connection    string `json:"connection,omitempty" maxLength:"128"`
	CredentialRef string `json:"credentialRef,omitempty" maxLength:"256" pattern:"^[A-Za-z0-9][A-Za-z0-9._:/#-]*$" doc:"A reference that the Integration Service resolves, such as vault:books/main; never the secret itself."`

	SOAP *SOAPCall `json:"soap,omitempty"` // for type SOAP, which needs it
}

// SOAPCall says how the envelope of a SOAP integration is written. The body's element
// has the method's name.
type SOAPCall struct {
	Namespace string   `json:"namespace" minLength:"1" maxLength:"512"`
	Action    string   `json:"action,omitempty" maxLength:"512"`
	Version   string   `json:"version,omitempty" enum:"1.1,1.2" default:"1.1"`
	Order     []string `json:"order,omitempty" maxItems:"256" doc:"The members that come first, in this order; the others follow by name."`
}

// AssignmentRules say who may do a manual task: one person by Assignee, which may be
// ${input.path}; by Expression; or by Strategy among those with the Role and all of
// the Skills. Else the Group, and whoever is a candidate. Where that is nobody, or
// the directory is away and remembers nothing, the defaults.
type AssignmentRules struct {
	Assignee        string   `json:"assignee,omitempty" maxLength:"256"`
	Expression      string   `json:"expression,omitempty" maxLength:"8192" doc:"CEL over input, context and people: a user's id, or {assigneeId}, {groupId} or {candidateUsers, candidateRoles, candidateGroups}. people is the list of users with the role and skills: id, name, roles, skills, openTasks."`
	Role            string   `json:"role,omitempty" maxLength:"128"`
	Skills          []string `json:"skills,omitempty" maxItems:"32"`
	Strategy        string   `json:"strategy,omitempty" enum:"spread,least-loaded" doc:"The choice among the users with the role and skills: a different user for each task (spread, the default), or the user with the fewest open tasks (least-loaded)."`
	Group           string   `json:"group,omitempty" maxLength:"128"`
	CandidateUsers  []string `json:"candidateUsers,omitempty" maxItems:"256"`
	CandidateRoles  []string `json:"candidateRoles,omitempty" maxItems:"32"`
	CandidateGroups []string `json:"candidateGroups,omitempty" maxItems:"32"`
	DefaultAssignee string   `json:"defaultAssignee,omitempty" maxLength:"128"`
	DefaultGroup    string   `json:"defaultGroup,omitempty" maxLength:"128"`
	ReassignRoles   []string `json:"reassignRoles,omitempty" maxItems:"32" doc:"Roles whose holders may reassign the task, even if it is not assigned to them. Only roles in the person's own token count."`
}

// Strategies of AssignmentRules.
const (
	Spread      = "spread"
	LeastLoaded = "least-loaded"
)

// Channels are those that a notice may take.
var Channels = []string{"in-app", "email", "push", "chat"}

// Notifications says how whoever has a manual task is told of it.
type Notifications struct {
	Channels []string `json:"channels,omitempty" maxItems:"4" doc:"In order of preference: if a channel fails, the next one is tried. Default: in-app."`
	Template string   `json:"template,omitempty" maxLength:"128" doc:"The template of all notices of the task. Default: task-assigned, task-reminder, task-overdue and task-escalated."`
}

// Escalation is what happens when a manual task's due date passes, beside that
// whoever has it is told.
type Escalation struct {
	Notify     []string          `json:"notify,omitempty" maxItems:"32" doc:"The users who get a notice."`
	ReassignTo *EscalationTarget `json:"reassignTo,omitempty" doc:"The new assignee. The due date stays."`
}

// EscalationTarget is a person or a group.
type EscalationTarget struct {
	AssigneeID string `json:"assigneeId,omitempty" maxLength:"128" doc:"The person. Give either assigneeId or groupId."`
	GroupID    string `json:"groupId,omitempty" maxLength:"128" doc:"The group. Give either assigneeId or groupId."`
}

// SLA gives a manual task its due date.
type SLA struct {
	Hours    float64   `json:"hours,omitempty" minimum:"0" maximum:"8760" doc:"Hours from the assignment to the due date. With a calendar: business hours."`
	Calendar *Calendar `json:"calendar,omitempty"`
}

// Calendar says when people work: see package calendar, which has the defaults.
type Calendar struct {
	Country       string         `json:"country,omitempty" maxLength:"2" doc:"ISO 3166 code, such as DE: no work on its holidays. Default: no holidays."`
	TimeZone      string         `json:"timezone,omitempty" maxLength:"64" doc:"IANA name, such as Europe/Berlin. Default: UTC."`
	BusinessHours *BusinessHours `json:"businessHours,omitempty"`
	Workdays      []string       `json:"workdays,omitempty" maxItems:"7" enum:"MON,TUE,WED,THU,FRI,SAT,SUN" doc:"Default: MON to FRI."`
}

// BusinessHours are a working day, by the clock on the wall.
type BusinessHours struct {
	Start string `json:"start,omitempty" maxLength:"5" doc:"Default: 09:00."`
	End   string `json:"end,omitempty" maxLength:"5" doc:"24:00 is the end of the day. Default: 17:00."`
}

// ResourceRequirements are asked of the Resource Service.
type ResourceRequirements struct {
	CPU            string `json:"cpu,omitempty" maxLength:"32"`
	Memory         string `json:"memory,omitempty" maxLength:"32"`
	Disk           string `json:"disk,omitempty" maxLength:"32"`
	TimeoutSeconds int64  `json:"timeoutSeconds,omitempty" minimum:"0" maximum:"2592000"`
}
