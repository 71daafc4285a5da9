package compile_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gantry.dev/gantry/internal/network/gateway"
	"gantry.dev/gantry/internal/network/routes/compile"
)

var update = flag.Bool("update", false, "write the golden files anew")

// load puts the objects of files into an Objects.
func load(t *testing.T, files ...string) *compile.Objects {
	t.Helper()
	known := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, gatewayv1.Install} {
		if err := add(known); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(known).UniversalDeserializer()
	objects := compile.NewObjects()
	for _, file := range files {
		data, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		reader := yaml.NewYAMLReader(bufioReader(data))
		for {
			doc, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			obj, _, err := decoder.Decode(doc, nil, nil)
			if err != nil {
				t.Fatalf("%s: %v\n%s", file, err, doc)
			}
			objects.Put(nil, obj.(client.Object))
		}
	}
	return objects
}

var options = compile.Options{HTTPPort: 80, HTTPSPort: 443}

// TestGolden holds the tables and status of each file of testdata against what was looked at once.
func TestGolden(t *testing.T) {
	for _, name := range []string{"gateway", "references", "ingress", "taken"} {
		t.Run(name, func(t *testing.T) {
			got := show(t, compile.Compile(load(t, "base.yaml", name+".yaml"), options))
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("differs from %s (-want +got):\n%s", file, diff)
			}
		})
	}
}

// show is a Result as a person reads it.
func show(t *testing.T, r *compile.Result) string {
	t.Helper()
	var out bytes.Buffer
	line := func(label string, v any) {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s %s\n", label, data)
	}
	line("settings", r.Table.Settings)
	for _, l := range r.Table.Listeners {
		line("listener", l)
	}
	for _, owner := range slices.Sorted(maps.Keys(r.Table.Routes)) {
		for _, route := range r.Table.Routes[owner] {
			route.Created = 0
			line("route "+owner, route)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(r.Table.Services)) {
		line("service "+id, r.Table.Services[id])
	}
	for _, key := range keys(r.Gateways) {
		s := r.Gateways[key]
		conditions(&out, "gateway "+key.String(), s.Conditions)
		for _, l := range s.Listeners {
			kinds := ""
			for _, k := range l.SupportedKinds {
				kinds += " " + string(k.Kind)
			}
			conditions(&out, fmt.Sprintf("gateway %s listener %s (routes %d, kinds%s)", key, l.Name, l.AttachedRoutes, kinds), l.Conditions)
		}
	}
	for _, key := range keys(r.HTTPRoutes) {
		for i, p := range r.HTTPRoutes[key] {
			conditions(&out, fmt.Sprintf("httproute %s parent %d", key, i), p.Conditions)
		}
	}
	for _, key := range keys(r.GRPCRoutes) {
		for i, p := range r.GRPCRoutes[key] {
			conditions(&out, fmt.Sprintf("grpcroute %s parent %d", key, i), p.Conditions)
		}
	}
	line("addresses", r.Addresses)
	line("hosts", r.Hosts)
	line("trouble", r.Trouble)
	return out.String()
}

func conditions(out io.Writer, of string, list []metav1.Condition) {
	for _, c := range list {
		fmt.Fprintf(out, "%s: %s=%s %s: %s\n", of, c.Type, c.Status, c.Reason, c.Message)
	}
}

func keys[V any](m map[compile.Key]V) []compile.Key {
	return slices.SortedFunc(maps.Keys(m), func(a, b compile.Key) int { return strings.Compare(a.String(), b.String()) })
}

// TestDiff: a delta names what changed and nothing else.
func TestDiff(t *testing.T) {
	objects := load(t, "base.yaml", "gateway.yaml")
	before := compile.Compile(objects, options).Table
	same := compile.Compile(objects, options).Table
	if d := compile.Diff(&before, &same); d != nil {
		t.Errorf("nothing changed, but the delta is %+v", d)
	}
	route := objects.HTTPRoutes[compile.Key{Namespace: "shop", Name: "section"}]
	objects.Put(route, nil)
	next := compile.Compile(objects, options).Table
	want := &gateway.Delta{Routes: map[string][]gateway.Route{"HTTPRoute/shop/section": nil}}
	if diff := cmp.Diff(want, compile.Diff(&before, &next)); diff != "" {
		t.Errorf("a route is gone (-want +got):\n%s", diff)
	}
	for _, slice := range objects.Slices[compile.Key{Namespace: "shop", Name: "web"}] {
		changed := slice.DeepCopy()
		changed.Endpoints = changed.Endpoints[:1]
		objects.Put(slice, changed)
	}
	if got := objects.Endpoints("shop/web:80"); len(got) != 1 || got[0].Address.String() != "10.244.0.5:8080" {
		t.Errorf("endpoints are %v", got)
	}
}

// TestMatters: a controller's own writes lead to no new work.
func TestMatters(t *testing.T) {
	objects := load(t, "base.yaml", "gateway.yaml")
	result := compile.Compile(objects, options)
	route := objects.HTTPRoutes[compile.Key{Namespace: "shop", Name: "section"}]
	status := route.DeepCopy()
	status.Status.Parents = result.HTTPRoutes[compile.Key{Namespace: "shop", Name: "section"}]
	changed := route.DeepCopy()
	changed.Generation++
	svc := objects.Services[compile.Key{Namespace: "shop", Name: "web"}]
	woken := svc.DeepCopy()
	woken.Annotations[compile.AnnotationWake] = "now"
	awake := svc.DeepCopy()
	delete(awake.Annotations, compile.AnnotationHold)
	unused := objects.Services[compile.Key{Namespace: "other", Name: "api"}]
	for name, tc := range map[string]struct {
		old, current client.Object
		want         bool
	}{
		"status":         {route, status, false},
		"spec":           {route, changed, true},
		"deletion":       {route, nil, true},
		"wake":           {svc, woken, false},
		"hold":           {svc, awake, true},
		"unused service": {unused, nil, false},
	} {
		if got := compile.Matters(result, tc.old, tc.current); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func bufioReader(data []byte) *bufio.Reader { return bufio.NewReader(bytes.NewReader(data)) }
