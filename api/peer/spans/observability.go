package spans

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
)

// observability speaks OTLP's JSON, {"resourceSpans": [...]}, to the Observability
// Service: its own document names no shape, and this is the one that everybody reads.
type observability struct{ sender Sender }

// Start does nothing.
func (observability) Start(context.Context) error { return nil }

// Stop does nothing.
func (observability) Stop(context.Context) error { return nil }

// UploadTraces sends one batch.
func (o observability) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	body, err := encode(spans)
	if err != nil {
		return fmt.Errorf("write spans: %w", err)
	}
	return o.sender.Send(ctx, body)
}

// encode writes a batch, which it may change.
func encode(batch []*tracepb.ResourceSpans) (json.RawMessage, error) {
	for _, r := range batch {
		for _, scope := range r.ScopeSpans {
			for _, span := range scope.Spans {
				span.TraceId, span.SpanId, span.ParentSpanId = inHex(span.TraceId), inHex(span.SpanId), inHex(span.ParentSpanId)
				for _, link := range span.Links {
					link.TraceId, link.SpanId = inHex(link.TraceId), inHex(link.SpanId)
				}
			}
		}
	}
	return protojson.MarshalOptions{UseEnumNumbers: true}.Marshal(&tracepb.TracesData{ResourceSpans: batch})
}

// inHex makes of an id the bytes whose base64 is the id in hex. OTLP's JSON wants hex,
// protojson writes base64, and hex digits are base64's too, eight or sixteen bytes
// making whole groups of four.
func inHex(id []byte) []byte {
	made, err := base64.StdEncoding.DecodeString(hex.EncodeToString(id))
	if err != nil {
		return id
	}
	return made
}
