package render

import (
	"maps"
	"slices"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
)

// LabelManagedBy and ManagedBy mark everything made here.
const (
	LabelManagedBy = "app.kubernetes.io/managed-by"
	ManagedBy      = "gantry"
)

// Tracks of pods, the values of v1alpha1.LabelTrack.
const (
	TrackStable = "stable"
	TrackCanary = "canary"
)

// Ways to route requests to an application.
const (
	RouteGateway = "gateway" // by an HTTPRoute on the platform's Gateway
	RouteIngress = "ingress" // by an Ingress; a canary gets no share of its own
	RouteNone    = ""        // not at all
)

// Version is a release as far as objects follow from it.
type Version struct {
	Number  int64
	Content *v1alpha1.AppSpec
	// Ports are where processes were found to listen, by name.
	Ports map[string]int32
}

// Canary is a release that gets a part of the requests.
type Canary struct {
	Version  *Version
	Weight   int32 // percent
	Replicas int32
}

// Input is everything that the objects of an application follow from.
type Input struct {
	App *v1alpha1.App
	// Processes says which version each process runs.
	Processes map[string]*Version
	// Replicas is how many pods a process has; without an entry it is the least number of its scale, at least one.
	Replicas map[string]int32
	Canary   *Canary // nil: none
	// Stopped ends all processes and keeps everything else.
	Stopped bool

	Routing string
	// Hosts are the host names that the web process answers to; Open are those of them that are also served without TLS.
	Hosts []string
	// Redirects are host names that lead to another.
	Redirects []v1alpha1.Domain
	// Listener is the name of a listener of the Gateway where every host name is this application's; empty is none.
	Listener string
	// IngressClass is that of an Ingress; empty leaves it to the cluster's default. Issuer is a ClusterIssuer of cert-manager that
	// makes its certificate; empty is none.
	IngressClass, Issuer string
	// Hold is for how long a gateway keeps a request while no pod runs, such as "60s"; empty asks for nothing.
	Hold string
	// Metrics says that the cluster counts requests by Service.
	Metrics bool
	// Unowned leaves out that the objects belong to the App, for a cluster without it.
	Unowned bool
}

// Eject returns the objects of a version of an application as if it were deployed for the first time, for a cluster that knows
// nothing of Gantry: they belong to nobody, nothing sleeps, and the release command is a Job that tries until its database is there.
// Of in it uses App, Routing, Hosts, Redirects, IngressClass and Issuer.
func Eject(in Input, version *Version) []client.Object {
	in.Processes, in.Replicas, in.Unowned = map[string]*Version{}, map[string]int32{}, true
	for name := range Processes(version.Content) {
		in.Processes[name] = version
		in.Replicas[name] = max(in.scale(name, version).Min, 1)
	}
	out := Objects(in)
	if version.Content.Release == nil {
		return out
	}
	job := ReleaseJob(in.App, version)
	job.OwnerReferences = nil
	job.Spec.BackoffLimit = new(int32(6)) // Kubernetes' own default
	job.Spec.PodFailurePolicy, job.Spec.Template.Annotations = nil, nil
	return append(out, job)
}

// Processes are the processes of an application: those it names, or one called web.
func Processes(spec *v1alpha1.AppSpec) map[string]v1alpha1.Process {
	if len(spec.Processes) > 0 {
		return spec.Processes
	}
	return map[string]v1alpha1.Process{v1alpha1.WebProcess: {}}
}

// Objects returns every object of an application, in the order in which they should be made.
func Objects(in Input) []client.Object {
	out := []client.Object{in.serviceAccount()}
	for _, claim := range in.claims() {
		out = append(out, claim)
	}
	for _, name := range slices.Sorted(maps.Keys(in.Processes)) {
		out = append(out, in.process(name)...)
	}
	if in.Canary != nil {
		out = append(out, in.canaryDeployment(), in.service(v1alpha1.WebProcess, in.Canary.Version, TrackCanary))
	}
	return append(out, in.routes()...)
}

// process returns the objects of one process.
func (in Input) process(name string) []client.Object {
	version := in.Processes[name]
	process, ok := Processes(version.Content)[name]
	if !ok {
		return nil
	}
	if process.Schedule != "" {
		return []client.Object{in.cronJob(name, version, process)}
	}
	out := []client.Object{in.deployment(name, version, process)}
	if Port(version, name) > 0 {
		out = append(out, in.service(name, version, TrackStable))
	}
	scale := in.scale(name, version)
	if in.Stopped {
		return out
	}
	if budget := in.budget(name, scale); budget != nil {
		out = append(out, budget)
	}
	if in.Replicas[name] > 0 || scale.Min > 0 {
		if scaler := in.autoscaler(name, process, scale); scaler != nil {
			out = append(out, scaler)
		}
	}
	return out
}

// meta is the metadata of an object of a process; process may be empty.
func (in Input) meta(name, process string) metav1.ObjectMeta {
	out := metav1.ObjectMeta{
		Namespace: in.App.Namespace, Name: name,
		Labels: map[string]string{v1alpha1.LabelApp: in.App.Name, LabelManagedBy: ManagedBy},
	}
	if process != "" {
		out.Labels[v1alpha1.LabelProcess] = process
	}
	if !in.Unowned {
		out.OwnerReferences = []metav1.OwnerReference{Owner(in.App)}
	}
	return out
}

// Owner is a reference to the App that controls an object.
func Owner(app *v1alpha1.App) metav1.OwnerReference {
	return *metav1.NewControllerRef(app, v1alpha1.GroupVersion().WithKind("App"))
}

// selector are the labels that find the pods of a process.
func (in Input) selector(process, track string) map[string]string {
	return map[string]string{v1alpha1.LabelApp: in.App.Name, v1alpha1.LabelProcess: process, v1alpha1.LabelTrack: track}
}

// CanaryName is the name of the canary's Deployment and Service.
func CanaryName(app string) string {
	return v1alpha1.ObjectName(app, v1alpha1.WebProcess) + "-" + TrackCanary
}

// ReleaseName is the name of a Release.
func ReleaseName(app string, number int64) string { return app + "-v" + strconv.FormatInt(number, 10) }
