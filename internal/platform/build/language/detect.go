package language

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
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

// Plan is what a source is and how to build it.
type Plan struct {
	Kind        string            // one of the constants, never Procfile
	Found       string            // by what, for people: "go.mod and Procfile"
	Why         string            // a sentence for people
	Processes   map[string]string // what a Procfile declares, by name
	Main        string            // of Go: the folder of the program; "." is that of the source
	Start       string            // of Node and Python: the command of the web process; "" where files are served
	Folder      string            // of the files of a static site
	Dockerfile  string            // generated; "" takes the source's or another builder
	NeedsServer bool              // the Dockerfile copies the file server from "gantry-static"
}

// ErrNothing is returned for a source that says nothing about itself.
var ErrNothing = errors.New("nothing that could be deployed is here")

// candidate is a file that tells what a source is.
type candidate struct{ name, kind string }

// candidates are in the order in which Detect looks.
func candidates() []candidate {
	return []candidate{
		{"Dockerfile", Dockerfile}, {"go.mod", Go}, {"package.json", Node}, {"requirements.txt", Python}, {"pyproject.toml", Python},
		{"index.html", Static}, {"dist/index.html", Static}, {"public/index.html", Static},
	}
}

// Detect looks at the files of a source tree. The first that is there decides: Dockerfile, go.mod, package.json, requirements.txt,
// pyproject.toml, index.html. A Procfile beside a language names its processes; a Dockerfile goes before it.
func Detect(tree fs.FS, opts Options) (Plan, error) {
	d := detector{tree: tree, opts: opts}
	kind, found := opts.Kind, "build.kind"
	if kind == "" || kind == Procfile {
		var err error
		if kind, found, err = d.find(kind == Procfile); err != nil {
			return Plan{}, err
		}
	}
	var processes map[string]string
	if kind != Dockerfile && d.has("Procfile") {
		text, err := d.read("Procfile")
		if err == nil {
			processes, err = ParseProcfile(text)
		}
		if err != nil {
			return Plan{}, err
		}
	}
	d.web = processes["web"]
	plan, err := d.plan(kind)
	if err != nil {
		return Plan{}, err
	}
	plan.Kind, plan.Found, plan.Processes = cmp.Or(plan.Kind, kind), found, processes
	article := "a "
	if strings.HasPrefix(found, "index") {
		article = "an "
	}
	plan.Why = "there is " + article + found + plan.Why
	if len(processes) > 0 {
		plan.Found += " and Procfile"
		plan.Why += ", and a Procfile"
	}
	return plan, nil
}

type detector struct {
	tree fs.FS
	opts Options
	web  string // the Procfile's web process
}

func (d detector) has(name string) bool {
	info, err := fs.Stat(d.tree, path.Clean(name))
	return err == nil && info.Mode().IsRegular()
}

// find says what kind the source is, and by which file. With language a Dockerfile does not count.
func (d detector) find(language bool) (kind, found string, err error) {
	if file := d.opts.Dockerfile; file != "" && !language {
		return Dockerfile, file, nil
	}
	var names []string
	for _, c := range candidates() {
		if language && c.kind == Dockerfile {
			continue
		}
		if d.has(c.name) {
			return c.kind, c.name, nil
		}
		names = append(names, c.name)
		if c.kind == Dockerfile {
			names = append(names, "Procfile")
		}
	}
	switch {
	case mainOf(d.tree):
		return Go, "program of a Go module further up", nil
	case d.has("Procfile"):
		return "", "", errors.New("there is a Procfile, but no go.mod, package.json, requirements.txt or pyproject.toml that tells its language; write a Dockerfile")
	case d.has("dockerfile") || d.has("Containerfile"):
		return "", "", fmt.Errorf("%w: a Dockerfile is called Dockerfile; name another in gantry.yaml: build: {dockerfile: Containerfile}", ErrNothing)
	}
	return "", "", fmt.Errorf("%w: looked for %s", ErrNothing, strings.Join(names, ", "))
}

func (d detector) plan(kind string) (Plan, error) {
	switch kind {
	case Dockerfile:
		file := cmp.Or(d.opts.Dockerfile, "Dockerfile")
		if !fs.ValidPath(path.Clean(file)) || !d.has(file) {
			return Plan{}, fmt.Errorf("there is no %s in the source", file)
		}
		return Plan{}, nil
	case Go:
		plan, err := d.golang()
		if plan.Main == "." && d.has("go.mod") {
			plan.Why = " and a program in its folder"
		} else if plan.Main != "." {
			plan.Why = " and one program, " + plan.Main
		}
		return plan, err
	case Static:
		return Plan{Folder: cmp.Or(d.site(), "."), Why: ": static files"}, nil
	case Node:
		return d.node()
	case Python:
		return d.python()
	}
	return Plan{}, fmt.Errorf("%q is no way to build: want %s", kind, strings.Join([]string{Dockerfile, Go, Static, Node, Python, Procfile}, ", "))
}

// siteFolders are where builds of pages put their result.
func siteFolders() []string { return []string{"dist", "build", "out", "public", "site"} }

// site finds the folder of a static site's files; "" is none. Beside a package.json they lie in a folder.
func (d detector) site() string {
	if !d.has("package.json") && d.has("index.html") {
		return "."
	}
	for _, folder := range siteFolders() {
		if d.has(path.Join(folder, "index.html")) {
			return folder
		}
	}
	return ""
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

// base is the image that a language's images begin with.
func (d detector) base(kind, otherwise string) string {
	if image := d.opts.Bases[kind]; image != "" {
		return image
	}
	return otherwise
}

// command is what an image runs by default. The shell is replaced by what can be: signals reach the program itself.
func command(start string) string {
	first, _, _ := strings.Cut(start, " ")
	if !strings.ContainsAny(start, "&|;") && !strings.Contains(first, "=") {
		start = "exec " + start
	}
	return fmt.Sprintf("CMD [\"/bin/sh\", \"-c\", %s]\n", quote(start))
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
