//go:build linux

package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"gantry.dev/gantry/test/conformance/cluster"
)

const (
	binEnv = "GANTRY_TEST_BIN" // folder of gantry and kubectl
	root   = "../../.."        // of the repository
)

// shared is the cluster of the tests that leave the server alone; nil without binEnv.
var shared *cluster.Cluster

func TestMain(m *testing.M) {
	os.Exit(withCluster(m))
}

func withCluster(m *testing.M) int {
	bin := os.Getenv(binEnv)
	if bin == "" {
		return m.Run()
	}
	ctx := context.Background()
	c, err := cluster.Start(ctx, cluster.Options{Bin: bin})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() {
		if err := c.Remove(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}()
	if err := c.LoadBusybox(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shared = c
	return m.Run()
}

func needCluster(t *testing.T) *cluster.Cluster {
	t.Helper()
	if shared == nil {
		t.Skipf("%s does not say where the programs are; \"make conformance\" does", binEnv)
	}
	return shared
}

// result is what a program said and how it ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string { return fmt.Sprintf("exit %d\n%s%s", r.code, r.stdout, r.stderr) }

// finish runs a command to its end.
func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// eventually calls check until it returns nil, or fails the test with its last error.
func eventually(t *testing.T, what string, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v (after %v)", what, err, limit)
		}
		time.Sleep(50 * time.Millisecond) // between two looks, not instead of one
	}
}
