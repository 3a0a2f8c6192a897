package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/tidwall/gjson"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
	"github.com/seed-3f7a0631/tes/outbox"
	"github.com/seed-3f7a0631/tes/outbox/inbox"
)

// EventsConfig configures Subscriptions. Tasks and Inbox must be set.
type EventsConfig struct {
	// Tasks makes the transitions.
	Tasks *jobs.Tasks
	// Inbox remembers the handled messages.
	Inbox *inbox.Inbox
	// Logger gets one line for each message; default: slog.Default.
	Logger *slog.Logger
}

// Subscription is one consumed subject. All processes of the service share the durable consumer.
type Subscription struct {
	Durable, Subject string
	Handle           outbox.Handler
}

// Subscriptions returns the subscribed events of the interface document, each with the handler that
// the document names.
func Subscriptions(cfg EventsConfig) []Subscription {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}

	c := &consumer{cfg: cfg, schemas: newEventSchemas()}
	system := SystemEventHandler{c}
	return []Subscription{
		{"tes-task-requests", outbox.SubjectTaskRequested, c.wrap(TaskRequestHandler{c}.Handle)},
		{"tes-integration-responses", outbox.SubjectIntegrationResponse, c.wrap(IntegrationResponseHandler{c}.Handle)},
		{"tes-shutdown", outbox.SubjectShutdown, c.wrap(system.Handle)},
		{"tes-maintenance", outbox.SubjectMaintenance, c.wrap(system.Handle)},
	}
}

// consumer handles the messages of the bus: it validates each against its schema and calls package
// jobs.
type consumer struct {
	cfg     EventsConfig
	schemas *eventSchemas
}

// message is a message with a valid envelope.
type message struct {
	outbox.Delivery
	id       string
	data     gjson.Result
	metadata outbox.Metadata
}

// by is the actor in events and orders. The bus only proves that the sender may publish on the subject;
// the sender's own claim (metadata.source) is only logged.
func (h *message) by() string { return "bus:" + h.Subject }

// wrap adds the common steps to a handler: read the envelope, handle each event once, and wait
// while the database is unavailable. Waiting here spares the message its deliveries, which are
// counted, and which an outage must not use up.
func (c *consumer) wrap(act func(context.Context, *message) (outbox.Outcome, error)) outbox.Handler {
	return func(ctx context.Context, d outbox.Delivery) error {
		h, err := c.read(d)
		if err != nil {
			return err
		}
		for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
			err = c.once(ctx, h, act)
			// ctx ends when the process stops: the message is then redelivered to another process.
			if !errors.Is(err, jobs.ErrUnavailable) || !waited(ctx, pause) {
				return err
			}
		}
	}
}

func (c *consumer) once(ctx context.Context, h *message, act func(context.Context, *message) (outbox.Outcome, error)) error {
	begun := time.Now()
	// Once does not call back for a message that was handled before.
	outcome := outbox.Outcome{Result: outbox.Repeated}
	var failed error
	err := c.cfg.Inbox.Once(ctx, h.Subject, h.id, func(ctx context.Context) (outbox.Outcome, error) {
		outcome, failed = act(ctx, h)
		return outcome, failed
	})
	switch {
	case failed != nil:
		return failed
	case err != nil:
		// The inbox itself failed. The handler's effect may be committed; repeating it is harmless.
		return readFailed("inbox", err)
	}
	c.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "message handled",
		slog.String("subject", h.Subject), slog.String("event", h.id), slog.String("outcome", outcome.Result), slog.String("detail", outcome.Detail),
		slog.String("claimed_source", sanitize(h.metadata.Source, 128)),
		slog.Float64("ms", float64(time.Since(begun).Microseconds())/1000))
	return nil
}

// waited returns false if ctx ended first.
func waited(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// read reads the envelope of a message and validates it against its schema.
func (c *consumer) read(d outbox.Delivery) (*message, error) {
	if err := jsonguard.Check(d.Body); err != nil {
		return nil, &outbox.Poison{Reason: "not acceptable JSON: " + err.Error()}
	}

	doc := gjson.ParseBytes(d.Body)
	if p := c.schemas.validate(d.Subject, doc); p != nil {
		return nil, poison("not a "+d.Subject, p)
	}

	h := &message{Delivery: d, id: doc.Get("id").Str, data: doc.Get("data")}
	if m := doc.Get("metadata"); m.IsObject() {
		if err := json.Unmarshal([]byte(m.Raw), &h.metadata); err != nil {
			return nil, &outbox.Poison{Reason: "not a " + d.Subject + ": metadata cannot be read"}
		}
	}

	return h, nil
}

// into decodes data, which has passed its schema.
func (h *message) into(data any) error {
	if err := json.Unmarshal(normalize([]byte(h.data.Raw)), data); err != nil {
		return &outbox.Poison{Reason: "not a " + h.Subject + ": data cannot be read"}
	}
	return nil
}

// poison describes the violations of a message by their places. The reason repeats no values,
// because readers of the reason may lack the right to read the message.
func poison(what string, p *Problem) *outbox.Poison {
	places := make([]string, len(p.Errors))
	for i, v := range p.Errors {
		places[i] = v.Location + ": " + v.Message
	}
	return &outbox.Poison{Reason: what + ": " + strings.Join(places, "; ")}
}

// TaskRequestHandler handles workflow.task_requested, with the validation and the operation of POST
// /api/internal/tasks.
type TaskRequestHandler struct{ *consumer }

// Handle creates the task and returns after the commit.
func (t TaskRequestHandler) Handle(ctx context.Context, h *message) (outbox.Outcome, error) {
	var body TaskRequest
	if p := fillTask("data", h.data, &body); p != nil {
		return outbox.Outcome{}, poison("not a "+h.Subject, p)
	}

	if body.CorrelationID == "" {
		body.CorrelationID = h.metadata.CorrelationID
	}

	key := body.Key
	if key == "" {
		key = h.id
	}

	// Brokers and clients set traceparent; ce-traceparent is the CloudEvents attribute, percent-encoded.
	span := h.Header["traceparent"]
	if span == "" {
		span = outbox.DecodeAttribute(h.Header["ce-traceparent"])
	}

	row, created, err := t.cfg.Tasks.Create(ctx, body.request(creator{h.by(), tenantOf(&body), jobs.Traceparent(jobs.ContextWithTraceparent(ctx, span))}, key, []byte(h.data.Raw)))
	var invalid *jobs.Invalid
	switch {
	case errors.As(err, &invalid):
		return outbox.Outcome{}, poisoned("the task request is not valid", invalid)
	case errors.Is(err, jobs.ErrKeyReused):
		return outbox.Outcome{}, &outbox.Poison{Reason: "data.requestId (or id, without one) was used before with a different request"}
	case err != nil:
		return outbox.Outcome{}, err
	case !created:
		return outbox.Outcome{Result: outbox.Repeated, Detail: row.TaskID.String()}, nil
	}
	return outbox.Outcome{Result: "created", Detail: row.TaskID.String()}, nil
}

// tenantOf is the tenant of the task. The bus has no token, so the message's own claim decides.
func tenantOf(b *TaskRequest) string {
	if b.Config == nil || b.Config.SecurityContext == nil {
		return ""
	}
	return b.Config.SecurityContext.TenantID
}

// withoutValues replaces the messages of refusals that quote the request's values. Over HTTP only
// the caller reads them.
var withoutValues = map[string]string{
	"/taskDefinitionId":         "no such task definition; without one, taskType and executionConfig.executor are required",
	"/taskType":                 "is not the definition's type",
	"/executionConfig":          "has a member that only the definition may set, or one that the executor does not support",
	"/executionConfig/executor": "is not an executor for tasks of this type",
}

// poisoned converts a refusal of package jobs.
func poisoned(what string, invalid *jobs.Invalid) *outbox.Poison {
	p := &Problem{}
	for _, v := range invalid.Violations {
		text, known := withoutValues[v.Path]
		if !known {
			text = v.Message
		}
		if !p.addViolation("data"+dotted(v.Path), text) {
			break
		}
	}

	return poison(what, p)
}

// IntegrationResponseHandler handles integration.response_received and ends the attempt that waits
// for it. A late, repeated or unknown response is recorded without effect.
type IntegrationResponseHandler struct{ *consumer }

const (
	// earlyTries is how often a response may arrive before its task waits for it. With the bus's
	// growing redelivery delays, this is some minutes.
	earlyTries = 12
	// earlyFor is how long a response of an unknown task is retried: the task may not be committed
	// yet.
	earlyFor = time.Minute
)

// Handle ends the attempt. A response that arrives too early is redelivered.
func (i IntegrationResponseHandler) Handle(ctx context.Context, h *message) (outbox.Outcome, error) {
	var response outbox.IntegrationResponse
	if err := h.into(&response); err != nil {
		return outbox.Outcome{}, err
	}

	if response.TaskID == "" {
		response.TaskID = h.metadata.TaskID
	}
	if response.TaskID == "" {
		return outbox.Outcome{}, &outbox.Poison{Reason: "not a " + h.Subject + ": data.taskId or metadata.taskId must name the task"}
	}

	// A malformed id is unknown at once: no later commit can make it known.
	word, err := i.cfg.Tasks.Respond(ctx, response)
	_, malformed := uuid.Parse(response.TaskID)
	switch {
	case errors.Is(err, jobs.ErrNotYet) && h.Redelivered > earlyTries:
		word, err = outbox.Late, nil
	case word == outbox.Unknown && malformed == nil && time.Since(h.At) < earlyFor:
		return outbox.Outcome{}, fmt.Errorf("no such task: %w", jobs.ErrNotYet)
	}
	if malformed != nil {
		return outbox.Outcome{Result: word}, err
	}

	return outbox.Outcome{Result: word, Detail: response.TaskID}, err
}

// SystemEventHandler handles system.shutdown_requested and system.maintenance_mode.
type SystemEventHandler struct{ *consumer }

// Handle passes a shutdown order on to the matching processes, or sets the maintenance of queues.
func (s SystemEventHandler) Handle(ctx context.Context, h *message) (outbox.Outcome, error) {
	if h.Subject == outbox.SubjectShutdown {
		return s.shutdown(ctx, h)
	}
	return s.maintenance(ctx, h)
}

func (s SystemEventHandler) shutdown(ctx context.Context, h *message) (outbox.Outcome, error) {
	var data outbox.ShutdownRequested
	if err := h.into(&data); err != nil {
		return outbox.Outcome{}, err
	}

	// At decides who is concerned: processes that started after the event are not.
	order := jobs.ShutdownOrder{EventID: h.id, At: h.At, Target: data.Target, Reason: sanitize(data.Reason, 1024), By: h.by()}
	if data.GraceSeconds != nil {
		grace := time.Duration(*data.GraceSeconds * float64(time.Second))
		order.Grace = &grace
	}

	ours, err := s.cfg.Tasks.Operators.OrderShutdown(ctx, order)
	switch {
	case err != nil:
		return outbox.Outcome{}, err
	case !ours:
		return outbox.Outcome{Result: outbox.Elsewhere}, nil
	}
	return outbox.Outcome{Result: "ordered"}, nil
}

func (s SystemEventHandler) maintenance(ctx context.Context, h *message) (outbox.Outcome, error) {
	var data outbox.MaintenanceMode
	if err := h.into(&data); err != nil {
		return outbox.Outcome{}, err
	}

	// Without lanes the event concerns every queue.
	lanes := data.Lanes
	if len(lanes) == 0 {
		lanes = jobs.Lanes
	}

	lanes = slices.Compact(slices.Sorted(slices.Values(lanes)))
	changed, err := s.cfg.Tasks.Operators.SetMaintenance(ctx, jobs.Maintenance{
		EventID: h.id, At: h.At, Enabled: data.Enabled, Lanes: lanes, Until: data.Until, Reason: sanitize(data.Reason, 1024), By: h.by(),
	})
	var invalid *jobs.Invalid
	switch {
	case errors.As(err, &invalid):
		return outbox.Outcome{}, poisoned("not a "+h.Subject, invalid)
	case err != nil:
		return outbox.Outcome{}, err
	case changed == 0:
		// A newer event has been handled before.
		return outbox.Outcome{Result: outbox.Late}, nil
	case data.Enabled:
		return outbox.Outcome{Result: "begun", Detail: strings.Join(lanes, " ")}, nil
	}
	return outbox.Outcome{Result: "ended", Detail: strings.Join(lanes, " ")}, nil
}
