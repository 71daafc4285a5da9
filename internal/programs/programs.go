package programs

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// The names of the programs.
const (
	Runc     = "runc"
	Shim     = "gantry-shim"
	Edge     = "gantry-edge"
	RuncShim = "containerd-shim-runc-v2"
	Build    = "gantry-build"
	Static   = "gantry-static"
)

// index is the file that lists the programs, written by the pack command: one line for
// each with its name, the SHA-256 of the unpacked file, its size in bytes and its version.
const index = "INDEX"

// ErrNotBuiltIn says that a binary was built without a program that is needed.
var ErrNotBuiltIn = errors.New("program is not built in: run 'make build', which builds and embeds it")

// Paths are the unpacked programs by name.
type Paths map[string]string

// Path returns where a program is, or an ErrNotBuiltIn.
func (p Paths) Path(name string) (string, error) {
	if found, ok := p[name]; ok {
		return found, nil
	}
	return "", fmt.Errorf("%s: %w", name, ErrNotBuiltIn)
}

// program is one line of the index.
type program struct {
	name, sum, version string
	size               int64
}

// Unpack writes the embedded programs into a folder below dir that is named after their
// contents and returns their paths. What is there already is kept, so a second call costs
// next to nothing; a folder that is there is complete, because it appears in one step.
// Older folders stay: running shims were started from them.
func Unpack(dir string) (Paths, error) { return unpack(embedded, folder, dir) }

func unpack(files fs.FS, from, dir string) (Paths, error) {
	listing, programs, err := readIndex(files, from)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(listing)
	target := filepath.Join(dir, hex.EncodeToString(sum[:8]))
	paths := Paths{}
	for _, p := range programs {
		paths[p.name] = filepath.Join(target, p.name)
	}
	if complete(target, programs) {
		return paths, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("unpack programs: %w", err)
	}
	temp, err := os.MkdirTemp(dir, ".unpack-")
	if err != nil {
		return nil, fmt.Errorf("unpack programs: %w", err)
	}
	defer os.RemoveAll(temp)
	if err := os.Chmod(temp, 0o755); err != nil {
		return nil, fmt.Errorf("unpack programs: %w", err)
	}
	for _, p := range programs {
		if err := unpackOne(files, path.Join(from, p.name+".zst"), filepath.Join(temp, p.name), p); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", p.name, err)
		}
	}
	if err := publish(temp, target, programs); err != nil {
		return nil, fmt.Errorf("unpack programs: %w", err)
	}
	return paths, nil
}

// publish moves the unpacked folder to its name for good and makes that durable.
func publish(temp, target string, programs []program) error {
	if err := syncDir(temp); err != nil {
		return err
	}
	if err := os.Rename(temp, target); err != nil {
		if complete(target, programs) { // another process was quicker
			return nil
		}
		// A damaged folder of that name, by hand or by a full disk.
		if err := os.RemoveAll(target); err != nil {
			return err
		}
		if err := os.Rename(temp, target); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(target))
}

// complete reports whether all programs are in dir with the right size and executable.
func complete(dir string, programs []program) bool {
	for _, p := range programs {
		info, err := os.Stat(filepath.Join(dir, p.name))
		if err != nil || info.Size() != p.size || info.Mode().Perm()&0o111 == 0 {
			return false
		}
	}
	return len(programs) > 0
}

// unpackOne decompresses one program into target and checks it.
func unpackOne(files fs.FS, from, target string, p program) error {
	packed, err := files.Open(from)
	if err != nil {
		return err
	}
	defer packed.Close()
	decoder, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer decoder.Close()
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	defer out.Close()
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, hash), decoder); err != nil {
		return err
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != p.sum {
		return fmt.Errorf("its contents have SHA-256 %s, want %s", got, p.sum)
	}
	if err := out.Sync(); err != nil {
		return err
	}
	return out.Close()
}

func syncDir(dir string) error {
	opened, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer opened.Close()
	return opened.Sync()
}

// readIndex returns the index as it is and parsed. Without one there are no programs.
func readIndex(files fs.FS, from string) ([]byte, []program, error) {
	data, err := fs.ReadFile(files, path.Join(from, index))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read list of programs: %w", err)
	}
	var programs []program
	for line := range bytes.Lines(data) {
		fields := strings.Fields(string(line))
		if len(fields) != 4 {
			return nil, nil, fmt.Errorf("list of programs: line %q has %d fields, want 4", line, len(fields))
		}
		size, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			return nil, nil, fmt.Errorf("list of programs: size of %s: %w", fields[0], err)
		}
		programs = append(programs, program{name: fields[0], sum: fields[1], size: size, version: fields[3]})
	}
	return data, programs, nil
}

// Version is one component and its version.
type Version struct{ Name, Version string }

// unversioned is Go's version of a program that is no release of its own: it is named by its content.
const unversioned = "(devel)"

// Versions lists the components that this binary is made of: libraries from its build
// information, then the embedded programs. A component that is not in it is left out.
func Versions() []Version {
	var versions []Version
	if info, ok := debug.ReadBuildInfo(); ok {
		versions = libraryVersions(info)
	}
	_, programs, err := readIndex(embedded, folder)
	if err != nil {
		return versions
	}
	for _, p := range programs {
		version := p.version
		if version == unversioned {
			version = "sha256:" + p.sum[:12]
		}
		versions = append(versions, Version{p.name, version})
	}
	return versions
}

// libraryVersions picks the components worth naming from a program's build information.
func libraryVersions(info *debug.BuildInfo) []Version {
	names := []struct{ module, name string }{
		{"k8s.io/kubernetes", "kubernetes"},
		{"go.etcd.io/etcd/server/v3", "etcd"},
		{"github.com/containerd/containerd/v2", "containerd"},
	}
	var versions []Version
	for _, n := range names {
		for _, module := range info.Deps {
			if module.Path == n.module {
				versions = append(versions, Version{n.name, module.Version})
			}
		}
	}
	return append(versions, Version{"go", info.GoVersion})
}
