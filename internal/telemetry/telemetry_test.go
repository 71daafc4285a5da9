package telemetry

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestNewLogger(t *testing.T) {
	var out bytes.Buffer
	logger, err := NewLogger(&out, "json", slog.LevelWarn)
	if err != nil {
		t.Fatal(err)
	}
	logger.Info("hidden")
	logger.Warn("shown", "name", "web")
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line["msg"] != "shown" || line["name"] != "web" {
		t.Errorf("log is %q, %v", out.String(), err)
	}
	out.Reset()
	if logger, err = NewLogger(&out, "text", slog.LevelInfo); err != nil {
		t.Fatal(err)
	}
	logger.Info("shown")
	if !strings.Contains(out.String(), "level=INFO msg=shown") {
		t.Errorf("log is %q", out.String())
	}
	if _, err := NewLogger(&out, "xml", 0); err == nil {
		t.Error("format xml was accepted")
	}
}

func TestRegistry(t *testing.T) {
	first, err := NewRegistry()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewRegistry(); err != nil {
		t.Errorf("a second registry: %v", err)
	}
	first.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "gantry_test"}, func() float64 { return 7 }))
	recorder := httptest.NewRecorder()
	Handler(first).ServeHTTP(recorder, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{"gantry_test 7", "go_goroutines"} {
		if !strings.Contains(recorder.Body.String(), want) {
			t.Errorf("metrics do not hold %q", want)
		}
	}
}
