//go:build linux

package main

import (
	"os"
	"os/exec"
	"testing"
)

// asProgram makes the test program behave as the fleet program.
const asProgram = "GANTRY_FLEET_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestFleet kills a machine a second of a small fleet.
func TestFleet(t *testing.T) {
	bin := os.Getenv("GANTRY_TEST_BIN")
	if bin == "" || os.Getuid() != 0 {
		t.Skip("needs root, and GANTRY_TEST_BIN that says where the programs are; \"make e2e\" has both")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The bound is upstream's for nothing: it leaves room for a machine on which other tests run, and what is lost for good is found.
	cmd := exec.CommandContext(t.Context(), self, "-bin", bin, "-nodes", "10", "-duration", "15s", "-away", "8s", "-bound", "20s")
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

func TestDeploymentOf(t *testing.T) {
	for pod, want := range map[string]string{"app1-5d8f-abcde": "app1", "a-b-5d8f-abcde": "a-b", "x": "x"} {
		if got := deploymentOf(pod); got != want {
			t.Errorf("deploymentOf(%q) = %q, want %q", pod, got, want)
		}
	}
}
