package webhook_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/netip"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/seed-3f7a0631/tes/outbox/webhook"
)

// The receiver of a callback verifies its signature before it believes the body.
func ExampleCaller() {
	secret := webhook.NewSecret()
	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		log.Fatal(err)
	}
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || verifier.Verify(body, r.Header) != nil {
			http.Error(w, "not from tes", http.StatusUnauthorized)
			return
		}
		fmt.Println(r.Header.Get("webhook-id"), string(body))
	}))
	defer receiver.Close()

	secrets, err := webhook.ParseSecrets(secret)
	if err != nil {
		log.Fatal(err)
	}
	caller := webhook.New(webhook.Config{Secrets: secrets, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	defer caller.Close()
	if err := caller.Call(context.Background(), receiver.URL+"/callbacks/wf-1", "event-1", []byte(`{"status":"COMPLETED"}`)); err != nil {
		log.Fatal(err)
	}
	// Output: event-1 {"status":"COMPLETED"}
}
