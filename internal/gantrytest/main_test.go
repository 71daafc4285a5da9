package gantrytest

import (
	"log/slog"
	"os"
	"testing"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/klog/v2"
)

// TestMain keeps upstream's libraries from writing between the lines of the tests, and from waiting after an
// error until the time of the last one has come: in a bubble that is decades ahead.
func TestMain(m *testing.M) {
	utilruntime.ErrorHandlers = nil
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}
