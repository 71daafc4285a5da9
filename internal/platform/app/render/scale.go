package render

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gantry.dev/gantry/api/v1alpha1"
)

// Names of metrics that the gateways' counts make, by Service.
const (
	MetricConcurrency = "concurrency"
	MetricRate        = "requests_per_second"
)

// DefaultIdle is how long nobody asks before a process sleeps.
const DefaultIdle = 10 * time.Minute

// maxStabilization is the longest window that Kubernetes allows.
const maxStabilization = 3600

// Scale is how many pods a process has, with every default filled in.
type Scale struct {
	Min, Max int32
	Idle     time.Duration
	Warmup   time.Duration
	// Watched says that something is measured to choose between Min and Max.
	Watched bool
	// Counted says that requests are.
	Counted bool
}

// ScaleOf fills in the defaults of a process's scale.
func ScaleOf(process v1alpha1.Process) Scale {
	out := Scale{Min: 1, Max: 1, Idle: DefaultIdle}
	s := process.Scale
	if s != nil {
		if s.Min != nil {
			out.Min = *s.Min
		}
		out.Max = max(out.Min, 1)
		if s.Max != nil {
			out.Max = max(*s.Max, out.Max)
		}
		if s.Idle != nil && s.Idle.Duration > 0 {
			out.Idle = s.Idle.Duration
		}
		if s.Warmup != nil {
			out.Warmup = s.Warmup.Duration
		}
		out.Counted = s.Concurrency != nil || s.Requests != nil
		out.Watched = out.Max > out.Min && out.Max > 1 && (out.Counted || s.CPU != nil || s.Memory != nil)
	}
	if len(process.Volumes) > 0 { // one pod at a time may hold a volume
		out.Min, out.Max, out.Watched = min(out.Min, 1), 1, false
	}
	return out
}

// scale is that of a process: what the App says now, not what its release said.
func (in Input) scale(name string, version *Version) Scale {
	process := Processes(version.Content)[name]
	if now, ok := Processes(&in.App.Spec)[name]; ok {
		process.Scale = now.Scale
	}
	return ScaleOf(process)
}

// budget keeps one pod at a time from being evicted, where there are several.
func (in Input) budget(name string, scale Scale) *policyv1.PodDisruptionBudget {
	if scale.Min < 2 {
		return nil
	}
	return &policyv1.PodDisruptionBudget{
		TypeMeta:   metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"},
		ObjectMeta: in.meta(v1alpha1.ObjectName(in.App.Name, name), name),
		Spec: policyv1.PodDisruptionBudgetSpec{
			MaxUnavailable: new(intstr.FromInt32(1)),
			Selector:       &metav1.LabelSelector{MatchLabels: in.selector(name, TrackStable)},
		},
	}
}

// autoscaler chooses the number of pods by what is measured; nil where nothing is.
func (in Input) autoscaler(name string, process v1alpha1.Process, scale Scale) *autoscalingv2.HorizontalPodAutoscaler {
	now := Processes(&in.App.Spec)[name].Scale
	if now == nil || !scale.Watched {
		return nil
	}
	var metrics []autoscalingv2.MetricSpec
	perPod := func(metric string, target int32) {
		metrics = append(metrics, autoscalingv2.MetricSpec{Type: autoscalingv2.ObjectMetricSourceType, Object: &autoscalingv2.ObjectMetricSource{
			DescribedObject: autoscalingv2.CrossVersionObjectReference{APIVersion: "v1", Kind: "Service", Name: v1alpha1.ObjectName(in.App.Name, name)},
			Metric:          autoscalingv2.MetricIdentifier{Name: metric},
			Target:          autoscalingv2.MetricTarget{Type: autoscalingv2.AverageValueMetricType, AverageValue: resource.NewQuantity(int64(target), resource.DecimalSI)},
		}})
	}
	used := func(what corev1.ResourceName, percent int32) {
		metrics = append(metrics, autoscalingv2.MetricSpec{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
			Name: what, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &percent},
		}})
	}
	if now.Concurrency != nil && in.Metrics {
		perPod(MetricConcurrency, *now.Concurrency)
	}
	if now.Requests != nil && in.Metrics {
		perPod(MetricRate, *now.Requests)
	}
	if now.CPU != nil && process.CPU != nil { // a share of what is reserved; of nothing there is none
		used(corev1.ResourceCPU, *now.CPU)
	}
	if now.Memory != nil && process.Memory != nil {
		used(corev1.ResourceMemory, *now.Memory)
	}
	if len(metrics) == 0 {
		return nil
	}
	window := func(d time.Duration) *int32 { return new(int32(min(d, maxStabilization*time.Second) / time.Second)) }
	return &autoscalingv2.HorizontalPodAutoscaler{
		TypeMeta:   metav1.TypeMeta{APIVersion: "autoscaling/v2", Kind: "HorizontalPodAutoscaler"},
		ObjectMeta: in.meta(v1alpha1.ObjectName(in.App.Name, name), name),
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{
				APIVersion: appsv1.SchemeGroupVersion.String(), Kind: "Deployment", Name: v1alpha1.ObjectName(in.App.Name, name),
			},
			MinReplicas: new(max(scale.Min, 1)), MaxReplicas: scale.Max, Metrics: metrics,
			Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{
				ScaleUp:   &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: window(scale.Warmup)},
				ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: window(scale.Idle)},
			},
		},
	}
}
