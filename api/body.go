package api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/seed-3f7a0631/tes/jobs/jsonguard"
)

// bodyTime bounds the arrival of a body.
const bodyTime = 5 * time.Second

// takeBody reads the whole body, bounded in size and time, and checks it with jsonguard.Check before
// any decoder. huma's decoder would build a value in memory that can be a thousand times as large
// as the body, and PostgreSQL's jsonb refuses some valid JSON.
func takeBody(most int64) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humachi.Unwrap(ctx)
		c := callOf(r.Context())
		body, p := readBody(c, w, r, most)
		if p != nil {
			writeProblem(c, p)
			return
		}
		c.body = body
		r.Body = io.NopCloser(bytes.NewReader(body))
		next(ctx)
	}
}

func readBody(c *call, w http.ResponseWriter, r *http.Request, most int64) ([]byte, *Problem) {
	if r.ContentLength == 0 {
		// huma knows whether the operation requires a body.
		return nil, nil
	}

	if !isJSON(r.Header.Get("Content-Type")) || r.Header.Get("Content-Encoding") != "" {
		return nil, problem(http.StatusUnsupportedMediaType, codeMediaType, "send the body as application/json, in UTF-8, without Content-Encoding")
	}
	// A declared length is refused before a byte is read; a body without one is cut by MaxBytesReader.
	if r.ContentLength > most {
		return nil, tooLarge(most)
	}

	control := http.NewResponseController(c.ResponseWriter)
	// Not every writer has deadlines; the server's own limits hold then.
	_ = control.SetReadDeadline(c.start.Add(bodyTime))
	var buf bytes.Buffer
	// Content-Length is the client's claim: no more than 64 KiB are reserved before they arrive.
	buf.Grow(int(min(max(r.ContentLength, 0), 64<<10)) + bytes.MinRead)
	_, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, most))
	var long *http.MaxBytesError
	var slow net.Error
	switch {
	case errors.As(err, &long):
		return nil, tooLarge(most)
	case errors.As(err, &slow) && slow.Timeout():
		return nil, problem(http.StatusRequestTimeout, codeValidation, "the body did not arrive in "+bodyTime.String()).with("Connection", "close")
	case err != nil:
		return nil, problem(http.StatusBadRequest, codeValidation, "the body did not arrive completely").because(err)
	}
	// The connection is kept for further requests.
	_ = control.SetReadDeadline(time.Time{})
	if buf.Len() == 0 {
		return nil, nil
	}

	if err := jsonguard.Check(buf.Bytes()); err != nil {
		return nil, meaning(err)
	}

	return buf.Bytes(), nil
}

func tooLarge(most int64) *Problem {
	return problem(http.StatusRequestEntityTooLarge, codeTooLarge, "the body is longer than "+strconv.FormatInt(most, 10)+" bytes").with("Connection", "close")
}

func isJSON(contentType string) bool {
	if contentType == "application/json" {
		return true
	}

	// Slow, so only for unusual headers.
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || media != "application/json" {
		return false
	}

	// Encodings other than UTF-8 are no JSON (RFC 8259).
	charset, given := params["charset"]
	return !given || strings.EqualFold(charset, "utf-8")
}
