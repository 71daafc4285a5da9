package language

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
)

// packageFile is what is needed of package.json.
type packageFile struct {
	Main           string            `json:"main"`
	Scripts        map[string]string `json:"scripts"`
	PackageManager string            `json:"packageManager"`
}

// nodeTool is a package manager.
type nodeTool struct {
	name    string
	lock    string
	prepare string // makes the tool available; "" is in the image
	install string
	run     string
	cache   string // folder
	prune   string
}

func nodeTools() []nodeTool {
	return []nodeTool{
		{"pnpm", "pnpm-lock.yaml", "corepack enable pnpm", "pnpm install --frozen-lockfile", "pnpm run", "/root/.local/share/pnpm/store", "pnpm prune --prod"},
		{"yarn", "yarn.lock", "corepack enable yarn", "yarn install --frozen-lockfile", "yarn run", "/usr/local/share/.cache/yarn", ""},
		{"npm", "package-lock.json", "", "npm ci", "npm run", "/root/.npm", "npm prune --omit=dev"},
		{"npm", "npm-shrinkwrap.json", "", "npm ci", "npm run", "/root/.npm", "npm prune --omit=dev"},
	}
}

// node plans a package.json: its build script runs, then its start script is the web process; what has no start but
// builds files is a static site.
func (d detector) node() (Plan, error) {
	data, err := d.read("package.json")
	if err != nil {
		return Plan{}, err
	}
	var pkg packageFile
	if err := json.Unmarshal(data, &pkg); err != nil {
		return Plan{}, fmt.Errorf("package.json: %w", err)
	}
	tool := nodeTool{name: "npm", install: "npm install", run: "npm run", cache: "/root/.npm", prune: "npm prune --omit=dev"}
	for _, candidate := range nodeTools() {
		if d.has(candidate.lock) {
			tool = candidate
			break
		}
	}
	start := d.nodeStart(pkg, tool)
	var b strings.Builder
	base := d.base(Node, nodeImage)
	fmt.Fprintf(&b, "FROM %s AS build\nWORKDIR /app\n%s", base, d.args())
	if tool.prepare != "" {
		b.WriteString("RUN " + tool.prepare + "\n")
	}
	fmt.Fprintf(&b, "COPY package.json %s* ./\n", firstOf(tool.lock, "package-lock.json"))
	if d.has("pnpm-workspace.yaml") || d.has(".npmrc") || d.has(".yarnrc.yml") {
		b.WriteString("COPY pnpm-workspace.yam[l] .npmr[c] .yarnrc.ym[l] ./\n")
	}
	cache := []string{"type=cache,target=" + tool.cache + ",sharing=locked"}
	b.WriteString(d.run(cache, tool.install))
	b.WriteString("COPY . .\n")
	_, builds := pkg.Scripts["build"]
	if builds {
		b.WriteString(d.run(cache, tool.run+" build"))
	}
	if start == "" {
		if !builds {
			return Plan{}, fmt.Errorf("package.json has neither a start script nor a build script, and there is no server.js: add \"start\" to its scripts, or a Procfile")
		}
		b.WriteString(staticStage)
		return Plan{Dockerfile: b.String(), NeedsServer: true}, nil
	}
	if tool.prune != "" {
		b.WriteString(d.run(cache, tool.prune))
	}
	fmt.Fprintf(&b, "FROM %s\nWORKDIR /app\nENV NODE_ENV=production HOME=/tmp\nCOPY --from=build /app /app\nUSER 65532:65532\nCMD [\"/bin/sh\", \"-c\", %s]\n", base, quote("exec "+start))
	return Plan{Dockerfile: b.String(), Processes: map[string]string{"web": start}}, nil
}

// staticStage takes the built files, wherever the tool put them.
const staticStage = `RUN for dir in dist build out public; do if test -f "$dir/index.html"; then mv "$dir" /site; exit 0; fi; done; echo "the build left no index.html in dist, build, out or public" >&2; exit 1
FROM scratch
COPY --from=gantry-static /gantry-static /gantry-static
COPY --from=build /site /site
USER 65532:65532
ENTRYPOINT ["/gantry-static"]
CMD ["-dir", "/site", "-spa"]
`

// nodeStart is the command of the web process.
func (d detector) nodeStart(pkg packageFile, tool nodeTool) string {
	if processes, err := d.procfile(); err == nil && processes["web"] != "" {
		return processes["web"]
	}
	if _, ok := pkg.Scripts["start"]; ok {
		if tool.name == "npm" {
			return "npm start"
		}
		return pkg.Scripts["start"] // the tool is not in the image that runs
	}
	for _, name := range []string{"server.js", pkg.Main} {
		if name != "" && d.has(path.Clean(name)) {
			return "node " + path.Clean(name)
		}
	}
	return ""
}

func firstOf(values ...string) string {
	for _, value := range values {
		if value != "" {
			return value
		}
	}
	return ""
}

// quote writes a text as JSON, which the exec form of a Dockerfile is.
func quote(text string) string {
	data, err := json.Marshal(text)
	if err != nil {
		return `""` // a string always has a JSON form
	}
	return string(data)
}
