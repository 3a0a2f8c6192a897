package schema_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"

	"github.com/seed-3f7a0631/tes/jobs/schema"
)

// Violations name places and rules, and repeat no value of the document.
func ExampleSchema_Validate() {
	order, err := schema.Compile(json.RawMessage(`{
		"type": "object",
		"required": ["items"],
		"properties": {"items": {"type": "array", "items": {"type": "object", "properties": {"price": {"type": "number"}}}}}
	}`))
	if err != nil {
		log.Fatal(err)
	}

	violations, err := order.Validate(context.Background(), json.RawMessage(`{"items": [{"price": "ten"}]}`))
	if err != nil {
		log.Fatal(err)
	}
	for _, v := range violations {
		fmt.Println(v.Path, v.Message)
	}
	// Output: /items/0/price must be number, is string
}
