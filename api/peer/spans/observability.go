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

// observability exports OTLP's JSON, {"resourceSpans": [...]}, to the Observability Service. The
// interface document names no format, and this one is common.
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

// inHex converts an id to bytes whose base64 is the id in hex. OTLP's JSON has ids in hex,
// protojson writes base64; hex digits are valid base64, and ids of 8 or 16 bytes make whole groups
// of four digits.
func inHex(id []byte) []byte {
	made, err := base64.StdEncoding.DecodeString(hex.EncodeToString(id))
	if err != nil {
		return id
	}
	return made
}
