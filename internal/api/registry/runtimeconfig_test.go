package registry

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

func newRegistry(t testing.TB, config RuntimeConfig) (*Registry, error) {
	t.Helper()
	return New(Options{ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"), RuntimeConfig: config})
}

func TestRuntimeConfig(t *testing.T) {
	deployments := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	pods := schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	slices := schema.GroupVersionResource{Group: "resource.k8s.io", Version: "v1beta2", Resource: "resourceslices"}
	taints := schema.GroupVersionResource{Group: "resource.k8s.io", Version: "v1alpha3", Resource: "devicetaintrules"}
	for name, c := range map[string]struct {
		config  RuntimeConfig
		on, off []schema.GroupVersionResource
	}{
		"none":                   {nil, []schema.GroupVersionResource{deployments, pods}, []schema.GroupVersionResource{slices, taints}},
		"all":                    {RuntimeConfig{"api/all": ""}, []schema.GroupVersionResource{deployments, pods, slices, taints}, nil},
		"beta":                   {RuntimeConfig{"api/beta": "true"}, []schema.GroupVersionResource{pods, slices}, []schema.GroupVersionResource{taints}},
		"all but alpha":          {RuntimeConfig{"api/all": "true", "api/alpha": "false"}, []schema.GroupVersionResource{pods, slices}, []schema.GroupVersionResource{taints}},
		"a version":              {RuntimeConfig{"apps/v1": "false", "api/ga": "true"}, []schema.GroupVersionResource{pods}, []schema.GroupVersionResource{deployments}},
		"a resource":             {RuntimeConfig{"resource.k8s.io/v1beta2/resourceslices": "true"}, []schema.GroupVersionResource{slices}, []schema.GroupVersionResource{taints}},
		"a resource of version":  {RuntimeConfig{"apps/v1": "false", "apps/v1/deployments": "true"}, []schema.GroupVersionResource{deployments}, nil},
		"the nameless group":     {RuntimeConfig{"v1": "false"}, []schema.GroupVersionResource{deployments}, []schema.GroupVersionResource{pods}},
		"the nameless group too": {RuntimeConfig{"api/v1/pods": "false"}, []schema.GroupVersionResource{deployments}, []schema.GroupVersionResource{pods}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := newRegistry(t, c.config)
			if err != nil {
				t.Fatal(err)
			}
			for _, resource := range c.on {
				if res := r.Resource(resource); res == nil || res.Hidden {
					t.Errorf("%s is not served", resource)
				}
			}
			for _, resource := range c.off {
				res := r.Resource(resource)
				if res != nil && !res.Hidden {
					t.Errorf("%s is served", resource)
				}
				if res == nil && isStable(resource.Version) {
					t.Errorf("%s is gone for components of this process too", resource)
				}
			}
		})
	}
}

func TestRuntimeConfigErrors(t *testing.T) {
	for key, want := range map[string]string{
		"apps/v2":             "there is no such version",
		"nowhere.example/v1":  "there is no such group",
		"apps":                "want GROUP/VERSION",
		"apps/v1/Deployments": "lower-case plural",
	} {
		if _, err := newRegistry(t, RuntimeConfig{key: "true"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New with %s: %v; want an error with %q", key, err, want)
		}
	}
	if _, err := newRegistry(t, RuntimeConfig{"api/all": "maybe"}); err == nil {
		t.Error("New takes api/all=maybe")
	}
}

// TestEachTableOnce looks at what the store is asked to keep: each table once, whatever is served.
func TestEachTableOnce(t *testing.T) {
	for _, config := range []RuntimeConfig{nil, {"api/all": "true"}, {"api/ga": "false", "api/beta": "true"}} {
		r, err := newRegistry(t, config)
		if err != nil {
			t.Fatal(err)
		}
		names, prefixes := map[string]bool{}, map[string]bool{}
		for _, kind := range r.Kinds() {
			if names[kind.Name] || prefixes[kind.Prefix] {
				t.Errorf("%v: table %s at %s is there twice", config, kind.Name, kind.Prefix)
			}
			names[kind.Name], prefixes[kind.Prefix] = true, true
		}
		for _, res := range r.Resources() {
			if res.def.computed == nil && !names[res.def.stored.Name] {
				t.Errorf("%v: %s has no table", config, res.Info.Resource)
			}
		}
	}
}
