package gantrytest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/heartbeat"
)

// machines are simulated nodes that send heartbeats and run what is placed on them.
type machines struct {
	*Cluster
	mu   sync.Mutex
	dead map[string]bool
}

// startMachines runs n machines until ctx ends.
func startMachines(ctx context.Context, t *testing.T, c *Cluster, n int, running *sync.WaitGroup) *machines {
	t.Helper()
	m := &machines{Cluster: c, dead: map[string]bool{}}
	for i := range n {
		name := fmt.Sprintf("node-%d", i)
		c.changeNode(name, func(node *corev1.Node) error {
			if node.Annotations == nil {
				node.Annotations = map[string]string{}
			}
			node.Annotations[heartbeat.NodeAnnotation] = "300ms"
			return c.Client.Update(t.Context(), node)
		})
		running.Go(func() { m.beat(ctx, name) })
	}
	running.Go(func() { m.work(ctx) })
	return m
}

func (m *machines) kill(names ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range names {
		m.dead[name] = true
	}
}

func (m *machines) alive(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.dead[name]
}

func (m *machines) beat(ctx context.Context, name string) {
	ticker := time.NewTicker(heartbeat.Every)
	defer ticker.Stop()
	for ctx.Err() == nil {
		if m.alive(name) {
			m.ControlPlane.Heartbeat(heartbeat.Beat{Name: name, FenceMillis: heartbeat.DefaultDeadline.Milliseconds()})
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// work makes pods on living machines run, and lets those go that are deleted.
func (m *machines) work(ctx context.Context) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		var pods corev1.PodList
		if m.Client.List(ctx, &pods) != nil {
			continue
		}
		for i := range pods.Items {
			pod := pods.Items[i].DeepCopy()
			switch {
			case pod.Spec.NodeName == "" || !m.alive(pod.Spec.NodeName):
			case pod.DeletionTimestamp != nil:
				_ = m.Client.Delete(ctx, pod, ctrlclient.GracePeriodSeconds(0))
			case pod.Status.Phase == corev1.PodPending:
				ip := fmt.Sprintf("10.244.%d.%d", i/250, 1+i%250)
				pod.Status.Phase, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, ip, []corev1.PodIP{{IP: ip}}
				pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})
				if owner := metav1.GetControllerOf(pod); owner != nil && owner.Kind == "StatefulSet" {
					pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
						Type: heartbeat.ConditionFenced, Status: corev1.ConditionTrue, Reason: heartbeat.ReasonIdentity})
				}
				_ = m.Client.Status().Update(ctx, pod)
			}
		}
	}
}

// endpoints are the nodes of the ready endpoints of a service.
func (m *machines) endpoints(ctx context.Context, t *testing.T, service string) []string {
	t.Helper()
	var list discoveryv1.EndpointSliceList
	if err := m.Client.List(ctx, &list, ctrlclient.MatchingLabels{discoveryv1.LabelServiceName: service}); err != nil {
		t.Fatal(err)
	}
	var nodes []string
	for _, slice := range list.Items {
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready != nil && *e.Conditions.Ready && e.NodeName != nil {
				nodes = append(nodes, *e.NodeName)
			}
		}
	}
	return nodes
}

// In virtual time, with everything real but the machines: one that is killed is out of Services within 2 s, its pods of
// a Deployment serve elsewhere within 5 s, its pod of a StatefulSet after the fence and the margin; nothing else moves.
func TestAMachineIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes, replicas = 20, 60
		c := Start(t, Options{Nodes: nodes})
		defer c.Stop()
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		m := startMachines(ctx, t, c, nodes, &running)
		web := deployment("web", replicas)
		labels := map[string]string{"app": "db"}
		mustCreate(t, c, web,
			&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
				Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}}},
			&appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"}, Spec: appsv1.StatefulSetSpec{
				Replicas: new(int32(1)), Selector: &metav1.LabelSelector{MatchLabels: labels}, ServiceName: "db",
				Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: web.Spec.Template.Spec},
			}})
		db := func() *corev1.Pod {
			var pod corev1.Pod
			if c.Client.Get(ctx, ctrlclient.ObjectKey{Namespace: "default", Name: "db-0"}, &pod) != nil || pod.Status.Phase != corev1.PodRunning {
				return nil
			}
			return &pod
		}
		c.Eventually("all pods serve", func() error {
			if n := len(m.endpoints(ctx, t, "web")); n != replicas || db() == nil {
				return fmt.Errorf("%d endpoints", n)
			}
			return nil
		})
		time.Sleep(time.Minute)
		victim := db().Spec.NodeName
		if !slices.Contains(m.endpoints(ctx, t, "web"), victim) {
			t.Fatalf("no pod of the Deployment is on %s", victim)
		}
		m.kill(victim)
		killed := time.Now()
		var out, served, moved time.Duration
		for time.Since(killed) < 30*time.Second {
			time.Sleep(20 * time.Millisecond)
			nodes := m.endpoints(ctx, t, "web")
			if out == 0 && !slices.Contains(nodes, victim) {
				out = time.Since(killed)
			}
			if served == 0 && out > 0 && len(nodes) == replicas {
				served = time.Since(killed)
			}
			if pod := db(); moved == 0 && pod != nil && pod.Spec.NodeName != victim {
				moved = time.Since(killed)
			}
		}
		t.Logf("out of the Service after %v, served elsewhere after %v, the stateful pod elsewhere after %v", out, served, moved)
		if out == 0 || out > 2*time.Second || served == 0 || served > 5*time.Second || moved < 14*time.Second {
			t.Errorf("out after %v (want 2 s at most), served after %v (5 s), stateful after %v (14 s at least)", out, served, moved)
		}
		var list corev1.NodeList
		if err := c.Client.List(ctx, &list); err != nil {
			t.Fatal(err)
		}
		for _, node := range list.Items {
			if tainted := len(node.Spec.Taints) > 0; tainted != (node.Name == victim) {
				t.Errorf("node %s has taints %v", node.Name, node.Spec.Taints)
			}
		}
	})
}

// TestHeartbeatOverHTTP sends heartbeats as nodes and as others.
func TestHeartbeatOverHTTP(t *testing.T) {
	c := Start(t, Options{Nodes: 2})
	node := c.Config("system:node:node-0", "system:nodes")
	for name, tc := range map[string]struct {
		as           *rest.Config
		method, body string
		want         int
	}{
		"a node":        {node, http.MethodPut, `{"name":"node-0","bootID":"b"}`, http.StatusOK},
		"another node":  {node, http.MethodPut, `{"name":"node-1"}`, http.StatusForbidden},
		"no node":       {c.Config("system:node:node-0"), http.MethodPut, `{"name":"node-0"}`, http.StatusForbidden},
		"an admin":      {c.Config("root", "system:masters"), http.MethodPut, `{"name":"node-0"}`, http.StatusForbidden},
		"a bad token":   {c.TokenConfig("x"), http.MethodPut, `{"name":"node-0"}`, http.StatusUnauthorized},
		"nonsense":      {node, http.MethodPut, `{`, http.StatusBadRequest},
		"no name":       {node, http.MethodPut, `{}`, http.StatusBadRequest},
		"much nonsense": {node, http.MethodPut, `{"name":"` + strings.Repeat("x", 5000) + `"}`, http.StatusBadRequest},
		"a read":        {node, http.MethodGet, "", http.StatusMethodNotAllowed},
	} {
		t.Run(name, func(t *testing.T) {
			request, err := http.NewRequestWithContext(t.Context(), tc.method, "https://gantry.test"+heartbeat.Path, strings.NewReader(tc.body))
			if err != nil {
				t.Fatal(err)
			}
			transport, err := rest.TransportFor(tc.as)
			if err != nil {
				t.Fatal(err)
			}
			response, err := transport.RoundTrip(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if response.StatusCode != tc.want {
				t.Errorf("answered %s, want %d", response.Status, tc.want)
			}
			var answer heartbeat.Answer
			if tc.want == http.StatusOK {
				if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
					t.Errorf("reading the answer: %v", err)
				}
			}
		})
	}
}

// BenchmarkHeartbeat is one heartbeat behind the connection, as the API's handler takes it.
func BenchmarkHeartbeat(b *testing.B) {
	c := Start(b, Options{Nodes: 2})
	cert := c.Config("system:node:node-0", "system:nodes").Transport.(direct).cert
	body := []byte(`{"name":"node-0","bootID":"b"}`)
	request := httptest.NewRequest(http.MethodPut, heartbeat.Path, nil)
	request.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
	b.ReportAllocs()
	for b.Loop() {
		request.Body = io.NopCloser(bytes.NewReader(body))
		w := httptest.NewRecorder()
		if c.Handler.ServeHTTP(w, request); w.Code != http.StatusOK {
			b.Fatal(w.Code, w.Body)
		}
	}
}
