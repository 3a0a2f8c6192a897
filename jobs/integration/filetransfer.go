package integration

import (
	"encoding/json"
	"net/url"
	"slices"
	"strings"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/outbox/redact"
)

// FILE_TRANSFER "sends file data, receives transfer status". Files are passed by reference:
// neither their content nor signed URLs may be part of a task.
type fileInput struct {
	Operation   string `json:"operation"`
	Source      string `json:"source"`
	Destination string `json:"destination,omitempty"` // not for DELETE
}

// fileOperations are the supported operations.
var fileOperations = []string{"UPLOAD", "DOWNLOAD", "COPY", "MOVE", "DELETE"}

func fileRequest(_ jobs.IntegrationCall, input json.RawMessage) (json.RawMessage, error) {
	var in fileInput
	if err := strictly("the transfer", input, &in); err != nil {
		return nil, err
	}

	if in.Operation = strings.ToUpper(in.Operation); !slices.Contains(fileOperations, in.Operation) {
		return nil, refuse("operation must be one of %s", strings.Join(fileOperations, ", "))
	}
	if (in.Operation == "DELETE") != (in.Destination == "") {
		return nil, refuse("a transfer must have a destination, except DELETE, which must have none")
	}

	for name, reference := range map[string]string{"source": in.Source, "destination": in.Destination} {
		// DELETE, as checked above.
		if reference == "" && name == "destination" {
			continue
		}

		if err := fileReference(reference); err != nil {
			return nil, refuse("%s %s", name, message(err))
		}
	}

	return parameters(in)
}

// fileReference checks a URI such as s3://bucket/key or sftp://host/path, or a name known to
// the connection.
func fileReference(text string) error {
	if text == "" || len(text) > 2048 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return refuse("is not a reference to a file of at most 2048 bytes")
	}

	u, err := url.Parse(text)
	switch {
	case err != nil:
		return refuse("is not a reference to a file")
	case strings.EqualFold(u.Scheme, "data"):
		return refuse("is a file, not a reference to a file")
	case u.User != nil:
		return refuse("contains a user: use credentialRef for credentials")
	}

	// A signed URL is a credential for the file.
	for name := range u.Query() {
		if redact.SecretName(name) || signatures[strings.ToLower(name)] {
			return refuse("contains a credential in its query: use credentialRef for credentials")
		}
	}

	return nil
}

// signatures are the query parameters of signed URLs.
var signatures = map[string]bool{"x-amz-signature": true, "x-amz-credential": true, "x-amz-security-token": true, "x-goog-signature": true, "sig": true, "signature": true, "token": true}

// fileAnswer accepts {status, bytes?, reference?, checksum?}; other members are kept.
func fileAnswer(_ jobs.IntegrationCall, data json.RawMessage) (json.RawMessage, error) {
	var transfer struct {
		Status    string `json:"status"`
		Bytes     *int64 `json:"bytes"`
		Reference string `json:"reference"`
		Checksum  string `json:"checksum"`
	}

	if err := loosely("the transfer's status", data, &transfer); err != nil {
		return nil, err
	}

	// The service may report a failed transfer as a successful call.
	switch strings.ToUpper(transfer.Status) {
	case "":
		return nil, refuse("the transfer's status is missing")
	case "FAILED", "ERROR":
		no := false
		return nil, &jobs.Failure{Code: "INTEGRATION_ERROR", Message: "the transfer failed", Details: data, Retryable: &no}
	}

	if transfer.Bytes != nil && *transfer.Bytes < 0 {
		return nil, refuse("the transfer has a negative number of bytes")
	}

	if transfer.Reference != "" {
		if err := fileReference(transfer.Reference); err != nil {
			return nil, refuse("the transfer's reference %s", message(err))
		}
	}

	return data, nil
}
