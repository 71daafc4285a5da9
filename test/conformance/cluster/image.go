//go:build linux

package cluster

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Busybox is the image that LoadBusybox gives the node.
const Busybox = "busybox:conformance"

// image is what the node gets in place of one from a registry: this machine's busybox, and maybe
// more files.
type image struct {
	names      []string
	files      []file
	tools      string // the program of package standin; without, all is busybox's
	entrypoint []string
	cmd        []string
	user       string
	pulled     bool // by a test, also when the node has it
}

// file is a file of an image and where it comes from on this machine.
type file struct {
	path, source string
	text         string // what is in it, instead of source
	mode         int64  // default 0644
	also         string // a symbolic link to it beside it
}

// LoadBusybox gives the node an image with this machine's static busybox, so that pods with a
// shell can run without a registry.
func (c *Cluster) LoadBusybox(ctx context.Context) error {
	return c.load(ctx, image{names: []string{Busybox}, cmd: []string{"sh"}})
}

// SuiteFiles is what the stand-ins for upstream's test images are made of, besides busybox.
type SuiteFiles struct {
	Programs string // folder with upstream's agnhost, nnp and sample-apiserver
	Etcd     string // upstream's program
	Tools    string // the program of package standin
	Source   string // folder with the source of upstream's images
}

// LoadSuiteImages gives the node stand-ins for the images that upstream's conformance tests use, under
// their names in a registry on the machine: upstream's own programs, built from source, over busybox
// with the tools of package standin. nginx is agnhost's web server.
func (c *Cluster) LoadSuiteImages(ctx context.Context, registry *Registry, from SuiteFiles) error {
	for _, i := range suiteImages(registry.Address+"/", from) {
		i.tools = from.Tools
		for _, node := range append([]*Cluster{c}, c.workers...) {
			if err := node.load(ctx, i); err != nil {
				return err
			}
		}
		if !i.pulled {
			continue
		}
		if err := registry.push(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// LoadGatewayImages gives the node stand-ins for the images of the Gateway API's suite: the suite's own program behind
// Services, built from source, and one that does nothing in place of the DNS server that its tests of UDP ask.
func (c *Cluster) LoadGatewayImages(ctx context.Context, echo string) error {
	const registry = "registry.k8s.io/"
	for _, i := range []image{
		{names: []string{registry + "gateway-api/echo-basic:v1.5.1", registry + "gateway-api/echo-basic:v1.6.0-dev.3"},
			files: []file{{path: "echo-basic", source: echo, mode: 0o755}}, entrypoint: []string{"/echo-basic"}},
		{names: []string{registry + "coredns/coredns:v1.12.2"}, entrypoint: []string{"sh", "-c", "while sleep 3600; do :; done"}},
	} {
		if err := c.load(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

func suiteImages(core string, from SuiteFiles) []image {
	registry := core + testImages
	program := func(path, name string) file {
		return file{path: path, source: filepath.Join(from.Programs, name), mode: 0o755}
	}
	source := func(path, name string) file { return file{path: path, source: filepath.Join(from.Source, name)} }
	agnhost := program("agnhost", "agnhost")
	agnhost.also = "agnhost-2"
	setuid := program("bin/nnp", "nnp")
	setuid.mode = 0o4755
	html := func(image string) []file {
		return []file{agnhost, source("data.json", image+"/html/data.json"), source(image+".jpg", image+"/html/"+image+".jpg")}
	}
	server := []string{"/agnhost", "netexec", "--http-port=80", "--udp-port=-1"}
	web, files := []string{"/agnhost", "test-webserver"}, []file{agnhost}
	return []image{
		{
			names: []string{registry + "agnhost:2.63.0", registry + "agnhost:2.55"}, entrypoint: []string{"/agnhost"}, cmd: []string{"pause"},
			files: []file{agnhost, source("localhost.crt", "agnhost/porter/localhost.crt"), source("localhost.key", "agnhost/porter/localhost.key")},
		},
		{names: []string{registry + "busybox:1.37.0-1"}, cmd: []string{"sh"}},
		{names: []string{core + "pause:3.10.2", core + "pause:3.10.1"}, files: files, entrypoint: []string{"/agnhost", "pause"}},
		{names: []string{registry + "nginx:1.15-4", registry + "nginx:1.27-0"}, files: files, cmd: server},
		// The test of image volumes looks into this file of kitten's.
		{names: []string{registry + "kitten:1.8"}, files: append(html("kitten"), file{path: "etc/os-release", text: "NAME=\"Alpine Linux\"\n"}), entrypoint: web, pulled: true},
		{names: []string{registry + "nautilus:1.8"}, files: html("nautilus"), entrypoint: web},
		{names: []string{registry + "nonroot:1.5"}, cmd: []string{"sh", "-c", "id -u"}, user: "1234"},
		{names: []string{registry + "nonewprivs:1.4"}, files: []file{setuid}, cmd: []string{"nnp"}},
		{names: []string{registry + "ipc-utils:1.4", registry + "glibc-dns-testing:2.0.0", registry + "perl:5.26"}, cmd: []string{"sh"}},
		{names: []string{registry + "sample-apiserver:1.29.2"}, files: []file{program("sample-apiserver", "sample-apiserver")}, entrypoint: []string{"/sample-apiserver"}},
		{names: []string{core + "etcd:3.6.8-0"}, files: []file{{path: "usr/local/bin/etcd", source: from.Etcd, mode: 0o755}}, entrypoint: []string{"etcd"}},
	}
}

func (c *Cluster) load(ctx context.Context, i image) error {
	archive, err := os.CreateTemp("", "image-*.tar")
	if err != nil {
		return fmt.Errorf("cluster: make an archive: %w", err)
	}
	defer func() { _ = os.Remove(archive.Name()) }()
	if err := archive.Close(); err != nil {
		return fmt.Errorf("cluster: make an archive: %w", err)
	}
	if err := i.write(archive.Name()); err != nil {
		return err
	}
	return c.gantry(ctx, "image", "load", filepath.Clean(archive.Name()))
}

// build packs the image.
func (i image) build() (v1.Image, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("cluster: busybox-static must be installed: %w", err)
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("cluster: ask busybox what it has: %w", err)
	}
	content, err := i.layer(busybox, strings.Fields(string(applets)))
	if err != nil {
		return nil, fmt.Errorf("cluster: pack %s: %w", i.names[0], err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return nil, fmt.Errorf("cluster: pack %s: %w", i.names[0], err)
	}
	diff, err := layer.DiffID()
	if err != nil {
		return nil, fmt.Errorf("cluster: pack %s: %w", i.names[0], err)
	}
	packed, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, fmt.Errorf("cluster: pack %s: %w", i.names[0], err)
	}
	packed, err = mutate.ConfigFile(packed, &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diff}},
		Config: v1.Config{Entrypoint: i.entrypoint, Cmd: i.cmd, User: i.user, Env: []string{"PATH=/usr/local/bin:/bin"}, WorkingDir: "/"},
	})
	if err != nil {
		return nil, fmt.Errorf("cluster: pack %s: %w", i.names[0], err)
	}
	return packed, nil
}

// write writes an archive of the image.
func (i image) write(target string) error {
	packed, err := i.build()
	if err != nil {
		return err
	}
	tags := map[name.Tag]v1.Image{}
	for _, n := range i.names {
		tag, err := name.NewTag(n)
		if err != nil {
			return fmt.Errorf("cluster: name %s: %w", n, err)
		}
		tags[tag] = packed
	}
	if err := tarball.MultiWriteToFile(target, tags); err != nil {
		return fmt.Errorf("cluster: write %s: %w", i.names[0], err)
	}
	return nil
}

// accounts are the users that upstream's tests of groups expect.
const (
	users  = "root:x:0:0:root:/:/bin/sh\nuser-defined-in-image:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
	groups = "root:x:0:\ngroup-defined-in-image:x:50000:user-defined-in-image\nuser-defined-in-image:x:1000:\nnobody:x:65534:\n"
)

// tools are the programs that package standin has.
func tools() []string { return []string{"sh", "bash", "curl", "dig", "getent", "nc"} }

// layer is busybox with its commands, the tools, the image's files, and the folders that programs expect.
func (i image) layer(busybox []byte, applets []string) ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, dir := range []string{"bin/", "etc/", "tmp/", "proc/", "sys/", "dev/", "usr/", "usr/bin/", "usr/local/", "usr/local/bin/", "var/", "uploads/"} {
		mode := int64(0o755)
		if dir == "tmp/" || dir == "uploads/" {
			mode = 0o1777
		}
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: mode}); err != nil {
			return nil, err
		}
	}
	files := []file{{path: "etc/passwd", text: users}, {path: "etc/group", text: groups}, {path: "bin/busybox", text: string(busybox), mode: 0o755}}
	links := map[string]string{}
	for _, applet := range applets {
		links[applet] = "busybox"
	}
	if i.tools != "" {
		files = append(files, file{path: "bin/tools", source: i.tools, mode: 0o755})
		for _, tool := range tools() {
			links[tool] = "tools"
		}
	}
	delete(links, "busybox")
	for _, name := range slices.Sorted(maps.Keys(links)) {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: links[name], Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	for _, f := range append(files, i.files...) {
		if err := f.write(w); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return layer.Bytes(), nil
}

// write puts the file into an archive.
func (f file) write(w *tar.Writer) error {
	content := []byte(f.text)
	if f.source != "" {
		var err error
		if content, err = os.ReadFile(f.source); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: cmp.Or(f.mode, 0o644), Size: int64(len(content))}); err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		return err
	}
	if f.also == "" {
		return nil
	}
	link := tar.Header{Typeflag: tar.TypeSymlink, Name: path.Join(path.Dir(f.path), f.also), Linkname: path.Base(f.path), Mode: 0o777}
	return w.WriteHeader(&link)
}
