//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
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

// repoList is the file in the folder of the report that names the registry to the suite.
const repoList = "repo-list.yaml"

// loadImages gives the node what pods of the suite run, and starts the registry that has it too.
func loadImages(ctx context.Context, c *cluster.Cluster, o options, stderr io.Writer) (*cluster.Registry, error) {
	files, err := suiteFiles(ctx, o, stderr)
	if err != nil {
		return nil, err
	}
	registry, err := c.StartRegistry()
	if err != nil {
		return nil, err
	}
	err = c.LoadSuiteImages(ctx, registry, files)
	if err == nil {
		err = os.MkdirAll(o.out, 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(o.out, repoList), []byte(registry.RepoList()), 0o600)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("load the suite's images: %w", err), registry.Close())
	}
	return registry, nil
}

// suiteFiles builds what the images are made of.
func suiteFiles(ctx context.Context, o options, stderr io.Writer) (cluster.SuiteFiles, error) {
	programs, err := upstream.Build(ctx, upstream.BuildOptions{
		Module: o.module, Cache: o.cache, Programs: conformance.SuiteImages(), Log: stderr,
	})
	if err != nil {
		return cluster.SuiteFiles{}, err
	}
	etcd, err := upstream.Build(ctx, upstream.BuildOptions{
		Module: upstreamModule, Cache: o.etcdCache, Programs: conformance.Etcd(), Log: stderr,
	})
	if err != nil {
		return cluster.SuiteFiles{}, err
	}
	tools := filepath.Join(programs, "standin")
	if _, err := goTool(ctx, ".", "build", "-trimpath", "-ldflags=-s -w", "-o", tools, "./conformance/standin"); err != nil {
		return cluster.SuiteFiles{}, err
	}
	source, err := goTool(ctx, o.module, "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	if err != nil {
		return cluster.SuiteFiles{}, err
	}
	return cluster.SuiteFiles{
		Programs: programs, Etcd: filepath.Join(etcd, "etcd"), Tools: tools, Source: filepath.Join(source, "test", "images"),
	}, nil
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
