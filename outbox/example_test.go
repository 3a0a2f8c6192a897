package outbox_test

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/seed-3f7a0631/tes/outbox"
)

// The id of an event is derived from its task and the number of the transition, so that a
// redelivery has the same id.
func ExampleEventID() {
	task := uuid.MustParse("01a20611-5f27-7405-b32e-c5e950104ee3")
	fmt.Println(outbox.EventID(task, 3))
	// Output: 1174482c-0c11-8bf0-898e-ff137688b3d8
}

// A header of CloudEvents has a correlation id percent-encoded.
func ExampleEncodeAttribute() {
	fmt.Println(outbox.EncodeAttribute(`order "7"`), outbox.DecodeAttribute("order%20%227%22"))
	// Output: order%20%227%22 order "7"
}
