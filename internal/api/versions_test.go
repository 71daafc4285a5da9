package api

import (
	"net/http"
	"strings"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// One table is served in two versions, in JSON and protobuf: writes through one are read, listed
// and watched through the other.
func TestServedVersions(t *testing.T) {
	for name, contentType := range contentTypes {
		t.Run(name, func(t *testing.T) {
			c := start(t, Options{})
			clients, err := kubernetes.NewForConfig(c.config(t, "root", contentType, "system:masters"))
			if err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			v1, v2 := clients.AutoscalingV1().HorizontalPodAutoscalers("default"), clients.AutoscalingV2().HorizontalPodAutoscalers("default")
			w, err := v1.Watch(ctx, metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Stop()
			limit := int32(60)
			made, err := v1.Create(ctx, &autoscalingv1.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "web"},
				Spec: autoscalingv1.HorizontalPodAutoscalerSpec{MaxReplicas: 4, TargetCPUUtilizationPercentage: &limit,
					ScaleTargetRef: autoscalingv1.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web"}}}, metav1.CreateOptions{})
			if err != nil || *made.Spec.MinReplicas != 1 {
				t.Fatalf("Create = %+v, %v", made, err)
			}
			expect(t, w, watch.Added, "web")
			list, err := v2.List(ctx, metav1.ListOptions{})
			if err != nil || len(list.Items) != 1 || *list.Items[0].Spec.Metrics[0].Resource.Target.AverageUtilization != 60 {
				t.Fatalf("List v2 = %+v, %v", list, err)
			}
			second := list.Items[0].DeepCopy()
			second.Spec.MaxReplicas = 6
			if _, err := v2.Update(ctx, second, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			expect(t, w, watch.Modified, "web")
			patched, err := v1.Patch(ctx, "web", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
			if err != nil || patched.Labels["a"] != "b" || patched.Spec.MaxReplicas != 6 {
				t.Fatalf("Patch = %+v, %v", patched, err)
			}
			if err := v1.Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if list, err := v2.List(ctx, metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
				t.Errorf("after the delete: %v, %v", list, err)
			}

			event := &eventsv1.Event{ObjectMeta: metav1.ObjectMeta{Name: "e"}, EventTime: metav1.NowMicro(), ReportingController: "x.example/y",
				ReportingInstance: "y-1", Action: "Do", Reason: "Why", Type: "Normal", Regarding: corev1.ObjectReference{Namespace: "default", Name: "p", Kind: "Pod"}}
			if _, err := clients.EventsV1().Events("default").Create(ctx, event, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			old, err := clients.CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=p"})
			if err != nil || len(old.Items) != 1 || old.Items[0].Reason != "Why" {
				t.Errorf("core/v1 lists %+v, %v", old, err)
			}
		})
	}
}

// Of a group's versions clients are told to prefer the newest stable one.
func TestPreferredVersion(t *testing.T) {
	c := start(t, Options{})
	got := c.do(t, "root", http.MethodGet, "/apis/autoscaling", nil)
	if !strings.Contains(got.Body.String(), `"preferredVersion":{"groupVersion":"autoscaling/v2","version":"v2"}`) {
		t.Errorf("/apis/autoscaling says %s", got.Body)
	}
	table := c.do(t, "root", http.MethodGet, "/apis/events.k8s.io/v1/events", nil, "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1")
	if !strings.Contains(table.Body.String(), `"name":"Last Seen"`) {
		t.Errorf("the table of events has other columns: %s", table.Body)
	}
}
