//go:build linux

package worker

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/mod/sumdb/dirhash"

	"gantry.dev/gantry/internal/platform/build/job"
)

// goVersion is the toolchain that is fetched where the machine has none; a module that wants a newer
// one has the go command fetch and check that.
const goVersion = "go1.26.8"

// toolchainSums are the checksums of the golang.org/toolchain modules of goVersion, as
// sum.golang.org has them.
func toolchainSums() map[string]string {
	return map[string]string{
		"amd64": "h1:ZOmGe1OnfREDMIdb1Qi4G9JSuDPBLGExZMQ4nis1RXM=",
		"arm64": "h1:sYL/O6MqS68ML0kjsQ36WoYIpJqkw60TxizWUYUKQMc=",
	}
}

const (
	defaultProxy    = "https://proxy.golang.org"
	maxToolchain    = 256 << 20 // compressed
	maxUnpacked     = 1 << 30
	progressPercent = 10
)

// toolchain returns the root of a Go installation: the machine's, or one that is fetched once.
func (e *engine) toolchain(ctx context.Context, out *reporter) (string, error) {
	for _, candidate := range []string{e.setup.Go, "go", "/usr/local/go/bin/go", "/usr/lib/go/bin/go"} {
		if candidate == "" {
			continue
		}
		if root, ok := goroot(candidate); ok {
			return root, nil
		}
	}
	target := filepath.Join(e.setup.Dir, "go", goVersion)
	if _, err := os.Stat(filepath.Join(target, "bin", "go")); err == nil {
		return target, nil
	}
	if err := e.fetchToolchain(ctx, target, out); err != nil {
		return "", fmt.Errorf("there is no Go on this machine, and fetching it: %w", err)
	}
	return target, nil
}

// goroot is the root of the installation that a go command belongs to.
func goroot(command string) (string, bool) {
	found, err := exec.LookPath(command)
	if err != nil {
		return "", false
	}
	if found, err = filepath.EvalSymlinks(found); err != nil {
		return "", false
	}
	root := filepath.Dir(filepath.Dir(found))
	info, err := os.Stat(filepath.Join(root, "src", "runtime"))
	return root, err == nil && info.IsDir()
}

// fetchToolchain loads the toolchain's module, checks it and unpacks it in one step to target.
func (e *engine) fetchToolchain(ctx context.Context, target string, out *reporter) error {
	sum := toolchainSums()[runtime.GOARCH]
	if sum == "" {
		return fmt.Errorf("no toolchain is known for %s", runtime.GOARCH)
	}
	version := "v0.0.1-" + goVersion + ".linux-" + runtime.GOARCH
	archive := filepath.Join(e.setup.Dir, "tmp", version+".zip")
	defer os.Remove(archive)
	if err := download(ctx, proxy(os.Getenv("GOPROXY"))+"/golang.org/toolchain/@v/"+version+".zip", archive, out); err != nil {
		return err
	}
	got, err := dirhash.HashZip(archive, dirhash.Hash1)
	if err != nil {
		return fmt.Errorf("checking the toolchain: %w", err)
	}
	if got != sum {
		return fmt.Errorf("the toolchain has checksum %s, want %s", got, sum)
	}
	temp, err := os.MkdirTemp(filepath.Join(e.setup.Dir, "tmp"), "toolchain")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	if err := unzip(archive, temp, "golang.org/toolchain@"+version+"/"); err != nil {
		return err
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return os.Rename(temp, target)
}

// proxy is the first module proxy of a list in GOPROXY's form.
func proxy(list string) string {
	for _, url := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '|' }) {
		if strings.HasPrefix(url, "http") {
			return strings.TrimSuffix(url, "/")
		}
	}
	return defaultProxy
}

func download(ctx context.Context, url, target string, out *reporter) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, response.Status)
	}
	file, err := os.Create(target)
	if err != nil {
		return err
	}
	defer file.Close()
	counted := &counter{total: response.ContentLength, say: func(percent int64) {
		out.say(job.Event{Type: job.Step, Text: fmt.Sprintf("fetch %s %d %%", goVersion, percent)})
	}}
	written, err := io.Copy(io.MultiWriter(file, counted), io.LimitReader(response.Body, maxToolchain+1))
	if err != nil {
		return err
	}
	if written > maxToolchain {
		return errors.New("the toolchain is larger than any known")
	}
	return file.Close()
}

// counter tells how much of a download has come.
type counter struct {
	total, done, told int64
	say               func(percent int64)
}

func (c *counter) Write(data []byte) (int, error) {
	c.done += int64(len(data))
	if c.total > 0 {
		if percent := c.done * 100 / c.total; percent >= c.told+progressPercent {
			c.told = percent
			c.say(percent)
		}
	}
	return len(data), nil
}

// unzip writes the files of a checked archive below dir, without their common prefix.
func unzip(archive, dir, prefix string) error {
	reader, err := zip.OpenReader(archive)
	if err != nil {
		return err
	}
	defer reader.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	var total uint64
	for _, file := range reader.File {
		name, ok := strings.CutPrefix(file.Name, prefix)
		if !ok || !fs.ValidPath(name) {
			return fmt.Errorf("the toolchain holds %q", file.Name)
		}
		if total += file.UncompressedSize64; total > maxUnpacked {
			return errors.New("the toolchain is larger than any known")
		}
		if err := unzipOne(root, name, file); err != nil {
			return err
		}
	}
	return nil
}

func unzipOne(root *os.Root, name string, file *zip.File) error {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	// A module's archive carries no modes (https://go.dev/ref/mod#zip-files).
	mode := fs.FileMode(0o644)
	if strings.HasPrefix(name, "bin/") || strings.HasPrefix(name, "pkg/tool/") {
		mode = 0o755
	}
	from, err := file.Open()
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, io.LimitReader(from, maxUnpacked)); err != nil {
		return errors.Join(err, to.Close())
	}
	return to.Close()
}
