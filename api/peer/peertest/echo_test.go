package peertest_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-3f7a0631/tes/api/peer/peertest"
)

// A method that nobody knows is answered with its parameters, and beside them with
// what an integration of their type would say.
func TestEchoHasTheShapeOfItsType(t *testing.T) {
	t.Parallel()
	b := setup(t, peertest.Config{})
	for parameters, want := range map[string]string{
		`{"n":1}`:                                                             `{}`,
		`{"query":"q","limit":3}`:                                             `{}`,
		`{"query":"q","parameters":{"id":7}}`:                                 `{"rows":[{"id":7}],"rowCount":1}`,
		`{"operation":"o","parameters":{}}`:                                   `{"rows":[],"rowCount":0}`,
		`{"operation":"COPY","source":"a","destination":"b"}`:                 `{"status":"COMPLETED","bytes":4096,"reference":"b"}`,
		`{"operation":"DELETE","source":"a"}`:                                 `{"status":"COMPLETED"}`,
		`{"xml":"<e><Body><Get xmlns=\"urn:x\"><id>7</id></Get></Body></e>"}`: `{"xml":"<soap:Envelope xmlns:soap=\"http://schemas.xmlsoap.org/soap/envelope/\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soap:Body><GetResponse><id>7</id></GetResponse></soap:Body></soap:Envelope>"}`,
	} {
		status, body := b.call(t, "POST", "/api/integrations/x/invoke", `{"method":"nobody_knows","parameters":`+parameters+`}`)
		require.Equal(t, 200, status)
		var got struct {
			Data map[string]json.RawMessage
		}
		require.NoError(t, json.Unmarshal([]byte(body), &got))
		require.JSONEq(t, parameters, string(got.Data["echo"]))
		delete(got.Data, "echo")
		rest, err := json.Marshal(got.Data)
		require.NoError(t, err)
		require.JSONEq(t, want, string(rest), parameters)
	}
	_, body := b.call(t, "POST", "/api/integrations/x/invoke", `{"method":"m","parameters":{"destination":"d","message":1}}`)
	require.Contains(t, body, `"acknowledged":true`)
	_, body = b.call(t, "POST", "/api/integrations/x/invoke", `{"method":"m","parameters":{"xml":"<e"}}`)
	require.Contains(t, body, "soap:Client")
}
