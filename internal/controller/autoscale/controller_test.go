package autoscale_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/gantrytest"
)

// TestMain drops the handler of upstream's that slows errors down: it remembers real time, and sleeps
// for decades in a bubble.
func TestMain(m *testing.M) {
	utilruntime.ErrorHandlers = utilruntime.ErrorHandlers[:1]
	os.Exit(m.Run())
}

// load is a workload's CPU, in millicores, shared evenly by its pods that run.
type load struct {
	total atomic.Int64
	pods  atomic.Pointer[[]corev1.Pod]
}

// Nodes implements registry.Metrics.
func (*load) Nodes(context.Context, string) ([]*metricsv1beta1.NodeMetrics, error) { return nil, nil }

// Pods implements registry.Metrics.
func (l *load) Pods(_ context.Context, namespace, _ string) ([]*metricsv1beta1.PodMetrics, error) {
	pods := l.pods.Load()
	if pods == nil {
		return nil, nil
	}
	var list []*metricsv1beta1.PodMetrics
	for _, pod := range *pods {
		each := l.total.Load() / int64(len(*pods))
		list = append(list, &metricsv1beta1.PodMetrics{
			TypeMeta:   metav1.TypeMeta{APIVersion: "metrics.k8s.io/v1beta1", Kind: "PodMetrics"},
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: pod.Name, Labels: pod.Labels},
			Timestamp:  metav1.Now(), Window: metav1.Duration{Duration: 15 * time.Second},
			Containers: []metricsv1beta1.ContainerMetrics{
				{Name: "app", Usage: corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(each, resource.DecimalSI)}},
			},
		})
	}
	return list, nil
}

func deployment(name string) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](1), Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{Containers: []corev1.Container{{
					Name: "app", Image: "app", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m")}},
				}}},
			},
		},
	}
}

func scaler(kind, group, name string, lowest, highest int32) *autoscalingv2.HorizontalPodAutoscaler {
	return &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name + "-scaler"}, // Events are named by object and moment
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: group, Kind: kind, Name: name},
			MinReplicas:    &lowest, MaxReplicas: highest,
			Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
				Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: ptr.To[int32](50)},
			}}},
		},
	}
}

// run lets every pod be Running and Ready at once, and d pass.
func run(t *testing.T, c *gantrytest.Cluster, l *load, d time.Duration) {
	t.Helper()
	for range d / time.Second {
		time.Sleep(time.Second) // virtual
		var pods corev1.PodList
		if err := c.Client.List(t.Context(), &pods, client.InNamespace("default")); err != nil {
			t.Fatal(err)
		}
		var running []corev1.Pod
		for i := range pods.Items {
			pod := pods.Items[i].DeepCopy()
			if pod.DeletionTimestamp != nil {
				if err := c.Client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
					t.Fatal(err)
				}
				continue
			}
			if pod.Status.Phase != corev1.PodRunning {
				pod.Status.Phase, pod.Status.StartTime = corev1.PodRunning, ptr.To(metav1.Now())
				pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
					Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
				})
				if err := c.Client.Status().Update(t.Context(), pod); err != nil {
					continue // bound meanwhile: the next second
				}
			}
			running = append(running, *pod)
		}
		l.pods.Store(&running)
	}
}

func replicas(t *testing.T, c *gantrytest.Cluster, name string) int32 {
	t.Helper()
	var d appsv1.Deployment
	if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: name}, &d); err != nil {
		t.Fatal(err)
	}
	return *d.Spec.Replicas
}

func conditions(t *testing.T, c *gantrytest.Cluster, name string) string {
	t.Helper()
	var h autoscalingv2.HorizontalPodAutoscaler
	if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: name + "-scaler"}, &h); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, cond := range h.Status.Conditions {
		out = append(out, fmt.Sprintf("%s=%s/%s", cond.Type, cond.Status, cond.Reason))
	}
	return strings.Join(out, " ")
}

func create(t *testing.T, c *gantrytest.Cluster, objs ...client.Object) {
	t.Helper()
	for _, obj := range objs {
		if err := c.Client.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
}

func TestScalesUpAndDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &load{}
		c := gantrytest.Start(t, gantrytest.Options{Metrics: l})
		defer c.Stop()
		l.total.Store(400) // 8 pods at 50 % of 100m
		create(t, c, deployment("web"), scaler("Deployment", "apps/v1", "web", 1, 6))
		run(t, c, l, 35*time.Second)
		if n := replicas(t, c, "web"); n != 4 {
			t.Errorf("%d replicas at first, want 4: at most four pods more or twice as many; %s", n, conditions(t, c, "web"))
		}
		run(t, c, l, time.Minute)
		if n := replicas(t, c, "web"); n != 6 {
			t.Errorf("%d replicas, want 6: the most", n)
		}
		if got := conditions(t, c, "web"); !strings.Contains(got, "ScalingLimited=True/TooManyReplicas") || !strings.Contains(got, "ScalingActive=True/ValidMetricFound") {
			t.Errorf("conditions are %s, want limited by TooManyReplicas", got)
		}
		l.total.Store(50)
		run(t, c, l, 4*time.Minute)
		if n := replicas(t, c, "web"); n != 6 {
			t.Errorf("%d replicas four minutes after the load went, want 6: the window is five", n)
		}
		run(t, c, l, 2*time.Minute)
		if n := replicas(t, c, "web"); n != 1 {
			t.Errorf("%d replicas six minutes after the load went, want 1", n)
		}
		var list corev1.EventList
		if err := c.Client.List(t.Context(), &list, client.InNamespace("default")); err != nil {
			t.Fatal(err)
		}
		found := false
		for i := range list.Items {
			e := &list.Items[i]
			found = found || e.Source.Component == "horizontal-pod-autoscaler" && e.Reason == "SuccessfulRescale" && strings.HasPrefix(e.Message, "New size: 6; reason:")
		}
		if !found {
			t.Error("there is no event SuccessfulRescale to 6")
		}
	})
}

func TestBehavior(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &load{}
		c := gantrytest.Start(t, gantrytest.Options{Metrics: l})
		defer c.Stop()
		l.total.Store(400)
		h := scaler("Deployment", "apps/v1", "web", 2, 10)
		one := []autoscalingv2.HPAScalingPolicy{{Type: autoscalingv2.PodsScalingPolicy, Value: 1, PeriodSeconds: 60}}
		h.Spec.Behavior = &autoscalingv2.HorizontalPodAutoscalerBehavior{
			ScaleUp:   &autoscalingv2.HPAScalingRules{Policies: one},
			ScaleDown: &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: ptr.To[int32](0), SelectPolicy: ptr.To(autoscalingv2.DisabledPolicySelect)},
		}
		create(t, c, deployment("web"), h)
		run(t, c, l, 20*time.Second)
		if n := replicas(t, c, "web"); n != 2 {
			t.Errorf("%d replicas, want 2: the least", n)
		}
		before := replicas(t, c, "web")
		for range 3 {
			run(t, c, l, time.Minute)
			if n := replicas(t, c, "web"); n > before+1 {
				t.Errorf("from %d to %d replicas within a minute, want one more", before, n)
			} else {
				before = n
			}
		}
		if before < 4 {
			t.Errorf("%d replicas after three minutes, want at least 4", before)
		}
		l.total.Store(1)
		run(t, c, l, 10*time.Minute)
		if n := replicas(t, c, "web"); n < before {
			t.Errorf("scaled down from %d to %d, which is disabled", before, n)
		}
	})
}

func TestScalesACustomResource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &load{}
		c := gantrytest.Start(t, gantrytest.Options{Metrics: l})
		defer c.Stop()
		yes := true
		create(t, c, &apiextensionsv1.CustomResourceDefinition{
			ObjectMeta: metav1.ObjectMeta{Name: "farms.example.com"},
			Spec: apiextensionsv1.CustomResourceDefinitionSpec{
				Group: "example.com", Scope: apiextensionsv1.NamespaceScoped,
				Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "farms", Singular: "farm", Kind: "Farm", ListKind: "FarmList"},
				Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
					Name: "v1", Served: true, Storage: true,
					Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: &yes}},
					Subresources: &apiextensionsv1.CustomResourceSubresources{
						Status: &apiextensionsv1.CustomResourceSubresourceStatus{},
						Scale: &apiextensionsv1.CustomResourceSubresourceScale{
							SpecReplicasPath: ".spec.replicas", StatusReplicasPath: ".status.replicas", LabelSelectorPath: ptr.To(".status.selector"),
						},
					},
				}},
			},
		})
		farm := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "example.com/v1", "kind": "Farm", "metadata": map[string]any{"namespace": "default", "name": "farm"},
			"spec": map[string]any{"replicas": int64(1)},
		}}
		c.Eventually("the kind is served", func() error { return c.Client.Create(t.Context(), farm) })
		farm.Object["status"] = map[string]any{"replicas": int64(1), "selector": "app=farm"}
		if err := c.Client.Status().Update(t.Context(), farm); err != nil {
			t.Fatal(err)
		}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "farm-0", Labels: map[string]string{"app": "farm"}}, Spec: deployment("x").Spec.Template.Spec}
		l.total.Store(150)
		create(t, c, pod, scaler("Farm", "example.com/v1", "farm", 1, 9))
		run(t, c, l, 2*time.Minute)
		got := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "example.com/v1", "kind": "Farm"}}
		if err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(farm), got); err != nil {
			t.Fatal(err)
		}
		if n, _, _ := unstructured.NestedInt64(got.Object, "spec", "replicas"); n != 3 {
			t.Errorf("the farm has %d replicas, want 3: 150m at 50m each; %s", n, conditions(t, c, "farm"))
		}
	})
}

func TestWithoutMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &load{}
		c := gantrytest.Start(t, gantrytest.Options{Metrics: l})
		defer c.Stop()
		create(t, c, deployment("web"), scaler("Deployment", "apps/v1", "web", 1, 6), scaler("Deployment", "apps/v1", "nobody", 1, 6))
		time.Sleep(40 * time.Second)
		if got := conditions(t, c, "web"); !strings.Contains(got, "ScalingActive=False/FailedGetResourceMetric") {
			t.Errorf("conditions are %s, want FailedGetResourceMetric", got)
		}
		if got := conditions(t, c, "nobody"); !strings.Contains(got, "AbleToScale=False/FailedGetScale") {
			t.Errorf("conditions are %s, want FailedGetScale", got)
		}
	})
}
