package server

import (
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/api/v1alpha1"
	edgegateway "gantry.dev/gantry/internal/network/gateway"
)

func TestScaleNote(t *testing.T) {
	of := func(replicas int32, asleep bool) *appsv1.Deployment {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop-web",
			Labels: map[string]string{v1alpha1.LabelApp: "shop", v1alpha1.LabelProcess: "web"}}, Spec: appsv1.DeploymentSpec{Replicas: &replicas}}
		if asleep {
			d.Annotations = map[string]string{v1alpha1.AnnotationAsleep: "-"}
		}
		return d
	}
	for name, tc := range map[string]struct {
		old, current *appsv1.Deployment
		want         string
	}{
		"scaled":    {of(1, false), of(3, false), "web is scaled from 1 to 3"},
		"asleep":    {of(1, false), of(0, true), "web sleeps: nobody asked for it"},
		"woken":     {of(0, true), of(1, false), "web wakes: a request waits for it"},
		"unchanged": {of(1, false), of(1, false), ""},
	} {
		t.Run(name, func(t *testing.T) {
			n, ok := scaleNote(tc.old, tc.current)
			if ok != (tc.want != "") || n.line.Text != tc.want || ok && n.app != "shop" {
				t.Errorf("scaleNote = %+v, %t; want %q", n, ok, tc.want)
			}
		})
	}
	if _, ok := scaleNote(nil, of(1, false)); ok {
		t.Error("what was there before is no news")
	}
}

func TestTelling(t *testing.T) {
	for name, tc := range map[string]struct {
		kind, of string
		want     bool
	}{"a pod is pulled": {corev1.EventTypeNormal, "Pod", false}, "a pod fails": {corev1.EventTypeWarning, "Pod", true}, "an app": {corev1.EventTypeNormal, "App", true},
		"an autoscaler": {corev1.EventTypeNormal, "HorizontalPodAutoscaler", true}} {
		if got := telling(&corev1.Event{Type: tc.kind, InvolvedObject: corev1.ObjectReference{Kind: tc.of}}); got != tc.want {
			t.Errorf("%s: %t, want %t", name, got, tc.want)
		}
	}
}

func TestGatewayText(t *testing.T) {
	e := edgegateway.Entry{Method: "GET", Host: "a.example", Path: "/x", Status: 503, Seconds: 1.5, Held: 1.2, Client: "192.0.2.1", RequestID: "7f",
		Reason: edgegateway.ReasonHoldExpired, Detail: "nobody woke"}
	const want = "GET a.example/x 503 in 1.5s (1.2s of it waiting), client 192.0.2.1, request 7f, HoldExpired: nobody woke"
	if got := gatewayText(&e); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	at := time.Now()
	same := []edgegateway.Entry{{RequestID: "a", Time: at}}
	if got := onceEach(same, same, []edgegateway.Entry{{RequestID: "b", Time: at}}); len(got) != 2 {
		t.Errorf("onceEach: %+v", got)
	}
}

// The gateway's log is read page by page, to its end.
func TestGatewaySource(t *testing.T) {
	var asked []uint64
	s := &gatewaySource{query: edgegateway.Query{Oldest: true, Limit: 2}, ask: func(q edgegateway.Query) ([]edgegateway.Entry, error) {
		asked = append(asked, q.After)
		var out []edgegateway.Entry
		for n := q.After + 1; n <= 5 && len(out) < q.Limit; n++ {
			out = append(out, edgegateway.Entry{Sequence: n})
		}
		return out, nil
	}}
	n := 0
	for ; ; n++ {
		line, err := s.Next()
		if err != nil {
			break
		}
		if line.Time.UnixNano() != int64(n+1) {
			t.Errorf("line %d is of %v", n, line.Time)
		}
	}
	if n != 5 || len(asked) != 3 {
		t.Errorf("%d lines in pages after %v, want 5 in three", n, asked)
	}
}
