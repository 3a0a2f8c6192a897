package redact_test

import (
	"encoding/json"
	"fmt"

	"github.com/seed-3f7a0631/tes/outbox/redact"
)

func ExampleText() {
	fmt.Println(redact.Text("cannot connect: DB_PASSWORD=hunter2 host=db.internal"))
	// Output: cannot connect: DB_PASSWORD=[redacted] host=db.internal
}

func ExampleJSON() {
	fmt.Println(string(redact.JSON(json.RawMessage(`{"user": "ann", "apiToken": "abc"}`))))
	// Output: {"apiToken":"[redacted]","user":"ann"}
}
