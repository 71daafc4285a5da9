package language

import (
	"fmt"
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
	type files = map[string]string
	for name, tc := range map[string]struct {
		files files
		opts  Options
		want  string // or, after "! ", an error's
		// contains are parts of the generated Dockerfile.
		contains []string
	}{
		"Dockerfile before all": {files{"Dockerfile": "", "go.mod": "", "package.json": "{}", "Procfile": "web: a"}, Options{}, "dockerfile by Dockerfile", nil},
		"named Dockerfile":      {files{"deploy/D": ""}, Options{Dockerfile: "deploy/D"}, "dockerfile by deploy/D", nil},
		"Go":                    {files{"go.mod": "", "main.go": "package main", "index.html": ""}, Options{}, "go by go.mod main .", nil},
		"Go, below":             {files{"go.mod": "", "cmd/a/main.go": "package main", "cmd/a/x_test.go": "package main"}, Options{}, "go by go.mod main cmd/a", nil},
		"Go, asked below":       {files{"main.go": "package main"}, Options{Kind: Go}, "go by build.kind main .", nil},
		"Go, several":           {files{"go.mod": "", "cmd/a/a.go": "package main", "cmd/b/b.go": "package main", "testdata/c/c.go": "package main", "d/go.mod": "", "d/d.go": "package main"}, Options{}, "! this module has 2 programs: cmd/a, cmd/b", nil},
		"Go, tool ignored":      {files{"go.mod": "", "cmd/a/a.go": "package main", "gen.go": "//go:build ignore\n\npackage main"}, Options{}, "go by go.mod main cmd/a", nil},
		"Go, library":           {files{"go.mod": "", "a.go": "package a"}, Options{}, "! there is a go.mod, but no package main", nil},
		"Go, of a module above": {files{"main.go": "package main"}, Options{}, "go by program of a Go module further up main .", nil},
		"Go and Procfile":       {files{"go.mod": "", "main.go": "package main", "Procfile": "# the\nworker: shop work\n"}, Options{}, "go by go.mod and Procfile main . map[worker:shop work]", nil},
		"static":                {files{"index.html": ""}, Options{}, "static by index.html folder .", nil},
		"static in a folder":    {files{"dist/index.html": ""}, Options{}, "static by dist/index.html folder dist", nil},
		"npm": {files{"package.json": `{"scripts":{"start":"node s.js","build":"tsc"}}`, "package-lock.json": "{}"}, Options{Secrets: []string{"NPM_TOKEN"}, Args: map[string]string{"B": "1", "A": "2"}}, "node by package.json start npm start",
			[]string{"FROM " + nodeImage + " AS build", "ARG A\nARG B\n", "--mount=type=secret,id=NPM_TOKEN,env=NPM_TOKEN npm ci", "npm run build", "npm prune --omit=dev", "USER 65532"}},
		"npm, no lock": {files{"package.json": `{"main":"a.js"}`, "a.js": ""}, Options{}, "node by package.json start node a.js", []string{"RUN --mount=type=cache,target=/root/.npm,sharing=locked npm install", "COPY package.json ./\n"}},
		"pnpm": {files{"package.json": `{"scripts":{"start":"A=1 node s.js && b"},"packageManager":"pnpm@9.1.0+sha512.x"}`, "pnpm-lock.yaml": "", ".npmrc": ""}, Options{Bases: map[string]string{Node: "own:1"}}, "node by package.json start A=1 node s.js && b",
			[]string{"FROM own:1 AS build", "npm install --global --no-audit --no-fund pnpm@9.1.0\n", "pnpm install --frozen-lockfile", "COPY package.json pnpm-lock.yaml .npmrc ./", `"A=1 node s.js \u0026\u0026 b"]`}},
		"yarn":                      {files{"package.json": `{"scripts":{"start":"next start"}}`, "yarn.lock": ""}, Options{}, "node by package.json start next start", []string{"yarn@1", "yarn install --frozen-lockfile", "PATH=/app/node_modules/.bin:$PATH", `"exec next start"`}},
		"npm, workspaces":           {files{"package.json": `{"workspaces":["a"],"scripts":{"start":"x"}}`, "package-lock.json": ""}, Options{}, "node by package.json start npm start", []string{"COPY . .\nRUN --mount=type=cache,target=/root/.npm,sharing=locked npm ci"}},
		"npm, a package of its own": {files{"package.json": `{"dependencies":{"a":"file:./a"},"scripts":{"start":"x"}}`}, Options{}, "node by package.json start npm start", []string{"COPY . .\nRUN"}},
		"yarn, newer": {files{"package.json": `{"scripts":{"start":"x"}}`, "yarn.lock": "__metadata:\n  version: 8\n"}, Options{}, "node by package.json start x",
			[]string{"@yarnpkg/cli-dist@4", "COPY . .\nRUN --mount=type=cache,target=/root/.yarn-berry,sharing=locked YARN_NODE_LINKER=node-modules"}},
		"yarn and Procfile": {files{"package.json": `{}`, "yarn.lock": "", "Procfile": "web: node x.js"}, Options{}, "node by package.json and Procfile start node x.js map[web:node x.js]", []string{`"exec node x.js"`}},
		"node, server.js":   {files{"package.json": `{"scripts":{"build":"x"}}`, "server.js": ""}, Options{}, "node by package.json start node server.js", nil},
		"node dist":         {files{"package.json": `{}`, "index.html": "", "dist/index.html": ""}, Options{}, "static by package.json folder dist", nil},
		"node site":         {files{"package.json": `{"scripts":{"build":"vite build"},"main":"a.js"}`, "a.js": "", "public/index.html": ""}, Options{}, "node by package.json", []string{"COPY --from=gantry-static", `"-spa"`}},
		"node, nothing":     {files{"package.json": `{}`}, Options{}, "! package.json has no script start", nil},
		"bad package.json":  {files{"package.json": "{"}, Options{}, "! package.json is not JSON", nil},
		"Python": {files{"requirements.txt": "Flask\ngunicorn==23\n", "app.py": "app = Flask()\n"}, Options{}, "python by requirements.txt start gunicorn --bind 0.0.0.0:${PORT:-8080} app:app",
			[]string{"FROM " + pythonImage, "COPY requirements.txt ./\nRUN", "install --no-compile --requirement requirements.txt\nCOPY . .\n"}},
		"Python, files":   {files{"requirements.txt": "./wheels/a.whl\n", "app.py": ""}, Options{}, "python by requirements.txt start python3 app.py", []string{"COPY . .\nRUN --mount=type=cache,target=/root/.cache/pip,sharing=locked python3 -m pip"}},
		"pyproject":       {files{"pyproject.toml": "uvicorn", "main.py": "app = FastAPI()"}, Options{}, "python by pyproject.toml start uvicorn main:app --host 0.0.0.0 --port ${PORT:-8080}", []string{"install --no-compile ."}},
		"Python no start": {files{"requirements.txt": ""}, Options{}, "! cannot tell how to start this Python application: add a Procfile", nil},
		"Procfile asked":  {files{"Dockerfile": "", "requirements.txt": "", "Procfile": "web: python3 x.py"}, Options{Kind: Procfile}, "python by requirements.txt and Procfile start python3 x.py map[web:python3 x.py]", nil},
		"Procfile, bare":  {files{"Procfile": "web: ./a"}, Options{}, "! there is a Procfile, but no go.mod", nil},
		"nothing":         {files{"README": ""}, Options{}, "! nothing that could be deployed is here: looked for Dockerfile, Procfile, go.mod", nil},
		"Containerfile":   {files{"Containerfile": ""}, Options{}, "! nothing that could be deployed is here: a Dockerfile is called", nil},
		"unknown kind":    {nil, Options{Kind: "cobol"}, `! "cobol" is no way to build`, nil},
		"no Dockerfile":   {nil, Options{Kind: Dockerfile, Dockerfile: "x"}, "! there is no x in the source", nil},
		"Dockerfile out":  {nil, Options{Kind: Dockerfile, Dockerfile: "../x"}, "! there is no ../x", nil},
	} {
		t.Run(name, func(t *testing.T) {
			plan, err := Detect(tree(tc.files), tc.opts)
			got := plan.Kind + " by " + plan.Found
			for label, value := range map[string]string{"main": plan.Main, "start": plan.Start, "folder": plan.Folder} {
				if value != "" {
					got += " " + label + " " + value
				}
			}
			if err == nil && (plan.Why == "" || strings.Contains(plan.Why, "  ") || strings.Contains(plan.Why, " :")) {
				t.Errorf("why = %q", plan.Why)
			}
			if plan.Processes != nil {
				got += fmt.Sprint(" ", plan.Processes)
			}
			if err != nil {
				got = "! " + err.Error()
			}
			if got != tc.want && (err == nil || !strings.HasPrefix(got, tc.want)) {
				t.Errorf("found %q, want %q", got, tc.want)
			}
			if err == nil && (plan.Kind == Node || plan.Kind == Python) != (plan.Dockerfile != "") {
				t.Errorf("a Dockerfile of %s: %q", plan.Kind, plan.Dockerfile)
			}
			for _, want := range tc.contains {
				if !strings.Contains(plan.Dockerfile, want) {
					t.Errorf("there is no %q in\n%s", want, plan.Dockerfile)
				}
			}
		})
	}
}

func TestParseProcfile(t *testing.T) {
	for text, want := range map[string]string{
		"web: a: b\n\n# c\nrelease: d": "map[release:d web:a: b]",
		"web: a\nnonsense\n":           "Procfile:2:1: should be",
		"web:\n":                       "Procfile:1:1: should be",
		"web: a\nweb: b\n":             "Procfile:2:1: web is here twice",
		"Web: a":                       `Procfile:1:1: "Web" is not a name`,
		"a234567890123456789012: a":    "has 22 letters, more than 20",
		"# nothing":                    "names no process",
	} {
		got, err := ParseProcfile([]byte(text))
		if result := fmt.Sprint(got); err == nil && result != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %q", text, got, err, want)
		}
	}
}
