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

// An Executor does the work of an attempt. Execute must return soon after ctx ends:
// at the attempt's deadline, when the task is cancelled, or when the lease is lost.
// A later result is ignored.
//
// With tracing, ctx has the attempt's span; a Go handler makes child spans by
// trace.SpanFromContext(ctx).TracerProvider().
//
// A nil error completes the task with Result.Output. A *Failure fails the attempt,
// and the task's retry policy decides about another attempt. An *Outage releases
// the task to its queue, and the attempt is not counted. An error of another type
// is a retryable failure with code EXECUTION_ERROR.
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

// Result is the success of an attempt. At most one field is set.
type Result struct {
	Output json.RawMessage // a JSON object, or nil for none
	Await  *Await          // accepted elsewhere: the task stays RUNNING until the answer comes
	Assign *Assignment     // a person's turn: the task waits as ASSIGNED
}

// Await names the invocation under which another system has taken the work. The
// system will answer by event.
type Await struct {
	InvocationID string
}

// Assignment names the people who may do a manual task. At least one of AssigneeID,
// GroupID, CandidateUsers, CandidateRoles and CandidateGroups is set.
type Assignment struct {
	AssigneeID      string
	AssigneeName    string
	GroupID         string
	CandidateUsers  []string
	CandidateRoles  []string
	CandidateGroups []string
	DueDate         *time.Time
}

// checked rejects a due date or an id that no request may contain. The result is a copy with the
// due date in the database's precision.
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

// Failure is the error of an attempt that ran and failed, in the interface document's form.
type Failure struct {
	Code       string          `json:"code"`
	Message    string          `json:"message"`
	Details    json.RawMessage `json:"details,omitempty"`
	StackTrace string          `json:"stackTrace,omitempty"`
	Retryable  *bool           `json:"retryable,omitempty"` // nil leaves it to the policy

	// After is the pause that the failing service asked for, as by Retry-After; 0 without a
	// request. The wait before a retry is at least as long, up to the policy's maxRetryInterval.
	After time.Duration `json:"-"`
}

func (f *Failure) Error() string { return f.Code + ": " + f.Message }

// Redacted returns the failure as stored, published and logged: without credentials, and
// with texts of bounded length. Every failure is redacted before the first write, whether of
// an executor, a worker or an update by hand.
func (f *Failure) Redacted() *Failure {
	return &Failure{
		Code: redactedText(f.Code, longestCode), Message: redactedText(f.Message, longestMessage), StackTrace: redactedText(f.StackTrace, longestStack),
		Details: redact.JSON(f.Details), Retryable: f.Retryable, After: f.After,
	}
}

// redactedText removes credentials from a text about a failure, and cuts the text to longest
// for jsonb. Eight times longest is searched, because a credential may lie across the cut.
func redactedText(s string, longest int) string {
	return storableText(redact.Text(s[:min(len(s), 8*longest)]), longest)
}

// Outage is the error of a peer service that could not be reached. The effect of the call is unknown,
// so the task waits and the attempt is not counted.
type Outage struct {
	PeerService string
	Err         error
}

func (o *Outage) Error() string { return o.PeerService + " is away: " + o.Err.Error() }
func (o *Outage) Unwrap() error { return o.Err }

// unansweredKey is the key of *unanswered in an attempt's context.
type unansweredKey struct{}

// unanswered points to a function that explains the missing answer to an attempt's request: an
// *Outage, or nil if a slow answer is no outage. The pointer is nil while no request is under way.
type unanswered = atomic.Pointer[func() *Outage]

// ReportRequest tells the engine, within Execute, that a request to a peer service is under way. Just
// before the attempt's deadline the engine calls why, which must be quick: an *Outage releases the
// attempt, nil leaves the attempt to its timeout. ReportOutage ends the request.
func ReportRequest(ctx context.Context, why func() *Outage) {
	// Without the key, the executor calls no peer service while its time runs: see run.do.
	if noted, ok := ctx.Value(unansweredKey{}).(*unanswered); ok {
		noted.Store(&why)
	}
}

// ReportOutage tells the engine, within Execute, of a request without an answer that will be repeated.
// If the attempt's deadline comes first, o releases the attempt. A nil o reports the answer.
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
// interface document; the API server rejects unknown members.
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

// SecurityContext names the user for whom a task is done, with the user's rights. Except for
// TenantID, the members are claims of the caller who requested the task or registered the
// definition: tes passes them to executors and workers, and does not check them. TenantID is the
// task's tenant, if the task has a tenant: see of. A task requested on the bus belongs to TenantID.
type SecurityContext struct {
	UserID        string   `json:"userId,omitempty" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]*$"`
	TenantID      string   `json:"tenantId,omitempty" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]*$" doc:"The tenant of the caller's token; a token without a tenant may name any. Executors and workers get the tenant of the task."`
	Roles         []string `json:"roles,omitempty" maxItems:"256" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$"`
	Permissions   []string `json:"permissions,omitempty" maxItems:"256" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]+$"`
	SecurityLevel string   `json:"securityLevel,omitempty" enum:"LOW,MEDIUM,HIGH"`
	RunAs         string   `json:"runAs,omitempty" maxLength:"256" pattern:"^[^\\x00-\\x1f\\x7f]*$" doc:"Passed to executors and workers as the caller gave it, like userId, roles, permissions and securityLevel. tes does not check them."`
}

// of returns the security context for executors and workers of a tenant's task. The task's tenant
// replaces the TenantID of request and definition: rows from before TenantID was compared with the
// caller's token may name another tenant. A task without a tenant keeps TenantID.
func (c *SecurityContext) of(tenant string) *SecurityContext {
	if tenant == "" || c != nil && c.TenantID == tenant {
		return c
	}

	// A copy: tasks share their settings.
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

// IntegrationCall is the call that the Integration Service makes for a task.
type IntegrationCall struct {
	Type          string `json:"type,omitempty" enum:"REST,SOAP,DATABASE,MESSAGE_QUEUE,FILE_TRANSFER,CUSTOM" default:"REST"`
	Method        string `json:"method" minLength:"1" maxLength:"128"`
	Instance      string `json:"instance" pattern:"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"`
	Async         bool   `json:"async,omitempty"`
	Connection    string `json:"connection,omitempty" maxLength:"128"`
	CredentialRef string `json:"credentialRef,omitempty" maxLength:"256" pattern:"^[A-Za-z0-9][A-Za-z0-9._:/#-]*$" doc:"A reference that the Integration Service resolves, such as vault:books/main; never the secret itself."`

	SOAP *SOAPCall `json:"soap,omitempty"` // for type SOAP, which needs it
}

// SOAPCall describes the envelope of a SOAP integration. The body's element has the
// method's name.
type SOAPCall struct {
	Namespace string   `json:"namespace" minLength:"1" maxLength:"512"`
	Action    string   `json:"action,omitempty" maxLength:"512"`
	Version   string   `json:"version,omitempty" enum:"1.1,1.2" default:"1.1"`
	Order     []string `json:"order,omitempty" maxItems:"256" doc:"The members that come first, in this order; the others follow by name."`
}

// AssignmentRules choose the people for a manual task: a person by Assignee, perhaps as
// ${input.path}; by Expression; or by Strategy among the users with the Role and every
// Skill. Else the task goes to the Group and the candidates. The defaults apply if no
// person is found, or if the directory of users is away and no answer is cached.
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

// Channels lists the channels of notices.
var Channels = []string{"in-app", "email", "push", "chat"}

// Notifications configures the notices about a manual task.
type Notifications struct {
	Channels []string `json:"channels,omitempty" maxItems:"4" doc:"In order of preference: if a channel fails, the next one is tried. Default: in-app."`
	Template string   `json:"template,omitempty" maxLength:"128" doc:"The template of all notices of the task. Default: task-assigned, task-reminder, task-overdue and task-escalated."`
}

// Escalation takes effect when a manual task's due date passes, beside the notice to
// the task's holder.
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

// Calendar is the working time of people. Package calendar has the defaults.
type Calendar struct {
	Country       string         `json:"country,omitempty" maxLength:"2" doc:"ISO 3166 code, such as DE: no work on its holidays. Default: no holidays."`
	TimeZone      string         `json:"timezone,omitempty" maxLength:"64" doc:"IANA name, such as Europe/Berlin. Default: UTC."`
	BusinessHours *BusinessHours `json:"businessHours,omitempty"`
	Workdays      []string       `json:"workdays,omitempty" maxItems:"7" enum:"MON,TUE,WED,THU,FRI,SAT,SUN" doc:"Default: MON to FRI."`
}

// BusinessHours are the hours of a working day, in the calendar's time zone.
type BusinessHours struct {
	Start string `json:"start,omitempty" maxLength:"5" doc:"Default: 09:00."`
	End   string `json:"end,omitempty" maxLength:"5" doc:"24:00 is the end of the day. Default: 17:00."`
}

// ResourceRequirements are the resources that an attempt asks of the Resource Service.
type ResourceRequirements struct {
	CPU            string `json:"cpu,omitempty" maxLength:"32"`
	Memory         string `json:"memory,omitempty" maxLength:"32"`
	Disk           string `json:"disk,omitempty" maxLength:"32"`
	TimeoutSeconds int64  `json:"timeoutSeconds,omitempty" minimum:"0" maximum:"2592000"`
}
