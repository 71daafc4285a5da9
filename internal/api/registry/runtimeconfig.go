package registry

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/metrics/pkg/apis/metrics"
)

// RuntimeConfig switches built-in versions and resources on and off, as kube-apiserver's
// --runtime-config does. Keys, the later ones beating the earlier: "api/all", "api/ga", "api/beta",
// "api/alpha"; "v1" and "apps/v1"; "apps/v1/deployments". Values are "true", "false", or "" for true.
// Without it the stable versions are served.
type RuntimeConfig map[string]string

// stability says which versions a key of RuntimeConfig that starts with "api/" means.
type stability struct {
	key     string
	matches func(version string) bool
}

func stabilities() []stability {
	match := func(pattern string) func(string) bool { return regexp.MustCompile(pattern).MatchString }
	return []stability{
		{"api/all", func(string) bool { return true }},
		{"api/ga", match(`^v\d+$`)}, {"api/beta", match(`^v\d+beta\d+$`)}, {"api/alpha", match(`^v\d+alpha\d+$`)},
	}
}

// isStable reports whether a version is served unless it is switched off.
func isStable(version string) bool {
	return !strings.Contains(version, "alpha") && !strings.Contains(version, "beta")
}

// serving decides by a RuntimeConfig.
type serving struct {
	byStability []func(version string) (on, decided bool)
	versions    map[schema.GroupVersion]bool
	resources   map[schema.GroupVersionResource]bool
}

// compileRuntimeConfig checks config against what there is.
func compileRuntimeConfig(config RuntimeConfig) (*serving, error) {
	s := &serving{versions: map[schema.GroupVersion]bool{}, resources: map[schema.GroupVersionResource]bool{}}
	rest := maps.Clone(config)
	for _, stability := range stabilities() {
		value, there := rest[stability.key]
		if !there {
			continue
		}
		on, err := parseSwitch(stability.key, value)
		if err != nil {
			return nil, err
		}
		s.byStability = append(s.byStability, func(version string) (bool, bool) { return on, stability.matches(version) })
		delete(rest, stability.key)
	}
	for _, key := range slices.Sorted(maps.Keys(rest)) {
		if err := s.add(key, rest[key]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func parseSwitch(key, value string) (bool, error) {
	if value == "" {
		return true, nil
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return false, fmt.Errorf("registry: runtime-config %s=%s: want true or false", key, value)
	}
	return on, nil
}

// add reads one key that names a version or a resource.
func (s *serving) add(key, value string) error {
	on, err := parseSwitch(key, value)
	if err != nil {
		return err
	}
	parts := strings.Split(strings.TrimPrefix(key, "api/"), "/")
	if parts[0] == "v1" { // the group without a name
		parts = append([]string{""}, parts...)
	}
	if len(parts) < 2 || len(parts) > 3 {
		return fmt.Errorf("registry: runtime-config %s: want GROUP/VERSION, GROUP/VERSION/RESOURCE, api/all, api/ga, api/beta or api/alpha", key)
	}
	gv := schema.GroupVersion{Group: parts[0], Version: parts[1]}
	if !legacyscheme.Scheme.IsVersionRegistered(gv) {
		what := "group"
		if legacyscheme.Scheme.IsGroupRegistered(gv.Group) {
			what = "version"
		}
		return fmt.Errorf("registry: runtime-config %s: there is no such %s", key, what)
	}
	if len(parts) == 2 {
		s.versions[gv] = on
		return nil
	}
	if parts[2] != strings.ToLower(parts[2]) {
		return fmt.Errorf("registry: runtime-config %s: a resource is named by its lower-case plural", key)
	}
	s.resources[gv.WithResource(parts[2])] = on
	return nil
}

// on reports whether the resource is served.
func (s *serving) on(resource schema.GroupVersionResource) bool {
	if on, named := s.resources[resource]; named {
		return on
	}
	if on, named := s.versions[resource.GroupVersion()]; named {
		return on
	}
	on := isStable(resource.Version) || resource.Group == metrics.GroupName // there only if it is wanted, and has no stable version
	for _, decide := range s.byStability {
		if value, decided := decide(resource.Version); decided {
			on = value
		}
	}
	return on
}

// Serves reports whether clients see the resource, if there is one of that name.
func (r *Registry) Serves(resource schema.GroupVersionResource) bool { return r.serving.on(resource) }

// enabled lists the definitions of what is served. A stable version that is switched off stays for
// the components of this process, hidden from clients.
func (r *Registry) enabled() []*definition {
	var kept []*definition
	for _, d := range r.builtins() {
		primary := true
		for _, version := range append([]*definition{d}, d.also...) {
			version.info.Hidden = !r.serving.on(version.info.Resource)
			if version.info.Hidden && !isStable(version.info.Resource.Version) {
				continue
			}
			version.info.Primary, primary = primary, false
			kept = append(kept, version)
		}
	}
	return kept
}
