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
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"gantry.dev/gantry/internal/durable"
)

// The names of the programs.
const (
	Runc     = "runc"
	Shim     = "gantry-shim"
	Edge     = "gantry-edge"
	RuncShim = "containerd-shim-runc-v2"
	Build    = "gantry-build"
	Static   = "gantry-static"
	Probe    = "gantry-probe"
)

// index is the file that lists the programs, written by the pack command: one line for
// each with its name, the SHA-256 of the unpacked file, its size in bytes and its version.
const index = "INDEX"

// ErrNotBuiltIn says that a binary was built without a program that is needed.
var ErrNotBuiltIn = errors.New("program is not built in: run 'make build', which builds and embeds it")

// program is one line of the index.
type program struct {
	name, sum, version string
	size               int64
}

// Set is the embedded programs, and the folder that they are unpacked into. Its methods may be called at the same time.
type Set struct {
	files    fs.FS
	from     string
	folder   string // named after the contents of all programs
	programs []program

	mu sync.Mutex // held while programs are unpacked
}

// Open reads the list of embedded programs; they go into a folder below dir that is named after their contents. Older folders
// stay: running shims were started from them. Nothing is written before Unpack.
func Open(dir string) (*Set, error) { return open(embedded, folder, dir) }

func open(files fs.FS, from, dir string) (*Set, error) {
	listing, programs, err := readIndex(files, from)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(listing)
	return &Set{files: files, from: from, folder: filepath.Join(dir, hex.EncodeToString(sum[:8])), programs: programs}, nil
}

// Path returns where a program is once it is unpacked, or an ErrNotBuiltIn.
func (s *Set) Path(name string) (string, error) {
	for _, p := range s.programs {
		if p.name == name {
			return filepath.Join(s.folder, name), nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, ErrNotBuiltIn)
}

// Unpack writes programs where Path says. Each appears in one step, so one that is there is whole, and costs next to nothing.
func (s *Set) Unpack(names ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	written := false
	for _, p := range s.programs {
		if !slices.Contains(names, p.name) || s.has(p) {
			continue
		}
		if err := os.MkdirAll(s.folder, 0o755); err != nil {
			return fmt.Errorf("unpack %s: %w", p.name, err)
		}
		if err := unpackOne(s.files, path.Join(s.from, p.name+".zst"), filepath.Join(s.folder, p.name), p); err != nil {
			return fmt.Errorf("unpack %s: %w", p.name, err)
		}
		written = true
	}
	if !written {
		return nil
	}
	if err := errors.Join(durable.SyncDir(s.folder), durable.SyncDir(filepath.Dir(s.folder))); err != nil {
		return fmt.Errorf("unpack programs: %w", err)
	}
	return nil
}

// has reports whether a program is there with the right size and executable.
func (s *Set) has(p program) bool {
	info, err := os.Stat(filepath.Join(s.folder, p.name))
	return err == nil && info.Size() == p.size && info.Mode().Perm()&0o111 != 0
}

// unpackOne decompresses one program beside target, checks it, and moves it there.
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
	out, err := os.CreateTemp(filepath.Dir(target), ".unpack-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // nothing, once it was moved
	defer out.Close()
	hash := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, hash), decoder); err != nil {
		return err
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != p.sum {
		return fmt.Errorf("its contents have SHA-256 %s, want %s", got, p.sum)
	}
	if err := errors.Join(out.Chmod(0o755), out.Sync(), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), target)
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
