package language

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// The ways to build. They are those of api/v1alpha1.
const (
	Dockerfile = "dockerfile"
	Go         = "go"
	Static     = "static"
	Node       = "node"
	Python     = "python"
	Procfile   = "procfile"
)

// Default base images.
const (
	nodeImage   = "docker.io/library/node:22-slim"
	pythonImage = "docker.io/library/python:3.13-slim"
)

// maxFile bounds files that are read to find out.
const maxFile = 1 << 20

// Options tell Detect what is known already.
type Options struct {
	Kind       string            // "" finds out
	Dockerfile string            // its path; "" is "Dockerfile"
	Bases      map[string]string // base images by Node and Python instead of the defaults
	Args       map[string]string // become the environment of a generated Dockerfile's steps
	Secrets    []string          // are mounted as environment in a generated Dockerfile's steps
}

// Plan is how to build.
type Plan struct {
	Kind        string
	Found       string            // by what, for people: "go.mod"
	Processes   map[string]string // what a Procfile or package.json declares, by name
	Folder      string            // of the files of a static site
	Dockerfile  string            // generated; "" takes the source's or another builder
	NeedsServer bool              // the Dockerfile copies the file server from "gantry-static"
}

// ErrUnknown is returned for a source that says nothing about itself.
var ErrUnknown = errors.New("cannot tell how to build this")

// Detect looks at the files of a source tree. The first that is there decides: Dockerfile,
// Procfile beside a language, go.mod, package.json, requirements.txt or pyproject.toml, index.html.
func Detect(tree fs.FS, opts Options) (Plan, error) {
	d := detector{tree: tree, opts: opts}
	processes, err := d.procfile()
	if err != nil {
		return Plan{}, err
	}
	kind, found := opts.Kind, "build.kind"
	if kind == "" || kind == Procfile {
		if kind, found = d.find(kind == Procfile); kind == "" {
			return Plan{}, fmt.Errorf("%w: there is no Dockerfile, go.mod, package.json, requirements.txt, pyproject.toml or index.html in it", ErrUnknown)
		}
	}
	plan, err := d.plan(kind)
	if err != nil {
		return Plan{}, err
	}
	plan.Kind, plan.Found = kind, found
	if len(processes) > 0 {
		plan.Processes = processes
		if opts.Kind == "" && found != "Dockerfile" {
			plan.Found += " and Procfile"
		}
	}
	return plan, nil
}

type detector struct {
	tree fs.FS
	opts Options
}

func (d detector) has(name string) bool {
	info, err := fs.Stat(d.tree, name)
	return err == nil && info.Mode().IsRegular()
}

// find says what kind the source is, and by which file.
func (d detector) find(language bool) (kind, found string) {
	file := d.opts.Dockerfile
	if file == "" {
		file = "Dockerfile"
	}
	for _, candidate := range []struct{ name, kind string }{
		{file, Dockerfile}, {"go.mod", Go}, {"package.json", Node}, {"requirements.txt", Python}, {"pyproject.toml", Python},
		{"index.html", Static}, {"dist/index.html", Static}, {"public/index.html", Static},
	} {
		if d.has(candidate.name) && (!language || candidate.kind != Dockerfile) {
			return candidate.kind, candidate.name
		}
	}
	return "", ""
}

func (d detector) plan(kind string) (Plan, error) {
	switch kind {
	case Dockerfile:
		file := d.opts.Dockerfile
		if file == "" {
			file = "Dockerfile"
		}
		if !fs.ValidPath(path.Clean(file)) || !d.has(path.Clean(file)) {
			return Plan{}, fmt.Errorf("there is no %s in the source", file)
		}
		return Plan{}, nil
	case Go:
		if !d.has("go.mod") {
			return Plan{}, errors.New("there is no go.mod in the source")
		}
		return Plan{}, nil
	case Static:
		return d.static()
	case Node:
		return d.node()
	case Python:
		return d.python()
	}
	return Plan{}, fmt.Errorf("%q is no way to build: want %s", kind, strings.Join([]string{Dockerfile, Go, Static, Node, Python, Procfile}, ", "))
}

// static finds the folder of the files.
func (d detector) static() (Plan, error) {
	for _, folder := range []string{".", "dist", "build", "public", "out", "site"} {
		if d.has(path.Join(folder, "index.html")) {
			return Plan{Folder: folder}, nil
		}
	}
	return Plan{Folder: "."}, nil
}

func (d detector) read(name string) ([]byte, error) {
	file, err := d.tree.Open(name)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil && info.Size() > maxFile {
		err = fmt.Errorf("it has %d bytes, want at most %d", info.Size(), maxFile)
	}
	var data bytes.Buffer
	if err == nil {
		_, err = data.ReadFrom(file)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return data.Bytes(), nil
}

var procfileLine = regexp.MustCompile(`^([A-Za-z0-9_-]+):\s*(.+)$`)

// procfile reads the processes of a Procfile, if there is one.
func (d detector) procfile() (map[string]string, error) {
	if !d.has("Procfile") {
		return nil, nil
	}
	data, err := d.read("Procfile")
	if err != nil {
		return nil, err
	}
	processes := map[string]string{}
	scanner := bufio.NewScanner(bytes.NewReader(data))
	for number := 1; scanner.Scan(); number++ {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		parts := procfileLine.FindStringSubmatch(line)
		if parts == nil {
			return nil, fmt.Errorf("line %d of the Procfile: %q is not NAME: COMMAND", number, line)
		}
		if _, twice := processes[parts[1]]; twice {
			return nil, fmt.Errorf("line %d of the Procfile: %s is there twice", number, parts[1])
		}
		processes[parts[1]] = parts[2]
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("reading Procfile: %w", err)
	}
	return processes, nil
}

// base is the image that a language's images begin with.
func (d detector) base(kind, otherwise string) string {
	if image := d.opts.Bases[kind]; image != "" {
		return image
	}
	return otherwise
}

// run is a RUN line with the arguments and secrets of the build in its environment.
func (d detector) run(mounts []string, command string) string {
	var line strings.Builder
	line.WriteString("RUN ")
	for _, mount := range mounts {
		line.WriteString("--mount=" + mount + " ")
	}
	for _, name := range d.opts.Secrets {
		fmt.Fprintf(&line, "--mount=type=secret,id=%s,env=%s ", name, name)
	}
	line.WriteString(command + "\n")
	return line.String()
}

// args declares the build's arguments, ordered, so that steps see them.
func (d detector) args() string {
	names := make([]string, 0, len(d.opts.Args))
	for name := range d.opts.Args {
		names = append(names, name)
	}
	slices.Sort(names)
	var lines strings.Builder
	for _, name := range names {
		fmt.Fprintf(&lines, "ARG %s\n", name)
	}
	return lines.String()
}
