package peertest

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"
)

// ResponseSubject is the subject of the results of accepted invocations.
const ResponseSubject = "integration.response_received"

// ResponseDelay is how long an accepted e-mail takes.
const ResponseDelay = 200 * time.Millisecond

// RejectedContact is the contact whose invoices are refused.
const RejectedContact = "CONT-REJECTED"

var integrationID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// invocation is the body of invoke.
type invocation struct {
	Method        string          `json:"method"`
	Parameters    json.RawMessage `json:"parameters"`
	Connection    string          `json:"connection"`
	CredentialRef string          `json:"credentialRef"`
}

func (s *Server) invoke(w http.ResponseWriter, r *http.Request, st Steering) {
	integration := r.PathValue("id")
	if !integrationID.MatchString(integration) {
		writeError(w, http.StatusBadRequest, "VALIDATION_ERROR", "there can be no such integration")
		return
	}

	var asked invocation
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.Method == "" {
		writeError(w, http.StatusBadRequest, "VALIDATION_ERROR", "a method is asked for")
		return
	}

	id := invocationID(r)
	switch {
	case st.Status == http.StatusAccepted:
		writeJSON(w, http.StatusAccepted, map[string]any{"invocationId": id})
	case asked.Method == "create_invoice":
		createInvoice(w, id, asked.Parameters)
	case asked.Method == "send_email":
		s.answerLater(r, integration, id, map[string]any{"message_id": id, "status": "SENT"})
		writeJSON(w, http.StatusAccepted, map[string]any{"invocationId": id})
	case r.Header.Get("Prefer") == "respond-async" && s.respond != nil:
		s.answerLater(r, integration, id, echo(asked.Parameters, id))
		writeJSON(w, http.StatusAccepted, map[string]any{"invocationId": id})
	default:
		succeed(w, echo(asked.Parameters, id))
	}
}

// invocationID is equal for every repetition under one Idempotency-Key.
func invocationID(r *http.Request) uuid.UUID {
	key := r.Header.Get("Idempotency-Key")
	if key == "" {
		return uuid.New()
	}
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte(key))
}

func succeed(w http.ResponseWriter, data any) {
	writeJSON(w, http.StatusOK, map[string]any{"status": "SUCCESS", "data": data})
}

func createInvoice(w http.ResponseWriter, id uuid.UUID, parameters json.RawMessage) {
	var invoice struct {
		ContactID string `json:"contact_id"`
	}

	if err := json.Unmarshal(parameters, &invoice); err != nil {
		writeError(w, http.StatusUnprocessableEntity, "VALIDATION_ERROR", "the parameters are not those of an invoice")
		return
	}

	if invoice.ContactID == RejectedContact {
		writeJSON(w, http.StatusUnprocessableEntity, map[string]any{
			"error": map[string]any{
				"code":    "VALIDATION_ERROR",
				"message": "contact " + RejectedContact + " may not be invoiced",
				"details": map[string]any{"field": "contact_id", "value": RejectedContact},
			},
			"retryable": false,
		})
		return
	}

	succeed(w, map[string]any{
		"invoice_id":     id,
		"invoice_number": fmt.Sprintf("INV-%06d", binary.BigEndian.Uint32(id[:4])%1_000_000),
		"status":         "DRAFT",
	})
}

// answerLater publishes the invocation's success, unless there is no bus or the task is unknown.
func (s *Server) answerLater(r *http.Request, integration string, id uuid.UUID, data any) {
	if s.respond == nil {
		return
	}

	key := r.Header.Get("Idempotency-Key")
	taskID, _, found := strings.Cut(key, ":")
	if !found {
		s.logger.Warn("no response will be published: the Idempotency-Key is not <taskId>:<attempt>", "key", key)
		return
	}

	body, err := json.Marshal(map[string]any{
		"type":      ResponseSubject,
		"id":        uuid.New(),
		"timestamp": time.Now().Add(ResponseDelay).UTC().Format(time.RFC3339Nano),
		"data": map[string]any{
			"taskId":        taskID,
			"invocationId":  id,
			"integrationId": integration,
			"status":        "SUCCESS",
			"data":          data,
		},
		"metadata": map[string]any{
			"correlationId": r.Header.Get("X-Correlation-Id"),
			"taskId":        taskID,
			"source":        "integration-service",
		},
	})
	if err != nil || !s.enter() {
		return
	}

	go func() {
		defer s.busy.Done()
		s.publish(body)
	}()
}

// publish waits ResponseDelay and publishes. It must not use the request's context, which ends with
// the 202.
func (s *Server) publish(body []byte) {
	timer := time.NewTimer(ResponseDelay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, 10*time.Second)
	defer cancel()
	if err := s.respond(ctx, ResponseSubject, body); err != nil {
		s.logger.Error("the response was not published", "subject", ResponseSubject, "error", err)
	}
}

// UnknownConnection is a connection that does not exist.
const UnknownConnection = "NO-SUCH"

func connection(w http.ResponseWriter, r *http.Request, _ Steering) {
	integration := r.PathValue("id")
	if !integrationID.MatchString(integration) {
		writeError(w, http.StatusBadRequest, "VALIDATION_ERROR", "there can be no such integration")
		return
	}

	if r.URL.Query().Get("connection") == UnknownConnection {
		writeError(w, http.StatusNotFound, "NOT_FOUND", "there is no such connection")
		return
	}

	writeJSON(w, http.StatusOK, map[string]any{"integrationId": integration, "type": "REST", "status": "CONNECTED"})
}
