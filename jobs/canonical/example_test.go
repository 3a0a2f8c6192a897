package canonical_test

import (
	"fmt"
	"log"

	"github.com/seed-3f7a0631/tes/jobs/canonical"
)

// Two requests under one idempotency key are equal if their canonical forms are: white space,
// the order of members and the way of writing a number do not count.
func ExampleHash() {
	one, err := canonical.Hash([]byte(`{"amount": 12.50, "to": "ann"}`))
	if err != nil {
		log.Fatal(err)
	}
	two, err := canonical.Hash([]byte(`{"to":"ann","amount":1.25e1}`))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(one == two)
	// Output: true
}
