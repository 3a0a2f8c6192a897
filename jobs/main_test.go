package jobs

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/seed-3f7a0631/tes/db/dbtest"
)

func TestMain(m *testing.M) {
	// toxiproxy leaves goroutines behind on connections that it has cut.
	var cut []goleak.Option
	for _, name := range []string{".(*ToxicLink).read", ".(*ToxicLink).write", "/toxics.(*ToxicStub).Run"} {
		cut = append(cut, goleak.IgnoreAnyFunction("github.com/Shopify/toxiproxy/v2"+name))
	}
	dbtest.Main(m, func() error { return goleak.Find(cut...) })
}
