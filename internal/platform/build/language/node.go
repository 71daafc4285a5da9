package language

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
)

// packageFile is what is needed of package.json.
type packageFile struct {
	Main           string            `json:"main"`
	Scripts        map[string]string `json:"scripts"`
	PackageManager string            `json:"packageManager"` // "pnpm@10.4.1+sha512.…"
	Workspaces     json.RawMessage   `json:"workspaces"`
	Dependencies   map[string]string `json:"dependencies"`
	Development    map[string]string `json:"devDependencies"`
	Optional       map[string]string `json:"optionalDependencies"`
}

// needsSource says whether installing needs more of the source than the lists of packages: packages in it, or scripts that run then.
func (p packageFile) needsSource() bool {
	for _, name := range []string{"preinstall", "install", "postinstall", "prepare"} {
		if p.Scripts[name] != "" {
			return true
		}
	}
	for _, group := range []map[string]string{p.Dependencies, p.Development, p.Optional} {
		for _, version := range group {
			for _, prefix := range []string{"file:", "link:", "portal:", "patch:", "workspace:", ".", "/"} {
				if strings.HasPrefix(version, prefix) {
					return true
				}
			}
		}
	}
	return len(p.Workspaces) > 0
}

// nodeTool is a package manager.
type nodeTool struct {
	name    string
	lock    string
	install string
	cache   string // folder
	prune   string // leaves out what is needed to build only
	whole   bool   // it needs more than package.json to install: programs and plugins of its own
	// packages is what npm installs to have the tool, where the image has none; "" for npm itself.
	packages string
}

// nodeTool finds the package manager by its lock file.
func (d detector) nodeTool(pkg packageFile) nodeTool {
	name, version, _ := strings.Cut(pkg.PackageManager, "@")
	version, _, _ = strings.Cut(version, "+") // the checksum is corepack's
	said := func(tool, otherwise string) string {
		if name == tool && version != "" {
			return version
		}
		return otherwise
	}
	npm := nodeTool{name: "npm", cache: "/root/.npm", install: "npm ci --no-audit --no-fund", prune: "npm prune --omit=dev --no-audit --no-fund"}
	switch {
	case d.has("pnpm-lock.yaml"):
		return nodeTool{
			name: "pnpm", lock: "pnpm-lock.yaml", cache: "/root/.pnpm-store", packages: "pnpm@" + said("pnpm", "10"),
			install: "pnpm install --frozen-lockfile --store-dir /root/.pnpm-store", prune: "CI=true pnpm prune --prod --store-dir /root/.pnpm-store",
		}
	case d.has("yarn.lock"):
		return d.yarn(said("yarn", ""))
	case d.has("package-lock.json"):
		npm.lock = "package-lock.json"
	case d.has("npm-shrinkwrap.json"):
		npm.lock = "npm-shrinkwrap.json"
	default:
		npm.install = "npm install --no-audit --no-fund"
	}
	return npm
}

// yarn is one of two programs of that name, which its lock file tells apart.
func (d detector) yarn(version string) nodeTool {
	lock, err := d.read("yarn.lock")
	if err != nil || !bytes.Contains(lock, []byte("__metadata:")) {
		if version == "" {
			version = "1"
		}
		return nodeTool{
			name: "yarn", lock: "yarn.lock", cache: "/root/.yarn-cache", packages: "yarn@" + version,
			install: "yarn install --frozen-lockfile --cache-folder /root/.yarn-cache",
			prune:   "yarn install --frozen-lockfile --production --ignore-scripts --prefer-offline --cache-folder /root/.yarn-cache",
		}
	}
	if version == "" {
		version = "4"
	}
	return nodeTool{
		name: "yarn", lock: "yarn.lock", cache: "/root/.yarn-berry", packages: "@yarnpkg/cli-dist@" + version, whole: true,
		install: "YARN_NODE_LINKER=node-modules YARN_GLOBAL_FOLDER=/root/.yarn-berry yarn install --immutable",
	}
}

// node plans a package.json: its build script runs, then its start script is the web process; what has no start but
// builds files, or has them, is a static site.
func (d detector) node() (Plan, error) {
	data, err := d.read("package.json")
	if err != nil {
		return Plan{}, err
	}
	var pkg packageFile
	if err := json.Unmarshal(data, &pkg); err != nil {
		return Plan{}, fmt.Errorf("package.json is not JSON: %w", err)
	}
	tool := d.nodeTool(pkg)
	start, builds := d.nodeStart(pkg, tool), pkg.Scripts["build"] != ""
	plan := Plan{Start: start, Why: " (" + tool.name + ")"}
	if start == "" && !builds {
		if site := d.site(); site != "" {
			return Plan{Kind: Static, Folder: site, Why: fmt.Sprintf(" (%s) without the scripts start and build, and a folder %s: static files", tool.name, site)}, nil
		}
		return Plan{}, errors.New("package.json has no script start, no script build and no main: say how to start it with \"scripts\": {\"start\": …}, or write a Procfile")
	}
	var b strings.Builder
	base := d.base(Node, nodeImage)
	fmt.Fprintf(&b, "FROM %s AS build\nWORKDIR /app\n%s", base, d.args())
	cache := []string{"type=cache,target=" + tool.cache + ",sharing=locked"}
	if tool.packages != "" {
		b.WriteString(d.run(nil, fmt.Sprintf("command -v %s >/dev/null || npm install --global --no-audit --no-fund %s", tool.name, tool.packages)))
	}
	if tool.whole || pkg.needsSource() || d.has("pnpm-workspace.yaml") {
		b.WriteString("COPY . .\n" + d.run(cache, tool.install))
	} else {
		b.WriteString(d.manifests(tool) + d.run(cache, tool.install) + "COPY . .\n")
	}
	if builds {
		b.WriteString(d.run(cache, tool.name+" run build"))
	}
	if start == "" {
		b.WriteString(staticStage)
		plan.Dockerfile, plan.NeedsServer = b.String(), true
		plan.Why += " with a script build and no script start: what it makes in " + strings.Join(siteFolders(), ", ") + " is served as static files"
		return plan, nil
	}
	if tool.prune != "" {
		b.WriteString(d.run(cache, tool.prune))
	}
	b.WriteString("RUN rm -rf " + strings.Join(nodeNotes(), " ") + "\n")
	fmt.Fprintf(&b, "FROM %s\nWORKDIR /app\nENV NODE_ENV=production HOME=/tmp PATH=/app/node_modules/.bin:$PATH\nCOPY --from=build /app /app\nUSER 65532:65532\n", base)
	plan.Dockerfile = b.String() + command(start)
	return plan, nil
}

// nodeNotes are files in which package managers note the time: without them the same source gives the same image.
func nodeNotes() []string {
	return []string{
		"node_modules/.modules.yaml", "node_modules/.pnpm-workspace-state*", "node_modules/.yarn-state.yml", "node_modules/.cache",
		".yarn/install-state.gz",
	}
}

// manifests copies what the package manager needs, so that another file's change does not install anew.
func (d detector) manifests(tool nodeTool) string {
	files := []string{"package.json"}
	for _, name := range []string{tool.lock, ".npmrc", ".yarnrc"} {
		if name != "" && d.has(name) {
			files = append(files, name)
		}
	}
	return "COPY " + strings.Join(files, " ") + " ./\n"
}

// staticStage takes the built files, wherever the tool put them.
const staticStage = `RUN for dir in dist build out public site; do if test -f "$dir/index.html"; then mv "$dir" /site; exit 0; fi; done; echo "the build left no index.html in dist, build, out, public or site" >&2; exit 1
FROM scratch
COPY --from=gantry-static /gantry-static /gantry-static
COPY --from=build /site /site
USER 65532:65532
ENTRYPOINT ["/gantry-static"]
CMD ["-dir", "/site", "-spa"]
`

// nodeStart is the command of the web process. What "main" names may be a library's, so it does not count beside a build.
func (d detector) nodeStart(pkg packageFile, tool nodeTool) string {
	switch {
	case d.web != "":
		return d.web
	case pkg.Scripts["start"] != "" && tool.name == "npm":
		return "npm start"
	case pkg.Scripts["start"] != "":
		return pkg.Scripts["start"] // the tool is not in the image that runs
	case d.has("server.js"):
		return "node server.js" // npm's own default
	case pkg.Scripts["build"] != "":
		return ""
	}
	for _, name := range []string{pkg.Main, "index.js", "app.js"} {
		if name != "" && d.has(name) {
			return "node " + path.Clean(name)
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
