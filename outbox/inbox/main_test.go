package inbox_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/seed-3f7a0631/tes/db/dbtest"
)

func TestMain(m *testing.M) {
	dbtest.Main(m, func() error { return goleak.Find() })
}
