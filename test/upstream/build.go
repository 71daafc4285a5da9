package upstream

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Version is the Kubernetes release that Build builds.
const Version = "v1.36.3"

// EtcdVersion is the etcd release that Build builds: the one kubeadm 1.36.3 installs.
const EtcdVersion = "v3.6.8"

// linkerFlags stamp the version as upstream's release does and leave out the debug tables.
func linkerFlags(version string) string {
	return "-s -w -X k8s.io/component-base/version.gitVersion=" + version
}

// Program is what Build builds.
type Program struct {
	Name    string // of the file
	Package string
	Test    bool // its test program, as "go test -c" makes it
}

// controlPlane is what Start starts.
func controlPlane() []Program {
	return []Program{
		{Name: "etcd", Package: "go.etcd.io/etcd/server/v3"},
		{Name: "kube-apiserver", Package: "k8s.io/kubernetes/cmd/kube-apiserver"},
		{Name: "kube-controller-manager", Package: "k8s.io/kubernetes/cmd/kube-controller-manager"},
		{Name: "kube-scheduler", Package: "k8s.io/kubernetes/cmd/kube-scheduler"},
	}
}

// BuildOptions says where Build works.
type BuildOptions struct {
	Module   string    // folder of the go.mod that pins the programs; required
	Cache    string    // folder that keeps what was built; required
	Programs []Program // default: the control plane, for Start
	Version  string    // what the programs say they are; default Version
	Go       string    // the go command; default $GO, else "go"
	Log      io.Writer // told what is built, since the first build takes minutes; default discards
}

// Build makes the programs unless Cache has them for the same module and flags. It returns the
// folder that holds them.
func Build(ctx context.Context, opts BuildOptions) (string, error) {
	if opts.Module == "" || opts.Cache == "" {
		return "", errors.New("upstream: Module and Cache are required")
	}
	if len(opts.Programs) == 0 {
		opts.Programs = controlPlane()
	}
	opts.Version = cmp.Or(opts.Version, Version)
	opts.Go = cmp.Or(opts.Go, os.Getenv("GO"), "go")
	opts.Log = cmp.Or[io.Writer](opts.Log, io.Discard)
	key, err := cacheKey(opts.Module, opts.Version)
	if err != nil {
		return "", err
	}
	dir, err := filepath.Abs(filepath.Join(opts.Cache, key))
	if err != nil {
		return "", fmt.Errorf("upstream: find the cache: %w", err)
	}
	for _, program := range opts.Programs {
		target := filepath.Join(dir, program.Name)
		if _, err := os.Stat(target); err == nil {
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("upstream: look for %s: %w", program.Name, err)
		}
		_, _ = fmt.Fprintf(opts.Log, "building upstream's %s; the first time takes minutes\n", program.Name)
		if err := buildOne(ctx, opts, target, program); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// buildOne builds to a name of its own first, so that target is always whole.
func buildOne(ctx context.Context, opts BuildOptions, target string, program Program) error {
	part := target + ".part"
	args := []string{"build"}
	if program.Test {
		args = []string{"test", "-c"}
	}
	args = append(args, "-trimpath", "-buildvcs=false", "-ldflags", linkerFlags(opts.Version), "-o", part, program.Package)
	cmd := exec.CommandContext(ctx, opts.Go, args...)
	cmd.Dir = opts.Module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("upstream: build %s: %w\n%s", program.Package, err, strings.TrimSpace(string(out)))
	}
	if err := os.Rename(part, target); err != nil {
		return fmt.Errorf("upstream: keep %s: %w", program.Package, err)
	}
	return nil
}

// cacheKey names the folder of what is built from a module: it changes with its pins and our flags.
func cacheKey(module, version string) (string, error) {
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", fmt.Errorf("upstream: read the pinned versions: %w", err)
		}
		_, _ = sum.Write(content)
	}
	_, _ = sum.Write([]byte(linkerFlags(version)))
	return version + "-" + hex.EncodeToString(sum.Sum(nil))[:12], nil
}
