//go:build linux

package conformance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// SuiteOptions says what RunSuite runs.
type SuiteOptions struct {
	Programs   string        // folder with e2e.test and ginkgo; required
	Kubectl    string        // program; required
	Kubeconfig string        // of an administrator; required
	Out        string        // folder for the log and the report; required
	Focus      string        // regular expression over the tests' names; required
	Skip       string        // regular expression
	Procs      int           // tests at once; default 4
	Timeout    time.Duration // of the whole run; default an hour
	Nodes      bool          // wait for nodes first; without, the cluster need not have any

	Env []string // more variables for the suite

	// Command makes a process where the cluster can be reached; default exec.CommandContext.
	Command func(ctx context.Context, name string, args ...string) *exec.Cmd
}

// RunSuite runs a part of upstream's suite on a cluster and returns how its tests ended. An error
// means that the suite did not come to its end, not that tests failed.
func RunSuite(ctx context.Context, opts SuiteOptions) ([]Result, error) {
	if slices.Contains([]string{opts.Programs, opts.Kubectl, opts.Kubeconfig, opts.Out, opts.Focus}, "") {
		return nil, errors.New("conformance: Programs, Kubectl, Kubeconfig, Out and Focus are required")
	}
	opts.Procs = cmp.Or(opts.Procs, 4)
	opts.Timeout = cmp.Or(opts.Timeout, time.Hour)
	if opts.Command == nil {
		opts.Command = exec.CommandContext
	}
	if err := os.MkdirAll(opts.Out, 0o755); err != nil {
		return nil, fmt.Errorf("conformance: make a folder for the report: %w", err)
	}
	log, err := os.Create(filepath.Join(opts.Out, "e2e.log"))
	if err != nil {
		return nil, fmt.Errorf("conformance: make a log: %w", err)
	}
	defer func() { _ = log.Close() }()
	report := filepath.Join(opts.Out, "junit_01.xml") // the suite's own name for it
	if err := os.RemoveAll(report); err != nil {
		return nil, fmt.Errorf("conformance: remove the last report: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, opts.Timeout+5*time.Minute)
	defer cancel()
	cmd := opts.Command(ctx, filepath.Join(opts.Programs, "ginkgo"), suiteArguments(opts)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir, cmd.Env = opts.Out, append(cmd.Environ(), opts.Env...)
	runErr := cmd.Run()
	found, err := os.Open(report)
	if err != nil {
		return nil, fmt.Errorf("conformance: the suite left no report; see %s: %w", log.Name(), errors.Join(err, runErr))
	}
	defer func() { _ = found.Close() }()
	return ReadResults(found)
}

func suiteArguments(opts SuiteOptions) []string {
	args := []string{
		"run", "--procs=" + strconv.Itoa(opts.Procs), "--timeout=" + opts.Timeout.String(), "--grace-period=60s", "--no-color",
		"--silence-skips", "--output-interceptor-mode=none", "--focus=" + opts.Focus,
	}
	if opts.Skip != "" {
		args = append(args, "--skip="+opts.Skip)
	}
	args = append(args, filepath.Join(opts.Programs, "e2e.test"), "--",
		"--kubeconfig="+opts.Kubeconfig, "--provider=skeleton", "--kubectl-path="+opts.Kubectl, "--report-dir="+opts.Out,
		"--disable-log-dump", "--node-os-distro=debian", "--dns-domain=cluster.local", "--clean-start=false")
	if !opts.Nodes {
		args = append(args, "--allowed-not-ready-nodes=-1", "--num-nodes=1")
	}
	return args
}
