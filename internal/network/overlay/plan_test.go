package overlay

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// update writes the golden files anew: overlay.test -test.run TestPlanPaths -update.
func updateGolden() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

var _ = flag.Bool("update", false, "write golden files")

// node is a Node as agents and controllers write it.
func node(name, addr, pods, link, mtu string, age int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{},
		CreationTimestamp: metav1.NewTime(time.Unix(int64(1000-age), 0))}}
	if addr != "" {
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: addr}}
	}
	if pods != "" {
		n.Spec.PodCIDR, n.Spec.PodCIDRs = pods, []string{pods}
	}
	if link != "" {
		n.Annotations[AnnotationLink] = link
	}
	if mtu != "" {
		n.Annotations[AnnotationLinkMTU] = mtu
	}
	return n
}

func (p paths) String() string {
	var b strings.Builder
	for _, one := range p.List {
		fmt.Fprintf(&b, "%s: %s %s by %s, mtu %d\n", one.Node, one.Pods, one.Kind, one.Addr, one.MTU)
	}
	if p.TunnelMTU > 0 {
		fmt.Fprintf(&b, "tunnel mtu %d\n", p.TunnelMTU)
	}
	for _, one := range p.Problems {
		fmt.Fprintf(&b, "%s: cannot be reached: %s\n", one.Node, one.Reason)
	}
	return b.String()
}

func TestPlanPaths(t *testing.T) {
	const link = "192.0.2.0/24"
	self := node("self", "192.0.2.1", "10.244.0.0/24", link, "1500", 50)
	up := uplink{Index: 2, Name: "eth0", MTU: 1500, Link: netip.MustParsePrefix(link)}
	for name, tc := range map[string]struct {
		self   *corev1.Node
		up     uplink
		others []*corev1.Node
	}{
		"alone":         {self, up, nil},
		"one link":      {self, up, []*corev1.Node{node("b", "192.0.2.2", "10.244.1.0/24", link, "1500", 1), node("c", "192.0.2.3", "10.244.2.0/24", link, "1500", 2)}},
		"two links":     {self, up, []*corev1.Node{node("b", "192.0.2.2", "10.244.1.0/24", link, "1500", 1), node("c", "198.51.100.3", "10.244.2.0/24", "198.51.100.0/24", "1500", 2)}},
		"link unsaid":   {self, up, []*corev1.Node{node("b", "192.0.2.2", "10.244.1.0/24", "", "", 1)}},
		"false link":    {self, up, []*corev1.Node{node("b", "198.51.100.2", "10.244.1.0/24", link, "", 1)}},
		"own link":      {self, uplink{Index: 2, Name: "eth0", MTU: 1500}, []*corev1.Node{node("b", "192.0.2.2", "10.244.1.0/24", link, "1500", 1)}},
		"address gone":  {self, uplink{}, []*corev1.Node{node("b", "192.0.2.2", "10.244.1.0/24", link, "9000", 1)}},
		"jumbo":         {self, uplink{Index: 2, MTU: 9000, Link: up.Link}, []*corev1.Node{node("b", "192.0.2.2", "10.244.1.0/24", link, "1500", 1), node("c", "198.51.100.3", "10.244.2.0/24", "198.51.100.0/24", "1400", 2), node("d", "198.51.100.4", "10.244.3.0/24", "198.51.100.0/24", "", 2)}},
		"half a node":   {self, up, []*corev1.Node{node("b", "", "10.244.1.0/24", link, "", 1), node("c", "192.0.2.3", "", link, "", 1)}},
		"foreign range": {self, up, []*corev1.Node{node("b", "192.0.2.2", "0.0.0.0/0", link, "", 1), node("c", "192.0.2.3", "192.168.0.0/24", link, "", 1)}},
		"taken range":   {self, up, []*corev1.Node{node("young", "192.0.2.2", "10.244.1.0/24", link, "", 1), node("old", "192.0.2.3", "10.244.1.0/24", link, "", 100), node("thief", "192.0.2.4", "10.244.0.0/25", link, "", 200)}},
		"same address":  {self, up, []*corev1.Node{node("b", "192.0.2.1", "10.244.1.0/24", link, "", 1)}},
		"not ready yet": {node("self", "192.0.2.1", "", "", "", 0), up, []*corev1.Node{node("b", "192.0.2.2", "10.244.1.0/24", link, "", 1)}},
		"odd words":     {self, up, []*corev1.Node{node("b", "192.0.2.2", "10.244.1.0/24", "nonsense", "7", 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			me := machineOf(tc.self)
			me.Link = tc.up.Link
			machines := []machine{me}
			for _, n := range tc.others {
				machines = append(machines, machineOf(n))
			}
			got := planPaths(me, tc.up, machines, netip.MustParsePrefix("10.244.0.0/16")).String()
			file := filepath.Join("testdata", strings.ReplaceAll(name, " ", "-")+".golden")
			if updateGolden() {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("planPaths (-want +got):\n%s", diff)
			}
		})
	}
}

// The plan is the same whatever order the machines come in.
func TestPlanPathsIgnoresOrder(t *testing.T) {
	const link = "192.0.2.0/24"
	up := uplink{Index: 2, MTU: 1500, Link: netip.MustParsePrefix(link)}
	var list []machine
	for i, n := range []*corev1.Node{
		node("self", "192.0.2.1", "10.244.0.0/24", link, "", 0), node("b", "192.0.2.2", "10.244.1.0/24", link, "", 0),
		node("c", "198.51.100.3", "10.244.2.0/24", "", "", 0), node("d", "192.0.2.4", "10.244.1.0/24", link, "", 0),
	} {
		list = append(list, machineOf(n))
		if i == 0 {
			list[0].Link = up.Link
		}
	}
	cluster := netip.MustParsePrefix("10.244.0.0/16")
	want := planPaths(list[0], up, list, cluster).String()
	self := list[0]
	for i := range list {
		for j := range list {
			list[i], list[j] = list[j], list[i]
			if diff := cmp.Diff(want, planPaths(self, up, list, cluster).String()); diff != "" {
				t.Errorf("after swapping %d and %d (-want +got):\n%s", i, j, diff)
			}
		}
	}
}

func TestAnnotations(t *testing.T) {
	up := uplink{Index: 2, MTU: 1400, Link: netip.MustParsePrefix("192.0.2.0/24")}
	for name, tc := range map[string]struct {
		up     uplink
		direct bool
		want   map[string]string
	}{
		"link":        {up, true, map[string]string{AnnotationLink: "192.0.2.0/24", AnnotationLinkMTU: "1400"}},
		"tunnel only": {up, false, map[string]string{AnnotationLink: "", AnnotationLinkMTU: "1400"}},
		"no link":     {uplink{}, true, map[string]string{AnnotationLink: "", AnnotationLinkMTU: ""}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, annotations(tc.up, tc.direct)); diff != "" {
				t.Errorf("annotations (-want +got):\n%s", diff)
			}
		})
	}
}
