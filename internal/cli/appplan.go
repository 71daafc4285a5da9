package cli

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
)

// appPlan is what a deploy would change.
type appPlan struct {
	App     string       `json:"app"`
	Project string       `json:"project"`
	New     bool         `json:"new"`
	Release bool         `json:"release"` // whether one would be made
	Build   string       `json:"build,omitempty"`
	Changes []planChange `json:"changes"`
}

// planChange is one value that would change.
type planChange struct {
	Path   string `json:"path"`
	Before any    `json:"before,omitempty"`
	After  any    `json:"after,omitempty"`
}

// planDeploy says what deploy would change, without doing it.
func (a *app) planDeploy(cmd *cobra.Command, f *deployFlags, what string) error {
	t, _, err := a.connect(cmd, &f.appFlags)
	if err != nil {
		return err
	}
	requests, err := a.requests(cmd.Context(), t, f, what)
	if err != nil {
		return err
	}
	plans := make([]appPlan, 0, len(requests))
	for _, request := range requests {
		engine, err := deploy.New(deploy.Options{Cluster: t.cluster, Sink: func(e deploy.Event) {
			if e.Type == deploy.EventWarning {
				a.warn("%s", e.Text)
			}
		}})
		if err != nil {
			return err
		}
		before, after, err := engine.Plan(cmd.Context(), request)
		if err != nil {
			return err
		}
		plans = append(plans, planOf(&request, before, after))
	}
	if a.json {
		return a.printJSON(plans)
	}
	for _, plan := range plans {
		if err := a.printf("%s", plan.text()); err != nil {
			return err
		}
	}
	return nil
}

// planOf is pure.
func planOf(request *deploy.Request, before, after *v1alpha1.App) appPlan {
	plan := appPlan{App: after.Name, Project: after.Namespace, New: before == nil, Changes: []planChange{}}
	old := map[string]any{}
	if before != nil {
		old = flatten(before.Spec)
	}
	now := flatten(after.Spec)
	if request.Tree != nil {
		plan.Build = "from " + request.Tree.Origin
		if request.Tree.Commit != "" {
			plan.Build += " at " + shortCommit(request.Tree.Commit)
		}
	}
	if build := request.Spec.Build; request.Spec.Image == "" && build != nil && build.Git != nil {
		plan.Build = "from " + deploy.GitOrigin(build)
		if build.Git.Ref != "" {
			plan.Build += " at " + build.Git.Ref
		}
	}
	paths := sortedKeys(old)
	for path := range now {
		if _, both := old[path]; !both {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	for _, path := range paths {
		if path == "source" || strings.HasPrefix(path, "source.") || reflect.DeepEqual(old[path], now[path]) {
			continue
		}
		plan.Changes = append(plan.Changes, planChange{path, old[path], now[path]})
	}
	plan.Release = before == nil || plan.Build != "" || deploy.MakesRelease(&before.Spec, &after.Spec)
	return plan
}

// flatten writes a spec as values by their paths: "processes.web.port".
func flatten(spec v1alpha1.AppSpec) map[string]any {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil // it came out of JSON
	}
	var plain any
	if err := json.Unmarshal(text, &plain); err != nil {
		return nil
	}
	out := map[string]any{}
	flattenInto(out, "", plain)
	return out
}

func flattenInto(out map[string]any, path string, value any) {
	switch v := value.(type) {
	case map[string]any:
		if len(v) == 0 && path != "" {
			out[path] = v
		}
		for key, inner := range v {
			flattenInto(out, strings.TrimPrefix(path+"."+key, "."), inner)
		}
	case []any:
		for i, inner := range v {
			flattenInto(out, path+"["+strconv.Itoa(i)+"]", inner)
		}
	default:
		out[path] = v
	}
}

func (p appPlan) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s in project %s", p.App, p.Project)
	switch {
	case p.New:
		b.WriteString(": a new application\n")
	case len(p.Changes) == 0 && p.Build == "":
		b.WriteString(": nothing would change\n")
		return b.String()
	default:
		b.WriteString("\n")
	}
	if p.Build != "" {
		fmt.Fprintf(&b, "  build %s\n", p.Build)
	}
	for _, c := range p.Changes {
		switch {
		case c.Before == nil:
			fmt.Fprintf(&b, "  + %s: %v\n", c.Path, c.After)
		case c.After == nil:
			fmt.Fprintf(&b, "  - %s: %v\n", c.Path, c.Before)
		default:
			fmt.Fprintf(&b, "  ~ %s: %v → %v\n", c.Path, c.Before, c.After)
		}
	}
	switch {
	case p.Build != "" && !p.New:
		b.WriteString("a release would be made, unless the image comes out the same\n")
	case p.Release:
		b.WriteString("a release would be made\n")
	default:
		b.WriteString("no release would be made: this acts at once\n")
	}
	return b.String()
}
