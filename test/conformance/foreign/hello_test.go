//go:build linux

package foreign

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestHello runs the example application, which needs its token, the API's Service and the network between pods.
func TestHello(t *testing.T) {
	image := filepath.Join(t.TempDir(), "hello.tar")
	build := exec.CommandContext(t.Context(), filepath.Join(os.Getenv("GANTRY_TEST_BIN"), "gantry"), "image", "build", "../../../examples/hello", "-t", "hello:latest", "-o", image)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := start(t, image)
	if out, err := c.kubectl(t.Context(), "", "apply", "-f", "../../../examples/hello/hello.yaml"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var address string
	c.eventually(t, "the Service has an address", func() error {
		out, err := c.kubectl(t.Context(), "", "get", "service", "hello", "-o", "jsonpath={.spec.clusterIP}")
		address = out
		return err
	})
	c.eventually(t, "the application answers and counts", func() error {
		out, err := c.run(t.Context(), "", "curl", "-sS", "--max-time", "5", "http://"+address+"/")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if !strings.Contains(out, "1") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
}
