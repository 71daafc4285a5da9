//go:build linux

package machines

import (
	"crypto/rand"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	// FirstIP is the address of the first machine; the others follow it.
	FirstIP = "10.77.0.2"
	// OutsideIP is the address of the world outside.
	OutsideIP = "10.77.0.1"
	// LinkNet is the prefix of the machines' link.
	LinkNet = "10.77.0.0/24"
)

// Link is machines on one link, by number from 0.
type Link struct {
	Outside string   // path of the bridge's namespace
	NS      []string // paths of the machines' namespaces
}

// New makes n machines that reach each other. They are gone when the test ends.
func New(t testing.TB, n int) *Link {
	t.Helper()
	name := "ge-" + strings.ToLower(rand.Text()[:6])
	l := &Link{Outside: "/run/netns/" + name}
	addNamespace(t, name)
	Run(t, "-n", name, "link", "add", "br0", "type", "bridge")
	Run(t, "-n", name, "addr", "add", OutsideIP+"/24", "dev", "br0")
	Run(t, "-n", name, "link", "set", "br0", "up")
	for i := range n {
		own := fmt.Sprintf("%s-%d", name, i)
		addNamespace(t, own)
		Run(t, "-n", own, "link", "add", "eth0", "type", "veth", "peer", "name", Port(i), "netns", name)
		Run(t, "-n", own, "addr", "add", IP(i)+"/24", "dev", "eth0")
		Run(t, "-n", own, "link", "set", "eth0", "up")
		Run(t, "-n", own, "route", "add", "default", "via", OutsideIP)
		Run(t, "-n", name, "link", "set", Port(i), "master", "br0", "up")
		l.NS = append(l.NS, "/run/netns/"+own)
	}
	return l
}

func addNamespace(t testing.TB, name string) {
	t.Helper()
	Run(t, "netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	Run(t, "-n", name, "link", "set", "lo", "up")
}

// Run runs the program ip, which must work.
func Run(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Port is the bridge's end of machine i's link.
func Port(i int) string { return fmt.Sprintf("port%d", i) }

// IP is the address of machine i.
func IP(i int) string {
	addr := netip.MustParseAddr(FirstIP)
	for range i {
		addr = addr.Next()
	}
	return addr.String()
}

// Cut takes the link of machine i away, both ways; nobody's addresses or routes change.
func (l *Link) Cut(t testing.TB, i int) {
	t.Helper()
	Run(t, "-n", filepath.Base(l.Outside), "link", "set", Port(i), "nomaster")
}

// Mend gives the link of machine i back.
func (l *Link) Mend(t testing.TB, i int) {
	t.Helper()
	Run(t, "-n", filepath.Base(l.Outside), "link", "set", Port(i), "master", "br0")
}

// CutTo drops what machine "from" sends to machine "to"; the other way still works.
func (l *Link) CutTo(t testing.TB, from, to int) {
	t.Helper()
	Run(t, "-n", filepath.Base(l.NS[from]), "route", "add", "blackhole", IP(to)+"/32")
}

// MendTo ends CutTo.
func (l *Link) MendTo(t testing.TB, from, to int) {
	t.Helper()
	Run(t, "-n", filepath.Base(l.NS[from]), "route", "del", "blackhole", IP(to)+"/32")
}
