// Command sbom lists what a built gantry is made of, as a CycloneDX 1.6 document.
//
//	sbom VERSION GANTRY [DIR] > FILE
//
// It reads the modules that Go's linker notes in GANTRY and in each program of DIR, which are those that it embeds, so it works for
// programs of other machines too. Without DIR the program embeds none. The same programs give the same bytes.
package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/klauspost/compress/zstd"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

// document is the part of CycloneDX 1.6 that is used (https://cyclonedx.org/docs/1.6/json).
type document struct {
	Format      string      `json:"bomFormat"`
	SpecVersion string      `json:"specVersion"`
	Version     int         `json:"version"`
	Metadata    metadata    `json:"metadata"`
	Components  []component `json:"components"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type       string      `json:"type"`
	Name       string      `json:"name"`
	Version    string      `json:"version,omitempty"`
	PURL       string      `json:"purl,omitempty"`
	Components []component `json:"components,omitempty"`
}

func run(args []string, out io.Writer) error {
	if len(args) < 2 || len(args) > 3 {
		return errors.New("usage: sbom VERSION GANTRY [DIR]")
	}
	info, err := buildinfo.ReadFile(args[1])
	if err != nil {
		return fmt.Errorf("read %s: %w", args[1], err)
	}
	doc := document{Format: "CycloneDX", SpecVersion: "1.6", Version: 1,
		Metadata: metadata{component{Type: "application", Name: "gantry", Version: args[0]}}, Components: modulesOf(info)}
	if len(args) == 3 {
		embedded, err := programsIn(args[2], args[0])
		if err != nil {
			return err
		}
		doc.Components = append(doc.Components, embedded...)
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(doc)
}

// programsIn lists the compressed programs of a folder, in the order of its index. Own ones have the version of gantry.
func programsIn(dir, version string) ([]component, error) {
	index, err := os.ReadFile(filepath.Join(dir, "INDEX"))
	if err != nil {
		return nil, fmt.Errorf("read what is embedded: %w", err)
	}
	var out []component
	for line := range strings.Lines(string(index)) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			return nil, fmt.Errorf("%s: %q is not NAME SUM SIZE VERSION", dir, line)
		}
		one := component{Type: "application", Name: fields[0], Version: fields[3]}
		if one.Version == "(devel)" {
			one.Version = version
		}
		info, err := embeddedInfo(filepath.Join(dir, one.Name+".zst"))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", one.Name, err)
		}
		one.Components = modulesOf(info)
		if one.Name == "runc" { // the one that links C code: build-programs.sh
			one.Components = append(one.Components, component{Type: "library", Name: "libseccomp"}, component{Type: "library", Name: "glibc"})
		}
		out = append(out, one)
	}
	return out, nil
}

func embeddedInfo(path string) (*buildinfo.BuildInfo, error) {
	packed, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		return nil, err
	}
	defer decoder.Close()
	program, err := decoder.DecodeAll(packed, nil)
	if err != nil {
		return nil, err
	}
	return buildinfo.Read(bytes.NewReader(program))
}

// modulesOf lists the Go runtime and the modules that were linked in.
func modulesOf(info *buildinfo.BuildInfo) []component {
	version := strings.TrimPrefix(info.GoVersion, "go")
	out := []component{{Type: "library", Name: "std", Version: version, PURL: "pkg:golang/std@" + version}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		if !isFolder(m) {
			out = append(out, component{Type: "library", Name: m.Path, Version: m.Version, PURL: "pkg:golang/" + m.Path + "@" + m.Version})
		}
	}
	return out
}

// isFolder is true for modules of this repository, which have no version of their own.
func isFolder(m *debug.Module) bool { return strings.HasPrefix(m.Path, ".") }
