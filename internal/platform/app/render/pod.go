package render

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gantry.dev/gantry/api/v1alpha1"
)

const (
	// DefaultPort is the PORT that the web process is told if nobody says one.
	DefaultPort = 8080
	// DefaultGrace is how long a process may take to start.
	DefaultGrace = time.Minute
	// drainSeconds is how long a pod goes on serving after it was told to end, until every gateway and every node's
	// Service rules have left it out.
	drainSeconds = 3
	// quietSeconds is how long a process without a port must run to count as started.
	quietSeconds = 3
	// defaultStopSeconds is how long a process may take to end.
	defaultStopSeconds = 30

	// AnnotationRestarts is on pod templates: the number of restarts that were asked for.
	AnnotationRestarts = "gantry.dev/restarts"
	// ContainerName is the name of the container of a process.
	ContainerName = "app"
)

// Port is where a process of a version listens; 0 is nowhere.
func Port(version *Version, name string) int32 {
	process := Processes(version.Content)[name]
	if process.Port > 0 {
		return process.Port
	}
	if name != v1alpha1.WebProcess {
		return 0
	}
	if port := saidPort(version.Content); port > 0 {
		return port
	}
	if port := version.Ports[name]; port > 0 {
		return port
	}
	return DefaultPort
}

// PortSaid says whether the port of a process was said, so that no other will do.
func PortSaid(content *v1alpha1.AppSpec, name string) bool {
	return Processes(content)[name].Port > 0 || name == v1alpha1.WebProcess && saidPort(content) > 0
}

// saidPort is what PORT says in the declared environment; 0 if it says nothing of use.
func saidPort(content *v1alpha1.AppSpec) int32 {
	for _, env := range []map[string]string{content.Env, content.Config} {
		if port, err := strconv.ParseUint(env["PORT"], 10, 16); err == nil && port > 0 {
			return int32(port)
		}
	}
	return 0
}

// Grace is how long a process may take to start.
func Grace(process v1alpha1.Process) time.Duration {
	if process.Health != nil && process.Health.Grace != nil && process.Health.Grace.Duration > 0 {
		return process.Health.Grace.Duration
	}
	return DefaultGrace
}

// deployment is the Deployment of a process.
func (in Input) deployment(name string, version *Version, process v1alpha1.Process) *appsv1.Deployment {
	replicas, said := in.Replicas[name]
	if !said {
		replicas = max(in.scale(name, version).Min, 1)
	}
	if in.Stopped {
		replicas = 0
	}
	out := in.workload(v1alpha1.ObjectName(in.App.Name, name), name, TrackStable, version, process)
	out.Spec.Replicas = &replicas
	return out
}

// canaryDeployment is that of the release that gets a part of the requests.
func (in Input) canaryDeployment() *appsv1.Deployment {
	process := Processes(in.Canary.Version.Content)[v1alpha1.WebProcess]
	out := in.workload(CanaryName(in.App.Name), v1alpha1.WebProcess, TrackCanary, in.Canary.Version, process)
	out.Spec.Replicas = new(in.Canary.Replicas)
	return out
}

func (in Input) workload(name, processName, track string, version *Version, process v1alpha1.Process) *appsv1.Deployment {
	meta := in.meta(name, processName)
	meta.Labels[v1alpha1.LabelTrack] = track
	out := &appsv1.Deployment{
		TypeMeta:   metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{
			Selector:             &metav1.LabelSelector{MatchLabels: in.selector(processName, track)},
			RevisionHistoryLimit: new(int32(3)),
			// Whether a release is well is judged from its pods, at once where the cause is certain.
			ProgressDeadlineSeconds: new(int32(86400)),
			Template:                in.template(processName, track, version, process),
			Strategy: appsv1.DeploymentStrategy{
				Type: appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{
					MaxSurge: new(intstr.FromString("25%")), MaxUnavailable: new(intstr.FromInt32(0)),
				},
			},
		},
	}
	if Port(version, processName) == 0 {
		out.Spec.MinReadySeconds = quietSeconds
	}
	if len(process.Volumes) > 0 { // one pod at a time may hold a volume
		out.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	}
	return out
}

// template is that of the pods of a process.
func (in Input) template(name, track string, version *Version, process v1alpha1.Process) corev1.PodTemplateSpec {
	labels := in.selector(name, track)
	labels[v1alpha1.LabelRelease] = strconv.FormatInt(version.Number, 10)
	labels[LabelManagedBy] = ManagedBy
	out := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: in.podSpec(version)}
	if in.App.Spec.Restarts > 0 {
		out.Annotations = map[string]string{AnnotationRestarts: strconv.FormatInt(in.App.Spec.Restarts, 10)}
	}
	port := Port(version, name)
	container := in.container(version, process, port)
	setProbes(&container, process, port)
	stop := int64(defaultStopSeconds)
	if process.Stop != nil && process.Stop.Timeout != nil {
		stop = max(int64(process.Stop.Timeout.Seconds()), 1)
	}
	lifecycle := corev1.Lifecycle{}
	if port > 0 {
		lifecycle.PreStop = &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: drainSeconds}}
		stop += drainSeconds
	}
	if process.Stop != nil && process.Stop.Signal != "" {
		lifecycle.StopSignal = new(corev1.Signal("SIG" + strings.TrimPrefix(strings.ToUpper(process.Stop.Signal), "SIG")))
	}
	if lifecycle != (corev1.Lifecycle{}) {
		container.Lifecycle = &lifecycle
	}
	spec := &out.Spec
	spec.TerminationGracePeriodSeconds = &stop
	mountVolumes(in.App.Name, spec, &container, process)
	spec.Containers = []corev1.Container{container}
	if placement := version.Content.Placement; placement != nil && placement.Spread != "" {
		key := corev1.LabelHostname
		if placement.Spread == "zone" {
			key = corev1.LabelTopologyZone
		}
		spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: 1, TopologyKey: key, WhenUnsatisfiable: corev1.ScheduleAnyway,
			LabelSelector:  &metav1.LabelSelector{MatchLabels: in.selector(name, track)},
			MatchLabelKeys: []string{appsv1.DefaultDeploymentUniqueLabelKey},
		}}
	}
	return out
}

// podSpec is what all pods of a version share.
func (in Input) podSpec(version *Version) corev1.PodSpec {
	out := corev1.PodSpec{
		ServiceAccountName:           in.App.Name,
		AutomountServiceAccountToken: new(false),
		EnableServiceLinks:           new(false),
		OS:                           &corev1.PodOS{Name: corev1.Linux},
		SecurityContext: &corev1.PodSecurityContext{
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}
	if placement := version.Content.Placement; placement != nil && len(placement.Labels) > 0 {
		out.NodeSelector = maps.Clone(placement.Labels)
	}
	return out
}

// container is that of a process, without probes and volumes.
func (in Input) container(version *Version, process v1alpha1.Process, port int32) corev1.Container {
	out := corev1.Container{
		Name: ContainerName, Image: version.Content.Image, Command: Command(process.Command),
		Env: in.env(version.Content, port), EnvFrom: in.envFrom(version.Content),
		SecurityContext:          &corev1.SecurityContext{AllowPrivilegeEscalation: new(false)},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
	if port > 0 {
		out.Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: port, Protocol: corev1.ProtocolTCP}}
	}
	if process.CPU != nil {
		out.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: *process.CPU}
	}
	if process.Memory != nil {
		if out.Resources.Requests == nil {
			out.Resources.Requests = corev1.ResourceList{}
		}
		out.Resources.Requests[corev1.ResourceMemory] = *process.Memory
		out.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: *process.Memory}
	}
	return out
}

// env is the environment that is said by name: the file's before secrets, before what was set, before addons'.
func (in Input) env(content *v1alpha1.AppSpec, port int32) []corev1.EnvVar {
	byName := map[string]corev1.EnvVar{}
	if port > 0 {
		byName["PORT"] = corev1.EnvVar{Name: "PORT", Value: strconv.Itoa(int(port))}
	}
	for key, value := range content.Config {
		byName[key] = corev1.EnvVar{Name: key, Value: literal(value)}
	}
	for _, key := range content.Secrets {
		byName[key] = corev1.EnvVar{Name: key, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: v1alpha1.SecretName(in.App.Name)}, Key: key,
		}}}
	}
	for key, value := range content.Env {
		byName[key] = corev1.EnvVar{Name: key, Value: literal(value)}
	}
	return slices.SortedFunc(maps.Values(byName), func(a, b corev1.EnvVar) int { return cmp.Compare(a.Name, b.Name) })
}

// envFrom is the environment that addons bring.
func (in Input) envFrom(content *v1alpha1.AppSpec) (out []corev1.EnvFromSource) {
	for _, name := range slices.Sorted(maps.Keys(content.Addons)) {
		out = append(out, corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: v1alpha1.ObjectName(in.App.Name, name)},
		}})
	}
	return out
}

// setProbes asks a container that listens whether it can take requests.
func setProbes(c *corev1.Container, process v1alpha1.Process, port int32) {
	if port == 0 {
		return
	}
	probe := func(period, timeout, failures int32) *corev1.Probe {
		out := &corev1.Probe{PeriodSeconds: period, TimeoutSeconds: timeout, FailureThreshold: failures, SuccessThreshold: 1}
		if process.Health != nil && process.Health.Path != "" {
			out.HTTPGet = &corev1.HTTPGetAction{Path: process.Health.Path, Port: intstr.FromInt32(port), Scheme: corev1.URISchemeHTTP}
		} else {
			out.TCPSocket = &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}
		}
		return out
	}
	grace := max(int32(Grace(process)/time.Second), 1)
	c.StartupProbe = probe(1, 2, grace)
	c.ReadinessProbe = probe(5, 3, 2)
	c.LivenessProbe = probe(10, 5, 6) // a minute: who is only busy is not ended
}
