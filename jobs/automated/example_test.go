package automated_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"

	"github.com/seed-3f7a0631/tes/jobs"
	"github.com/seed-3f7a0631/tes/jobs/automated"
)

func ExampleHandlers() {
	handlers := &automated.Handlers{}
	handlers.Register("greet", jobs.ExecutorFunc(func(_ context.Context, job jobs.Job) (jobs.Result, error) {
		var input struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal(job.Input, &input); err != nil {
			return jobs.Result{}, err
		}
		return jobs.Result{Output: json.RawMessage(fmt.Sprintf(`{"text": %q}`, "Hello, "+input.Name))}, nil
	}))

	// A definition names the handler: {"executor": "go", "handler": "greet"}.
	result, err := handlers.Execute(context.Background(), jobs.Job{
		Config: jobs.ExecutionConfig{Executor: "go", Handler: "greet"},
		Input:  json.RawMessage(`{"name": "Ann"}`),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(handlers.Names(), string(result.Output))
	// Output: [greet] {"text": "Hello, Ann"}
}

func ExampleExpression() {
	result, err := automated.NewExpression().Execute(context.Background(), jobs.Job{
		Config: jobs.ExecutionConfig{Expression: []jobs.Assign{
			{Name: "subtotal", Value: "sum(input.items.map(i, i.quantity * i.price))"},
			{Name: "total", Value: "round(output.subtotal * 1.08, 2)"},
		}},
		Input: json.RawMessage(`{"items": [{"quantity": 2, "price": 10.5}, {"quantity": 1, "price": 4}]}`),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(result.Output))
	// Output: {"subtotal":25,"total":27}
}

// CheckExpression finds at the registration what would fail at each attempt.
func ExampleCheckExpression() {
	err := automated.CheckExpression([]jobs.Assign{{Name: "total", Value: "output.subtotal * 2"}})
	fmt.Println(err)
	// Output: expression[0] (total): output.subtotal is not computed before
}
