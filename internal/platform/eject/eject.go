package eject

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/addon"
	"gantry.dev/gantry/internal/platform/app"
	"gantry.dev/gantry/internal/platform/app/render"
)

// ownRegistry is what images of a cluster's own registry begin with: nobody else finds them.
const ownRegistry = "registry.gantry.internal/"

// Input is what Render looks at.
type Input struct {
	App      *v1alpha1.App
	Release  *v1alpha1.Release              // the one that serves; nil takes the App's spec
	Claims   []corev1.PersistentVolumeClaim // of the application
	Settings map[string]string              // of the platform
	Image    string                         // instead of the release's; "" keeps that
}

// Output is an application as plain objects.
type Output struct {
	Objects []*unstructured.Unstructured // in the order to apply them
	Notes   []string                     // what is to be done or known, a sentence or paragraph each
	Secrets map[string][]string          // keys by the name of Secrets that the objects need and that are not among them
}

// Render makes the objects.
func Render(in Input) (Output, error) {
	one := in.App.DeepCopy()
	version := &render.Version{Number: max(one.Status.Latest, 1), Content: one.Spec.DeepCopy(), Ports: map[string]int32{}}
	if in.Release != nil {
		version.Number, version.Content = in.Release.Spec.Number, in.Release.Spec.Content.DeepCopy()
	}
	for name, process := range one.Status.Processes {
		version.Ports[name] = process.Port
	}
	version.Content.Image = cmp.Or(in.Image, version.Content.Image)
	one.Spec.Restarts, one.Spec.Suspended = 0, false
	addons := map[string]v1alpha1.Addon{}
	for name, of := range version.Content.Addons {
		if now, there := one.Spec.Addons[name]; there {
			of = now // all but the type acts at once
		}
		addons[name] = of
	}
	ejected, err := addon.Eject(one, addons, in.Claims, in.Settings)
	if err != nil {
		return Output{}, err
	}
	out := Output{Secrets: map[string][]string{}}
	var objects []client.Object
	for _, name := range slices.Sorted(maps.Keys(ejected)) {
		objects = append(objects, ejected[name].Objects...)
		out.Secrets[ejected[name].Secret] = ejected[name].Keys
	}
	if len(version.Content.Secrets) > 0 {
		out.Secrets[v1alpha1.SecretName(one.Name)] = slices.Sorted(slices.Values(version.Content.Secrets))
	}
	route := render.Input{App: one, IngressClass: in.Settings[v1alpha1.PlatformKeyIngressClass], Issuer: in.Settings[v1alpha1.PlatformKeyIssuer]}
	if route.Hosts, route.Redirects = hosts(one); len(route.Hosts) > 0 {
		route.Routing = render.RouteIngress
	}
	objects = append(objects, render.Eject(route, version)...)
	if out.Objects, err = plain(objects); err != nil {
		return Output{}, err
	}
	out.Notes = notes(one, version, out.Secrets, len(route.Hosts) > 0)
	return out, nil
}

// hosts are the names of an application's own, and those that it was given.
func hosts(one *v1alpha1.App) (served []string, redirects []v1alpha1.Domain) {
	for _, domain := range one.Spec.Domains {
		if domain.Redirect != "" {
			redirects = append(redirects, domain)
		} else {
			served = append(served, domain.Name)
		}
	}
	for _, text := range one.Status.URLs {
		at, err := url.Parse(text)
		if err != nil || at.Hostname() == "" || slices.Contains(served, at.Hostname()) {
			continue
		}
		if _, err := netip.ParseAddr(at.Hostname()); err != nil {
			served = append(served, at.Hostname())
		}
	}
	return served, redirects
}

// plain gives objects their kinds, and takes from them what only Gantry reads.
func plain(objects []client.Object) ([]*unstructured.Unstructured, error) {
	known, err := app.NewScheme()
	if err != nil {
		return nil, err
	}
	var out []*unstructured.Unstructured
	for _, object := range objects {
		gvks, _, err := known.ObjectKinds(object)
		if err != nil {
			return nil, fmt.Errorf("encoding the %T %s: %w", object, object.GetName(), err)
		}
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
		if err != nil {
			return nil, fmt.Errorf("encoding the %T %s: %w", object, object.GetName(), err)
		}
		u := &unstructured.Unstructured{Object: content}
		u.SetGroupVersionKind(gvks[0])
		for _, path := range [][]string{
			{"status"}, {"metadata", "creationTimestamp"}, {"spec", "template", "metadata", "creationTimestamp"},
			{"spec", "jobTemplate", "metadata", "creationTimestamp"}, {"spec", "jobTemplate", "spec", "template", "metadata", "creationTimestamp"},
		} {
			unstructured.RemoveNestedField(u.Object, path...)
		}
		out = append(out, u)
	}
	return out, nil
}

// notes are what a reader has to do and to know.
func notes(one *v1alpha1.App, version *render.Version, secrets map[string][]string, routed bool) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		out = append(out, fmt.Sprintf("The Secret %s is not in here. It has to be there, with %s, before the rest: kubectl get secret %s -n %s -o yaml shows it where the application runs now.",
			name, strings.Join(secrets[name], ", "), name, one.Namespace))
	}
	if image := version.Content.Image; strings.HasPrefix(image, ownRegistry) {
		out = append(out, "The image "+image+" is in the registry of the cluster that it comes from, where no other cluster finds it: push it elsewhere, and name that with --image.")
	}
	if version.Content.Release != nil {
		out = append(out, fmt.Sprintf("The release command is the Job %s. Nothing makes the processes wait for it: apply it first where they cannot run without. For the next release it needs another name.",
			render.ReleaseJobName(one.Name, version.Number)))
	}
	for _, name := range slices.Sorted(maps.Keys(version.Content.Addons)) {
		out = append(out, "The volume of "+name+" begins empty on another cluster: gantry addon dump "+name+" has the data.")
	}
	if rollout := one.Spec.Rollout; rollout != nil && rollout.Strategy == v1alpha1.RolloutCanary {
		out = append(out, "Releases were canaries. A Deployment rolls them out pod by pod, and nothing goes back by itself.")
	}
	for _, name := range slices.Sorted(maps.Keys(render.Processes(version.Content))) {
		process := render.Processes(version.Content)[name]
		if now, ok := render.Processes(&one.Spec)[name]; ok {
			process.Scale = now.Scale
		}
		if scale := render.ScaleOf(process); process.Schedule == "" && (scale.Min == 0 || scale.Counted) {
			out = append(out, "The process "+name+" slept, or was scaled, by what the gateway counts. Here it does not sleep, and is scaled by CPU and memory only.")
		}
		if process.Stop != nil && process.Stop.Signal != "" {
			out = append(out, "The process "+name+" is ended by "+process.Stop.Signal+", which needs the feature ContainerStopSignals; without it the image's own signal is used.")
		}
	}
	if _, web := render.Processes(version.Content)[v1alpha1.WebProcess]; web && !routed {
		out = append(out, "No host name is known, so there is no Ingress: requests reach the Service "+v1alpha1.ObjectName(one.Name, v1alpha1.WebProcess)+" in the cluster.")
	}
	return out
}
