//go:build linux

// Command run starts a Gantry node on a machine of its own, runs a part of upstream's end-to-end
// suite on it, and says what passed. "make conformance" is this.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"gantry.dev/gantry/test/conformance"
	"gantry.dev/gantry/test/conformance/cluster"
	"gantry.dev/gantry/test/upstream"
)

type options struct {
	bin, cache, module string
	list, focus, skip  string
	kubeconfig, out    string
	etcdCache          string
	procs, nodes       int
	timeout            time.Duration
	all, keep          bool
	images             bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.bin, "bin", "../bin", "folder with gantry and kubectl")
	flags.StringVar(&o.cache, "cache", "../.cache/conformance", "folder that keeps the built suite")
	flags.StringVar(&o.etcdCache, "etcd-cache", "../.cache/upstream", "folder that keeps upstream's control plane, of which a test runs etcd")
	flags.StringVar(&o.module, "module", "conformance/programs", "folder of the go.mod that pins the suite")
	flags.StringVar(&o.list, "list", "conformance/lists/one-node.txt", "file that names the tests")
	flags.StringVar(&o.focus, "focus", "", "regular expression over names, instead of the list")
	flags.StringVar(&o.skip, "skip", "", "regular expression over names that are left out")
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "run on this cluster instead of starting one")
	flags.StringVar(&o.out, "out", "../.cache/conformance/out", "folder for the log and the report")
	flags.IntVar(&o.procs, "procs", 4, "tests at once")
	flags.IntVar(&o.nodes, "nodes", 1, "nodes of the cluster: a server and workers")
	flags.DurationVar(&o.timeout, "timeout", 2*time.Hour, "limit of the whole run")
	flags.BoolVar(&o.all, "all", false, "also run what the list leaves out")
	flags.BoolVar(&o.images, "images", true, "give the node stand-ins for upstream's test images, for tests that run pods")
	flags.BoolVar(&o.keep, "keep", false, "leave the cluster there in the end")
	return o, flags.Parse(args)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	tests, err := readList(o)
	if err != nil {
		return err
	}
	suite := conformance.SuiteOptions{
		Kubectl: filepath.Join(o.bin, "kubectl"), Kubeconfig: o.kubeconfig, Out: o.out, Focus: o.focus, Skip: o.skip,
		Procs: o.procs, Timeout: o.timeout,
	}
	if o.focus == "" {
		suite.Focus = conformance.Focus(conformance.Wanted(tests, o.all))
	}
	suite.Programs, err = upstream.Build(ctx, upstream.BuildOptions{
		Module: o.module, Cache: o.cache, Programs: conformance.SuitePrograms(), Log: stderr,
	})
	if err != nil {
		return err
	}
	if o.kubeconfig == "" {
		c, err := cluster.Start(ctx, cluster.Options{Bin: o.bin})
		if err != nil {
			return err
		}
		defer func() { finish(c, o, stderr) }()
		for range o.nodes - 1 {
			if _, err := c.Join(ctx); err != nil {
				return err
			}
		}
		suite.Kubeconfig, suite.Command = c.Kubeconfig(), c.Command
		if o.images {
			registry, err := loadImages(ctx, c, o, stderr)
			if err != nil {
				return err
			}
			defer func() { _ = registry.Close() }()
			suite.Env = []string{"KUBE_TEST_REPO_LIST=" + filepath.Join(o.out, repoList)}
		}
	}
	for _, path := range []*string{&suite.Kubectl, &suite.Kubeconfig, &suite.Out} {
		if *path, err = filepath.Abs(*path); err != nil {
			return fmt.Errorf("find %s: %w", *path, err)
		}
	}
	results, err := conformance.RunSuite(ctx, suite)
	if err != nil {
		return err
	}
	if o.focus != "" {
		tests = nil
	}
	report := conformance.Compare(tests, results)
	if err := report.Write(stdout); err != nil {
		return err
	}
	if !report.Good() {
		return fmt.Errorf("the suite's log is %s", filepath.Join(suite.Out, "e2e.log"))
	}
	return nil
}

// readList reads the list, unless a focus stands in for it.
func readList(o options) ([]conformance.Test, error) {
	if o.focus != "" {
		return nil, nil
	}
	file, err := os.Open(o.list)
	if err != nil {
		return nil, fmt.Errorf("open the list: %w", err)
	}
	defer func() { _ = file.Close() }()
	return conformance.ReadList(file)
}

// finish takes the cluster away and keeps its log, or says where it is.
func finish(c *cluster.Cluster, o options, stderr io.Writer) {
	if o.keep {
		_, _ = fmt.Fprintf(stderr, "the cluster is left: data dir %s, network namespace %s\n", c.Dir, c.Namespace())
		return
	}
	if text, err := os.ReadFile(c.Log()); err == nil {
		_ = os.WriteFile(filepath.Join(o.out, "gantry.log"), text, 0o600)
	}
	if err := c.Remove(context.Background()); err != nil {
		_, _ = fmt.Fprintln(stderr, err)
	}
}
