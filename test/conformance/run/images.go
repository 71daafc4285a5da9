//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"gantry.dev/gantry/test/conformance"
	"gantry.dev/gantry/test/conformance/cluster"
	"gantry.dev/gantry/test/upstream"
)

// upstreamModule pins the control plane that Gantry is measured beside, of which a test runs etcd.
const upstreamModule = "upstream/programs"

// loadImages gives the node what pods of the suite run.
func loadImages(ctx context.Context, c *cluster.Cluster, o options, stderr io.Writer) error {
	programs, err := upstream.Build(ctx, upstream.BuildOptions{
		Module: o.module, Cache: o.cache, Programs: conformance.SuiteImages(), Log: stderr,
	})
	if err != nil {
		return err
	}
	etcd, err := upstream.Build(ctx, upstream.BuildOptions{
		Module: upstreamModule, Cache: o.etcdCache, Programs: conformance.Etcd(), Log: stderr,
	})
	if err != nil {
		return err
	}
	tools := filepath.Join(programs, "standin")
	if _, err := goTool(ctx, ".", "build", "-trimpath", "-ldflags=-s -w", "-o", tools, "./conformance/standin"); err != nil {
		return err
	}
	source, err := goTool(ctx, o.module, "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	if err != nil {
		return err
	}
	return c.LoadSuiteImages(ctx, cluster.SuiteFiles{
		Programs: programs, Etcd: filepath.Join(etcd, "etcd"), Tools: tools, Source: filepath.Join(source, "test", "images"),
	})
}

// goTool runs a command of Go's in a folder, as the other programs are built, and returns what it prints.
func goTool(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, cmp.Or(os.Getenv("GO"), "go"), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", args[0], err, said.String())
	}
	return strings.TrimSpace(string(out)), nil
}
