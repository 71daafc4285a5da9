package appfile

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
	sigsyaml "sigs.k8s.io/yaml"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/build/language"
)

var update = flag.Bool("update", false, "write the golden files and the published schema and reference anew")

const docs = "../../../docs"

// golden compares got with a file, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got); go test -update writes it anew\n%s", path, diff)
	}
}

func specYAML(t *testing.T, spec v1alpha1.AppSpec) string {
	t.Helper()
	out, err := sigsyaml.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestEverything(t *testing.T) {
	text, err := os.ReadFile("testdata/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range []string{"", "staging"} {
		read, err := Parse("gantry.yaml", text, stage)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "testdata/everything"+stage+".golden", specYAML(t, read.Spec))
		if read.Name != "shop" || len(read.Stages) != 1 || read.Lines["LOG_LEVEL"] != 8 {
			t.Errorf("name %q, stages %v, lines %v", read.Name, read.Stages, read.Lines)
		}
	}
}

func TestShortForms(t *testing.T) {
	short := `
command: ./shop
port: 3000
health: /up
scale: 2
build: cmd/shop
addons: {db: postgres}
processes: {worker: ./work}
rollout: canary
`
	long := `
build: {path: cmd/shop}
addons: {db: {type: postgres}}
processes:
  web: {command: ./shop, port: 3000, health: {path: /up}, scale: {min: 2}}
  worker: {command: ./work}
rollout: {strategy: canary}
`
	a, err := Parse("a", []byte(short), "")
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse("b", []byte(long), "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(specYAML(t, b.Spec), specYAML(t, a.Spec)); diff != "" {
		t.Error(diff)
	}
}

func TestStages(t *testing.T) {
	base := `
image: shop:1
env: {A: "1", B: 2}
scale: {min: 1, max: 5}
domains: [shop.example.com]
stages:
  number: {scale: 3}
  part: {scale: {max: 2}, env: {B: three}}
  built: {build: .}
`
	for stage, want := range map[string]string{
		"number": "env:\n  A: \"1\"\n  B: \"2\"\nimage: shop:1\nprocesses:\n  web:\n    scale:\n      min: 3\n",
		"part":   "env:\n  A: \"1\"\n  B: three\nimage: shop:1\nprocesses:\n  web:\n    scale:\n      max: 2\n      min: 1\n",
		"built":  "build:\n  path: .\nenv:\n  A: \"1\"\n  B: \"2\"\nprocesses:\n  web:\n    scale:\n      max: 5\n      min: 1\n",
	} {
		t.Run(stage, func(t *testing.T) {
			read, err := Parse("gantry.yaml", []byte(base), stage)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, specYAML(t, read.Spec)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := Parse("gantry.yaml", []byte(base), "parts"); err == nil || !strings.Contains(err.Error(), `no stage "parts": did you mean "part"?`) {
		t.Errorf("an unknown stage: %v", err)
	}
}

// wrongFiles are files with the messages they get; those marked with * only Parse refuses, not the schema.
func wrongFiles() map[string][2]string {
	return map[string][2]string{
		"unknown key":      {"name: shop\nprot: 3000\n", `f:2:1: unknown key "prot": did you mean "port"?`},
		"nested":           {"processes:\n  web: {comand: x}\n", `f:2:9: unknown key "comand": did you mean "command"?`},
		"key elsewhere":    {"memory: 1Gi\n", `f:1:1: unknown key "memory": it belongs to processes.web.memory`},
		"no near key":      {"stop: {xyzzyplugh: 1}\nname: a\n", `f:1:1: unknown key "stop": it belongs to processes.web.stop`},
		"wrong type":       {"port: http\n", `f:1:7: port is text, and should be a whole number from 1 to 65535`},
		"port range":       {"port: 70000\n", `f:1:7: port: "70000" is not a whole number from 1 to 65535`},
		"list for map":     {"env: [A]\n", `f:1:6: env is a list, and should be a map from a name such as LOG_LEVEL to text`},
		"map for text":     {"image: {a: b}\n", `f:1:8: image is a map, and should be an image such as ghcr.io/acme/shop:1.4`},
		"number as text":   {"release: 5\n", `f:1:10: release is the number 5, and should be text: write "5"`},
		"no value":         {"name: shop\nimage:\n", `f:2:7: image has no value: it is an image such as ghcr.io/acme/shop:1.4`},
		"duration":         {"health: {grace: 30}\n", `f:1:17: health.grace: "30" has no unit: write 30s, 30m or 30h`},
		"quantity*":        {"processes: {web: {memory: 256MB}}\n", `f:1:27: processes.web.memory: "256MB" is not a size such as 256Mi: the unit "MB" is unknown, there are Ki, Mi, Gi (1024) and k, M, G (1000)`},
		"percent":          {"rollout: {strategy: canary, errors: 1}\n", `f:1:37: rollout.errors: "1" has no percent sign: write 1%`},
		"schedule*":        {"processes: {job: {schedule: \"99 * * * *\"}}\n", `f:1:29: processes.job.schedule: "99 * * * *" is not a schedule such as "0 3 * * *" (minute hour day month weekday): end of range (99) above maximum (59): 99`},
		"timezone*":        {"processes: {job: {schedule: \"0 * * * *\", timezone: Europa/Berlin}}\n", `f:1:52: processes.job.timezone: "Europa/Berlin" is not a time zone such as Europe/Berlin or UTC`},
		"domain":           {"domains: [https://shop.example.com]\n", `f:1:11: domains[0]: "https://shop.example.com" is an address: write the host name alone, without https://`},
		"addon type":       {"addons: {db: postgers}\n", `f:1:14: addons.db: "postgers" is unknown: did you mean "postgres"?`},
		"required":         {"addons:\n  db: {size: 1Gi}\n", `f:2:7: addons.db has no "type": what it is. postgres sets DATABASE_URL, redis REDIS_URL; two of a type: KEY_URL.`},
		"twice*":           {"port: 1\nname: a\nport: 2\n", `f:3:1: "port" is here twice, first in line 1`},
		"top and below*":   {"port: 1\nprocesses: {web: {port: 2}}\n", `f:1:1: port is said twice, here and in line 2`},
		"image and build*": {"image: a\nbuild: .\n", `f:2:1: there is an image already in line 1: an application is built or taken as it is`},
		"env and secret*":  {"env: {KEY: a}\nsecrets: [KEY]\n", `f:1:7: KEY is a secret already in line 2: an environment variable has one source`},
		"bad name":         {"name: Shop\n", `f:1:7: name: "Shop" is not a name of lower-case letters, digits and dashes that begins with a letter`},
		"steps*":           {"rollout: {strategy: canary, steps: [50, 20]}\n", "f:1:36: the last step is 100\nf:1:41: steps grow: 20 comes after 50"},
		"outside*":         {"build: ../other\n", `f:1:8: build: "../other" leads out of the folder of this file`},
		"web schedule*":    {"processes: {web: {schedule: \"0 * * * *\"}}\n", `f:1:19: web gets requests, so it cannot run by a schedule: give this to another process`},
		"max below min*":   {"scale: {min: 3, max: 2}\n", `f:1:22: the most is 2, less than the least, 3`},
		"signal":           {"processes: {web: {stop: {signal: SIGTERM}}}\n", `f:1:34: processes.web.stop.signal: "SIGTERM" is written without SIG: write TERM`},
		"in a stage":       {"stages: {staging: {imge: a}}\n", `f:1:20: unknown key "imge": did you mean "image"?`},
		"two documents*":   {"name: a\n---\nname: b\n", `f:2:1: a second document begins here; a file describes one application`},
		"not YAML*":        {"name: [a\n", `f:1: did not find expected ',' or ']'`},
		"several":          {"prot: 1\nhealth: 5\n", "f:1:1: unknown key \"prot\": did you mean \"port\"?\nf:2:9: health is the number 5, and should be a path such as /healthz"},
	}
}

func TestProblems(t *testing.T) {
	for name, tc := range wrongFiles() {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f", []byte(tc[0]), "")
			if err == nil {
				t.Fatal("was read")
			}
			if _, ok := errors.AsType[Problems](err); !ok {
				t.Errorf("is a %T", err)
			}
			if diff := cmp.Diff(tc[1], err.Error()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func validator(t *testing.T) func(text string) error {
	t.Helper()
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var schema any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("v1.json", schema); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("v1.json")
	if err != nil {
		t.Fatal(err)
	}
	return func(text string) error {
		var plain any
		if err := yaml.Unmarshal([]byte(text), &plain); err != nil {
			return fmt.Errorf("%w: %w", errSyntax, err)
		}
		encoded, err := json.Marshal(plain)
		if err != nil {
			return fmt.Errorf("%w: %w", errSyntax, err)
		}
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(encoded)))
		if err != nil {
			return err
		}
		return compiled.Validate(value)
	}
}

var errSyntax = errors.New("not YAML")

// TestSchemaAgrees holds the parser and the schema against each other.
func TestSchemaAgrees(t *testing.T) {
	validate := validator(t)
	everything, err := os.ReadFile("testdata/everything.yaml")
	if err != nil {
		t.Fatal(err)
	}
	right := []string{string(everything), "name: a\n", "image: a\nport: 1\nscale: 0\n", "health: /up\nrelease: {command: x, timeout: 1h30m}\n",
		"rollout: {strategy: canary, every: 0}\n", "processes: {a: {cpu: 2, memory: 1000000000}}\n", string(Template("a", language.Plan{}))}
	for _, text := range right {
		if _, err := Parse("f", []byte(text), ""); err != nil {
			t.Errorf("Parse refuses %q: %v", text, err)
		}
		if err := validate(text); err != nil {
			t.Errorf("the schema refuses %q: %v", text, err)
		}
	}
	for name, tc := range wrongFiles() {
		err := validate(tc[0])
		if errors.Is(err, errSyntax) {
			continue
		}
		if lax := strings.HasSuffix(name, "*"); err == nil && !lax {
			t.Errorf("%s: the schema takes what Parse refuses: %q", name, tc[0])
		}
	}
}

func TestPublishedSchema(t *testing.T) {
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, docs+"/schema/v1.json", string(text))
}

// TestReference keeps the table in the user's page true.
func TestReference(t *testing.T) {
	const begin, end = "<!-- keys: begin -->\n", "<!-- keys: end -->"
	path := docs + "/user/gantry-yaml.md"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s has no place for the table", path)
	}
	golden(t, path, before+begin+Reference()+end+after)
}

func FuzzParse(f *testing.F) {
	everything, err := os.ReadFile("testdata/everything.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(everything)
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("env: &a {A: b}\nbuild: {args: *a}\nscale: 2\nstages: {s: {scale: {max: 2}}}"))
	for _, tc := range wrongFiles() {
		f.Add([]byte(tc[0]))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		read, err := Parse("f", text, "")
		if err != nil {
			if problems, ok := errors.AsType[Problems](err); ok {
				for _, p := range problems {
					if p.Line < 1 || p.Text == "" {
						t.Errorf("a problem without a place or text: %+v", p)
					}
				}
				return
			}
			t.Fatalf("is no list of problems: %v", err)
		}
		again, err := sigsyaml.Marshal(read.Spec)
		if err != nil {
			t.Fatal(err)
		}
		second, err := Parse("again", again, "")
		if err != nil {
			t.Fatalf("the long form is refused: %v\n%s", err, again)
		}
		if diff := cmp.Diff(string(again), specYAML(t, second.Spec)); diff != "" {
			t.Errorf("the long form reads differently: %s", diff)
		}
	})
}

// TestTemplate reads back what init writes for all that may be found.
func TestTemplate(t *testing.T) {
	for name, found := range map[string]language.Plan{
		"nothing":  {},
		"Go":       {Kind: language.Go, Main: "cmd/a", Why: "there is a go.mod"},
		"Procfile": {Kind: language.Python, Why: "there is a requirements.txt: Python, and a Procfile", Processes: map[string]string{"web": "./a", "release": "./b \"c\""}},
	} {
		if _, err := Parse("gantry.yaml", Template("shop", found), ""); err != nil {
			t.Errorf("%s: the file of init is refused: %v", name, err)
		}
	}
}

func TestImportCompose(t *testing.T) {
	text, err := os.ReadFile("testdata/compose/shop.yaml")
	if err != nil {
		t.Fatal(err)
	}
	imported, err := ImportCompose(ComposeOptions{File: "compose.yaml", Text: text, Name: "folder",
		Folder: fstest.MapFS{"web.env": {Data: []byte("GREETING=hello\n")}}})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, app := range imported.Apps {
		fmt.Fprintf(&b, "# %s from %v\n%s\n", app.Name, app.Services, specYAML(t, app.Spec))
	}
	for _, note := range imported.Notes {
		fmt.Fprintln(&b, note)
	}
	golden(t, "testdata/compose/shop.golden", b.String())
}

func TestImportComposeRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"services: {a: {image: x, extends: b}}":          "c:1:26: extends is not supported",
		"include: [a.yaml]\nservices: {a: {image: x}}":   "c:1:1: include is not supported",
		"services: {a: {}}":                              "c:1:12: the service a has neither image nor build",
		"services: {}":                                   "c:1:1: there are no services",
		"services: {a: {image: x, ports: [http]}}":       `c:1:34: the port "http" of a is not a number`,
		"services: {a: {image: \"${X:?say X}\"}}":        "required variable X is missing a value: say X",
		"services: {a: {image: x, env_file: none.env}}":  "none.env cannot be read",
		"services: {a: {build: ../up}}":                  "leads out of this folder",
		"services:\n  a:\n    image: x\n    prots: [80]": `c:4:5: unknown key "prots" of a: did you mean "ports"?`,
	} {
		_, err := ImportCompose(ComposeOptions{File: "c", Text: []byte(text), Folder: fstest.MapFS{}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzImportCompose(f *testing.F) {
	text, err := os.ReadFile("testdata/compose/shop.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("services: &s {a: *s}"))
	f.Add([]byte("services: {a: {image: postgres}, b: {image: x, depends_on: [a]}}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		imported, err := ImportCompose(ComposeOptions{File: "c", Text: text, Folder: fstest.MapFS{}})
		if err == nil && imported == nil {
			t.Error("neither a result nor an error")
		}
	})
}
