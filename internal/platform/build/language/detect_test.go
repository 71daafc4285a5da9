package language

import (
	"strings"
	"testing"
	"testing/fstest"
)

func tree(files map[string]string) fstest.MapFS {
	out := fstest.MapFS{}
	for name, text := range files {
		out[name] = &fstest.MapFile{Data: []byte(text), Mode: 0o644}
	}
	return out
}

func TestDetect(t *testing.T) {
	for name, tc := range map[string]struct {
		files     map[string]string
		opts      Options
		kind      string
		found     string
		processes string // NAME=COMMAND
		contains  []string
	}{
		"Dockerfile before all": {map[string]string{"Dockerfile": "", "go.mod": "", "package.json": "{}"}, Options{}, Dockerfile, "Dockerfile", "", nil},
		"named Dockerfile":      {map[string]string{"deploy/D": ""}, Options{Dockerfile: "deploy/D"}, Dockerfile, "deploy/D", "", nil},
		"Go":                    {map[string]string{"go.mod": "", "index.html": ""}, Options{}, Go, "go.mod", "", nil},
		"Go and Procfile":       {map[string]string{"go.mod": "", "Procfile": "# the\nworker: shop work\n"}, Options{}, Go, "go.mod and Procfile", "worker=shop work", nil},
		"static":                {map[string]string{"index.html": ""}, Options{}, Static, "index.html", "", nil},
		"static in a folder":    {map[string]string{"dist/index.html": ""}, Options{}, Static, "dist/index.html", "", nil},
		"npm": {map[string]string{"package.json": `{"scripts":{"start":"node s.js","build":"tsc"}}`, "package-lock.json": "{}"}, Options{Secrets: []string{"NPM_TOKEN"}, Args: map[string]string{"B": "1", "A": "2"}}, Node, "package.json", "web=npm start",
			[]string{"FROM " + nodeImage + " AS build", "ARG A\nARG B\n", "--mount=type=secret,id=NPM_TOKEN,env=NPM_TOKEN npm ci", "npm run build", "npm prune --omit=dev", "USER 65532"}},
		"pnpm": {map[string]string{"package.json": `{"scripts":{"start":"node s.js"}}`, "pnpm-lock.yaml": ""}, Options{Bases: map[string]string{Node: "own:1"}}, Node, "package.json", "web=node s.js",
			[]string{"FROM own:1 AS build", "corepack enable pnpm", "pnpm install --frozen-lockfile"}},
		"yarn and Procfile": {map[string]string{"package.json": `{}`, "yarn.lock": "", "Procfile": "web: node x.js"}, Options{}, Node, "package.json and Procfile", "web=node x.js", []string{`"exec node x.js"`}},
		"node site":         {map[string]string{"package.json": `{"scripts":{"build":"vite build"}}`}, Options{}, Node, "package.json", "", []string{"COPY --from=gantry-static", `"-spa"`}},
		"Python":            {map[string]string{"requirements.txt": "Flask\ngunicorn==23\n", "app.py": "app = Flask()\n"}, Options{}, Python, "requirements.txt", "web=gunicorn --bind 0.0.0.0:${PORT:-8080} app:app", []string{"FROM " + pythonImage, "pip install --requirement requirements.txt"}},
		"pyproject":         {map[string]string{"pyproject.toml": "uvicorn", "main.py": "app = FastAPI()"}, Options{}, Python, "pyproject.toml", "web=uvicorn main:app --host 0.0.0.0 --port ${PORT:-8080}", []string{"pip install ."}},
		"Procfile asked":    {map[string]string{"Dockerfile": "", "requirements.txt": "", "Procfile": "web: python3 x.py"}, Options{Kind: Procfile}, Python, "requirements.txt", "web=python3 x.py", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Detect(tree(tc.files), tc.opts)
			if err != nil {
				t.Fatal(err)
			}
			if got.Kind != tc.kind || got.Found != tc.found {
				t.Errorf("Detect = %s by %q, want %s by %q", got.Kind, got.Found, tc.kind, tc.found)
			}
			var processes []string
			for name, command := range got.Processes {
				processes = append(processes, name+"="+command)
			}
			if strings.Join(processes, ",") != tc.processes {
				t.Errorf("processes = %q, want %q", processes, tc.processes)
			}
			for _, want := range tc.contains {
				if !strings.Contains(got.Dockerfile, want) {
					t.Errorf("there is no %q in\n%s", want, got.Dockerfile)
				}
			}
		})
	}
}

func TestDetectRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		opts  Options
		want  string
	}{
		"nothing":          {nil, Options{}, "there is no Dockerfile, go.mod"},
		"unknown kind":     {nil, Options{Kind: "cobol"}, `"cobol" is no way to build`},
		"no Dockerfile":    {nil, Options{Kind: Dockerfile, Dockerfile: "x"}, "no x in the source"},
		"Dockerfile out":   {nil, Options{Kind: Dockerfile, Dockerfile: "../x"}, "no ../x"},
		"bad Procfile":     {map[string]string{"Procfile": "web: a\nnonsense\n", "go.mod": ""}, Options{}, "line 2 of the Procfile"},
		"twice":            {map[string]string{"Procfile": "web: a\nweb: b\n", "go.mod": ""}, Options{}, "web is there twice"},
		"bad package.json": {map[string]string{"package.json": "{"}, Options{}, "package.json"},
		"no start":         {map[string]string{"package.json": "{}"}, Options{}, "neither a start script nor a build script"},
		"Python no start":  {map[string]string{"requirements.txt": ""}, Options{}, "add a Procfile"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Detect(tree(tc.files), tc.opts); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Detect: %v, want something with %q", err, tc.want)
			}
		})
	}
}
