package gantrytest

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/pki"
	"gantry.dev/gantry/internal/store"
)

// peersOf makes addresses on the loopback and the certificates for them.
func peersOf(t *testing.T) func() *store.Peer {
	t.Helper()
	dir := t.TempDir()
	authority, err := pki.New(pki.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler), Names: pki.Names{
		NodeName: "n", ClusterDomain: "cluster.local", ServiceIP: netip.MustParseAddr("10.96.0.1"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := authority.Ensure(t.Context()); err != nil {
		t.Fatal(err)
	}
	return func() *store.Peer {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		return &store.Peer{
			URL:      "https://" + l.Addr().String(),
			CertFile: filepath.Join(dir, "etcd/peer.crt"), KeyFile: filepath.Join(dir, "etcd/peer.key"), CAFile: filepath.Join(dir, "etcd/ca.crt"),
		}
	}
}

func spreadDeployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.com/x:1"}}},
		},
	}}
}

// bound waits until a server sees all pods of an app on a node.
func bound(t *testing.T, c *Cluster, app string, want int) {
	t.Helper()
	c.Eventually("bound pods of "+app, func() error {
		var pods corev1.PodList
		if err := c.Client.List(t.Context(), &pods, ctrlclient.InNamespace("default"), ctrlclient.MatchingLabels{"app": app}); err != nil {
			return err
		}
		n := len(slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.Spec.NodeName == "" }))
		if n != want {
			return fmt.Errorf("%d of %d", n, want)
		}
		return nil
	})
}

func leads(c *Cluster) bool { leading, _ := c.ControlPlane.Leader(); return leading }

// TestThreeServers: every server answers with what any of them acknowledged; one of them runs the controllers, and when it
// goes another one does.
func TestThreeServers(t *testing.T) {
	peer := peersOf(t)
	a := Start(t, Options{Name: "a", Peer: peer(), Nodes: 2})
	join := func(name string, by *Cluster) *Cluster {
		at := peer()
		_, all, err := by.ControlPlane.AddServer(t.Context(), at.URL)
		if err != nil {
			t.Fatalf("adding %s: %v", name, err)
		}
		return Start(t, Options{Name: name, Peer: at, Join: all, With: a})
	}
	b := join("b", a)
	c := join("c", b)
	servers := []*Cluster{a, b, c}
	for i, s := range servers {
		app := fmt.Sprint("app-", i)
		if err := s.Client.Create(t.Context(), spreadDeployment(app, 3)); err != nil {
			t.Fatal(err)
		}
		bound(t, servers[(i+1)%3], app, 3)
	}
	old := servers[slices.IndexFunc(servers, leads)]
	rest := slices.DeleteFunc(slices.Clone(servers), func(s *Cluster) bool { return s == old })
	old.Stop()
	rest[0].Eventually("a new leader", func() error {
		if !slices.ContainsFunc(rest, leads) {
			return fmt.Errorf("none")
		}
		return nil
	})
	rest[0].Eventually("a write", func() error { return rest[0].Client.Create(t.Context(), spreadDeployment("after", 4)) })
	bound(t, rest[1], "after", 4)
	_, leader := rest[0].ControlPlane.Leader()
	rest[0].Eventually("the Lease", func() error {
		var lease coordinationv1.Lease
		if err := rest[0].Client.Get(t.Context(), ctrlclient.ObjectKey{Namespace: "kube-system", Name: "kube-scheduler"}, &lease); err != nil {
			return err
		}
		if lease.Spec.HolderIdentity == nil || *lease.Spec.HolderIdentity != leader {
			return fmt.Errorf("held by %v, but %s leads", lease.Spec.HolderIdentity, leader)
		}
		return nil
	})
}
