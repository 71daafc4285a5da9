package appfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"gantry.dev/gantry/api/v1alpha1"
)

// FileName is the file that describes an application.
const FileName = "gantry.yaml"

// maxFile bounds gantry.yaml.
const maxFile = 1 << 20

// File is a gantry.yaml that was read.
type File struct {
	Name   string           // the application's; empty where the file says none
	Spec   v1alpha1.AppSpec // of the stage that was asked for
	Stages []string         // those that the file has
	Lines  map[string]int32 // of the keys of env that the spec has
}

// Load reads the gantry.yaml of a folder. The error is fs.ErrNotExist where there is none.
func Load(folder, stage string) (*File, error) {
	path := filepath.Join(folder, FileName)
	if wrong := misspelled(folder); wrong != "" {
		return nil, fmt.Errorf("%s is not read: the file is called %s", filepath.Join(folder, wrong), FileName)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the application's file: %w", err)
	}
	return Parse(path, text, stage)
}

// misspelled is a file that is meant to be gantry.yaml, where that is not there.
func misspelled(folder string) string {
	if _, err := os.Stat(filepath.Join(folder, FileName)); !errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	for _, name := range []string{"gantry.yml", "Gantry.yaml", ".gantry.yaml", ".gantry.yml"} {
		if _, err := os.Stat(filepath.Join(folder, name)); err == nil {
			return name
		}
	}
	return ""
}

// Parse reads a gantry.yaml. name is what messages call it; stage is one of its stages, or "" for none. An error is Problems
// where the file is wrong.
func Parse(name string, text []byte, stage string) (*File, error) {
	r := &reader{file: name}
	root, err := r.document(text)
	if err != nil {
		return nil, err
	}
	read := r.read(file(), root, "")
	if read == nil {
		return nil, r.problems.sorted()
	}
	stages := read.fields["stages"]
	delete(read.fields, "stages")
	base := r.lift(read)
	specs := map[string]*value{"": base}
	for _, s := range stages.names() {
		specs[s] = r.staged(base, r.lift(stages.fields[s]))
	}
	for _, s := range append([]string{""}, stages.names()...) {
		r.check(specs[s])
	}
	if err := r.problems.sorted(); err != nil {
		return nil, err
	}
	chosen, found := specs[stage]
	if !found {
		if len(stages.names()) == 0 {
			return nil, fmt.Errorf("%s has no stages, so no %q: add it under the key stages", name, stage)
		}
		return nil, fmt.Errorf("%s has no stage %q%s", name, stage, meant(stage, stages.names(), "there is "+strings.Join(stages.names(), ", ")))
	}
	out := &File{Name: base.str("name"), Stages: stages.names(), Lines: map[string]int32{}}
	for _, key := range chosen.at("env").names() {
		out.Lines[key] = chosen.at("env", key).line()
	}
	delete(chosen.fields, "name")
	if err := decode(chosen.plain(), &out.Spec); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return out, nil
}

// document parses the text into the one node it holds.
func (r *reader) document(text []byte) (*yaml.Node, error) {
	if len(text) > maxFile {
		return nil, Problems{{r.file, 1, 0, fmt.Sprintf("has %d bytes, more than %d", len(text), maxFile)}}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var doc, second yaml.Node
	err := decoder.Decode(&doc)
	if errors.Is(err, io.EOF) || (err == nil && len(doc.Content) == 1 && doc.Content[0].ShortTag() == "!!null") {
		return &yaml.Node{Kind: yaml.MappingNode, Line: 1, Column: 1}, nil // everything is found by itself
	}
	if err != nil {
		return nil, syntaxProblem(r.file, err)
	}
	if err := decoder.Decode(&second); err == nil {
		return nil, Problems{{r.file, second.Line, second.Column, "a second document begins here; a file describes one application"}}
	} else if !errors.Is(err, io.EOF) {
		return nil, syntaxProblem(r.file, err)
	}
	return doc.Content[0], nil
}

// syntaxProblem finds the line in what the YAML parser says.
func syntaxProblem(file string, err error) error {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	if found := regexp.MustCompile(`^line (\d+): (.*)`).FindStringSubmatch(message); found != nil {
		line, _ := strconv.Atoi(found[1])
		return Problems{{file, line, 0, found[2]}}
	}
	return Problems{{file, 1, 0, message}}
}

// lift moves the keys of the process web that stand at the top to where they belong.
func (r *reader) lift(v *value) *value {
	out := *v
	out.fields = map[string]*value{}
	web := &value{node: v.node, fields: map[string]*value{}}
	for name, field := range v.fields {
		if _, top := findKey(topProcessKeys(), name); !top {
			out.fields[name] = field
			continue
		}
		if twice := v.at("processes", v1alpha1.WebProcess, name); twice != nil {
			r.problem(field.key, "%s is said twice, here and in line %d", name, twice.line())
		}
		web.fields[name] = field
		web.key, web.node = field.key, field.node
	}
	if len(web.fields) > 0 {
		processes := &value{node: web.node, fields: map[string]*value{v1alpha1.WebProcess: web}}
		if old := out.fields["processes"]; old != nil {
			if written := old.fields[v1alpha1.WebProcess]; written != nil && written.short {
				written.short = false // a command alone, beside keys at the top
			}
			processes = merge(old, processes)
		}
		out.fields["processes"] = processes
	}
	return &out
}

// staged lays a stage over the base. What is one's own is not inherited: domains, and whether there is an image or a build.
func (r *reader) staged(base, stage *value) *value {
	trimmed := *base
	trimmed.fields = make(map[string]*value, len(base.fields))
	for name, field := range base.fields {
		switch {
		case name == "domains":
		case name == "image" && stage.fields["build"] != nil, name == "build" && stage.fields["image"] != nil:
		default:
			trimmed.fields[name] = field
		}
	}
	return merge(&trimmed, stage)
}

// check looks for what is wrong between keys.
func (r *reader) check(v *value) {
	if image, build := v.at("image"), v.at("build"); image != nil && build != nil {
		r.problem(build.key, "there is an image already in line %d: an application is built or taken as it is", image.line())
	}
	if git, dir := v.at("build", "git"), v.at("build", "path"); git != nil && dir != nil && v.at("build").short {
		r.problem(git.node, "source is a folder or a repository, not both")
	}
	r.checkNames(v)
	r.checkDomains(v.at("domains"))
	for _, name := range v.at("processes").names() {
		r.checkProcess(name, v.at("processes", name))
	}
	r.checkRollout(v.at("rollout"))
}

func (r *reader) checkNames(v *value) {
	seen := map[string]*value{}
	for _, list := range []*value{v.at("secrets"), v.at("build", "secrets")} {
		if list == nil {
			continue
		}
		here := map[string]bool{}
		for _, item := range list.items {
			name, _ := item.scalar.(string)
			if here[name] {
				r.problem(item.node, "%s is here twice", name)
			}
			here[name] = true
			if list == v.at("secrets") {
				seen[name] = item
			}
		}
	}
	for _, name := range v.at("env").names() {
		if secret := seen[name]; secret != nil {
			r.problem(v.at("env", name).key, "%s is a secret already in line %d: an environment variable has one source", name, secret.node.Line)
		}
	}
}

func (r *reader) checkDomains(list *value) {
	if list == nil {
		return
	}
	lines := map[string]int{}
	for _, item := range list.items {
		name := item.str("name")
		if line := lines[name]; line != 0 && name != "" {
			r.problem(item.node, "%s is here twice, first in line %d", name, line)
		}
		lines[name] = item.node.Line
		if name != "" && item.str("redirect") == name {
			r.problem(item.at("redirect").node, "%s is sent to itself", name)
		}
	}
}

func (r *reader) checkProcess(name string, p *value) {
	if strings.HasSuffix(name, "-canary") {
		r.problem(p.keyOrNode(), "a process cannot be called %s: objects of canaries are", name)
	}
	if schedule := p.at("schedule"); schedule != nil {
		if name == v1alpha1.WebProcess {
			r.problem(schedule.keyOrNode(), "web gets requests, so it cannot run by a schedule: give this to another process")
		}
		for _, other := range []string{"scale", "port", "health"} {
			if field := p.at(other); field != nil {
				r.problem(field.keyOrNode(), "%s has a schedule (line %d): it runs and ends, and has no %s", name, schedule.line(), other)
			}
		}
	} else if zone := p.at("timezone"); zone != nil {
		r.problem(zone.keyOrNode(), "%s has no schedule, so no timezone", name)
	}
	least, _ := p.at("scale", "min").number()
	if most, said := p.at("scale", "max").number(); said && most < least {
		r.problem(p.at("scale", "max").node, "the most is %d, less than the least, %d", most, least)
	}
	names := map[string]bool{}
	for _, mount := range p.at("volumes").names() {
		volume := p.at("volumes", mount)
		if volumeName := volume.str("name"); names[volumeName] && volumeName != "" {
			r.problem(volume.keyOrNode(), "the volume %s is mounted twice in %s", volumeName, name)
		} else {
			names[volumeName] = true
		}
	}
}

func (r *reader) checkRollout(v *value) {
	if v == nil {
		return
	}
	if v.str("strategy") != v1alpha1.RolloutCanary {
		for _, name := range v.names() {
			if name != "strategy" {
				r.problem(v.at(name).keyOrNode(), "%s is for canaries: write strategy: canary", name)
			}
		}
	}
	steps := v.at("steps")
	if steps == nil {
		return
	}
	last := int64(0)
	for _, step := range steps.items {
		n, _ := step.number()
		if n <= last {
			r.problem(step.node, "steps grow: %d comes after %d", n, last)
		}
		last = n
	}
	if len(steps.items) == 0 || last != 100 {
		r.problem(steps.node, "the last step is 100")
	}
}

func (v *value) keyOrNode() *yaml.Node {
	if v.key != nil {
		return v.key
	}
	return v.node
}

func (v *value) number() (int64, bool) {
	if v == nil {
		return 0, false
	}
	n, ok := v.scalar.(int64)
	return n, ok
}

// decode turns plain values into a type of the API. A key that the type does not have is an error: the table is wrong then.
func decode(plain any, into any) error {
	text, err := json.Marshal(plain)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}

// AppName makes a name of an application from that of a folder.
func AppName(folder string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, folder)
	clean = strings.TrimLeft(clean, "-0123456789")
	if len(clean) > MaxAppName {
		clean = clean[:MaxAppName]
	}
	if clean = strings.Trim(clean, "-"); clean == "" {
		return "app"
	}
	return strings.Join(slices.DeleteFunc(strings.Split(clean, "-"), func(s string) bool { return s == "" }), "-")
}
