package appfile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"gantry.dev/gantry/internal/platform/build/language"
)

// Template returns a gantry.yaml for a folder in which something was found: what is known stands in it, what may be wanted next
// is there as comments.
func Template(name string, found language.Plan) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "# yaml-language-server: $schema=%s\n# Every key: https://gantry.dev/docs/gantry-yaml\n\nname: %s\n", SchemaURL, name)
	switch {
	case found.Main != "" && found.Main != ".":
		fmt.Fprintf(&b, "build: %s   # the program\n", found.Main)
	case found.Kind != "":
		fmt.Fprintf(&b, "# build: .   # %s\n", found.Why)
	default:
		b.WriteString("# image: ghcr.io/acme/shop:1.4   # or have it built: leave this out and add a Dockerfile, go.mod, package.json …\n")
	}
	b.WriteString("\n# port: 8080   # where it listens; also given to it as $PORT\n")
	b.WriteString("# health: /healthz   # answers 200 when it can take requests\n# scale: 2\n")
	processes := maps.Clone(found.Processes)
	if release := processes["release"]; release != "" {
		fmt.Fprintf(&b, "\nrelease: %q   # once, before a release gets requests\n", release)
		delete(processes, "release")
	} else {
		b.WriteString("\n# release: ./migrate   # once, before a release gets requests\n")
	}
	b.WriteString("\n# env:\n#   LOG_LEVEL: info\n# secrets: [STRIPE_KEY]   # set them with: gantry secret set STRIPE_KEY\n")
	b.WriteString("\n# addons:\n#   db: postgres   # sets DATABASE_URL\n\n# domains: [shop.example.com]\n")
	if len(processes) > 0 {
		b.WriteString("\n# processes, from the Procfile:\n")
		for _, process := range slices.Sorted(maps.Keys(processes)) {
			fmt.Fprintf(&b, "#   %s: %s\n", process, processes[process])
		}
	} else {
		b.WriteString("\n# processes:\n#   worker: ./shop work\n#   report: {command: ./shop report, schedule: \"0 3 * * *\"}\n")
	}
	b.WriteString("\n# stages:   # gantry deploy --stage staging\n#   staging: {scale: 1}\n")
	return []byte(b.String())
}
