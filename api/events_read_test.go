package api

import (
	"encoding/json"
	"reflect"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/outbox"
)

// FuzzMessage: every message is read or is poison, whose reason is valid text; a message that is read
// has an id that the inbox can store.
func FuzzMessage(f *testing.F) {
	c := &consumer{schemas: newEventSchemas()}
	for _, s := range subjects {
		if text, err := json.Marshal(s.payload("x")); err == nil && s.handler != "" {
			f.Add(text)
		}
	}
	f.Add([]byte(`{"id":"1","data":null,"metadata":[]}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, s := range subjects {
			if s.handler == "" {
				continue
			}
			h, err := c.read(outbox.Delivery{Subject: s.address, Body: body})
			if err != nil {
				var poison *outbox.Poison
				require.ErrorAs(t, err, &poison)
				require.True(t, utf8.ValidString(poison.Reason))
				continue
			}
			require.NotEmpty(t, h.id)
			require.LessOrEqual(t, len(h.id), 255)
			var request TaskRequest
			if s.address == outbox.SubjectTaskRequested {
				_ = fillTask("data", h.data, &request)
			} else {
				require.NoError(t, h.into(reflect.New(s.data).Interface()), "%s", body)
			}
		}
	})
}
