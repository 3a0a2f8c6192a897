package cel_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"

	"github.com/seed-3f7a0631/tes/jobs/cel"
)

// An expression sees the names of its Env, and numbers as JSON has them.
func ExampleEnv_Program() {
	program, err := cel.Names("input").Program(`input.items.filter(i, i.price > 10).map(i, i.name)`)
	if err != nil {
		log.Fatal(err)
	}
	input, err := cel.Decode(json.RawMessage(`{"items": [{"name": "pen", "price": 2}, {"name": "lamp", "price": 30}]}`))
	if err != nil {
		log.Fatal(err)
	}

	value, err := program.Eval(context.Background(), map[string]any{"input": input})
	if err != nil {
		log.Fatal(err)
	}
	out := &cel.Encoder{}
	if err := out.Value(value, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Println(out.String())
	// Output: ["lamp"]
}
