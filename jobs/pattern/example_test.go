package pattern_test

import (
	"fmt"
	"log"

	"github.com/seed-3f7a0631/tes/jobs/pattern"
)

func ExampleCompile() {
	postcode, err := pattern.Compile(`^[0-9]{5}$`)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(postcode.MatchString("10115"), postcode.MatchString("1011"))

	_, err = pattern.Compile(`^(([0-9]{100}){100}){100}$`)
	fmt.Println(err != nil)
	// Output:
	// true false
	// true
}
