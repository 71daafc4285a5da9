//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	link "gantry.dev/gantry/test/machines"
)

// machines are several machines on one link: each a network namespace and a data dir, with eth0 on a bridge in a
// namespace of its own, which is the world outside too (outsideIP).
//
//	m := newMachines(t, 3)
//	m.node[0].up(t)              // the first server, at 10.77.0.2
//	m.join(t, 0, 1)              // machine 1 becomes a worker of the server on machine 0
//	m.cut(t, 1); m.mend(t, 1)    // its link, both ways; cutTo one way
type machines struct {
	link  *link.Link
	world string     // path of the bridge's namespace
	node  []*cluster // node[i] has the address m.ip(i) and the name m.name(i)
}

// linkNet is the prefix of the machines' link.
const linkNet = link.LinkNet

// newMachines makes n machines with nothing on them; flags are those of every "gantry up".
func newMachines(t *testing.T, n int, flags ...string) *machines {
	t.Helper()
	bin := os.Getenv(binEnv)
	if bin == "" {
		t.Skipf("%s does not say where the programs are; \"make e2e\" does", binEnv)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces and containers")
	}
	m := &machines{link: link.New(t, n)}
	m.world = m.link.Outside
	for i := range n {
		dir, err := os.MkdirTemp(shortTempDir(), "ge-")
		if err != nil {
			t.Fatal(err)
		}
		c := &cluster{
			machine: &machine{ns: m.link.NS[i], outside: m.world, bin: bin}, dir: dir,
			extra: append([]string{"--node-name", m.name(i)}, flags...),
		}
		m.node = append(m.node, c)
		t.Cleanup(func() { c.remove(t) })
	}
	return m
}

// ip runs the program ip, which must work.
func ip(t *testing.T, args ...string) { t.Helper(); link.Run(t, args...) }

// ip is the address of machine i: machineIP for the first.
func (m *machines) ip(i int) string { return link.IP(i) }

// name is the node name of machine i.
func (m *machines) name(i int) string { return fmt.Sprintf("m%d", i) }

// token is the address and the token of the command that a server prints for a machine that is to join.
func (m *machines) token(t *testing.T, server int, flags ...string) (address, token string) {
	t.Helper()
	words := strings.Fields(m.node[server].mustGantry(t, append([]string{"token", "create"}, flags...)...))
	for i := range len(words) - 1 {
		switch words[i] {
		case "--join":
			address = words[i+1]
		case "--token":
			token = words[i+1]
		}
	}
	if address != m.ip(server)+":6443" || token == "" {
		t.Fatalf("token create says %q", words)
	}
	return address, token
}

// join makes machine i a worker of the cluster of a server, and returns its steps.
func (m *machines) join(t *testing.T, server, i int) string {
	t.Helper()
	address, token := m.token(t, server)
	steps := m.node[i].up(t, "--join", address, "--token", token)
	for pid, cmdline := range m.node[i].processes() {
		if strings.Contains(cmdline, token) {
			t.Errorf("process %d shows the token: %s", pid, cmdline)
		}
	}
	return steps
}

// cut takes the link of machine i away, both ways; nobody's addresses or routes change.
func (m *machines) cut(t *testing.T, i int) { t.Helper(); m.link.Cut(t, i) }

// mend gives the link of machine i back.
func (m *machines) mend(t *testing.T, i int) { t.Helper(); m.link.Mend(t, i) }

// cutTo drops what machine "from" sends to machine "to"; the other way still works.
func (m *machines) cutTo(t *testing.T, from, to int) { t.Helper(); m.link.CutTo(t, from, to) }

// mendTo ends cutTo.
func (m *machines) mendTo(t *testing.T, from, to int) { t.Helper(); m.link.MendTo(t, from, to) }

// everything are the processes of machine i, those of its pods included.
func (m *machines) everything(i int) map[int]string {
	return link.Everything(m.node[i].ns, m.node[i].dir)
}

// signal sends a signal to everything on machine i: SIGKILL is a power cut, SIGSTOP and SIGCONT a pause.
func (m *machines) signal(i int, signal syscall.Signal) {
	for pid := range m.everything(i) {
		_ = syscall.Kill(pid, signal)
	}
}

// TestMachines is a test of the other tests' machines: they reach each other until a link is cut.
func TestMachines(t *testing.T) {
	m := newMachines(t, 2)
	reach := func(from, to int) bool {
		return exec.Command("nsenter", "--net="+m.node[from].ns, "ping", "-c1", "-W1", m.ip(to)).Run() == nil
	}
	if _, err := exec.LookPath("ping"); err != nil {
		t.Skip("needs ping")
	}
	if !reach(0, 1) || !reach(1, 0) {
		t.Fatal("the machines do not reach each other")
	}
	m.cut(t, 1)
	if reach(0, 1) {
		t.Error("a machine whose link is cut is reached")
	}
	m.mend(t, 1)
	m.cutTo(t, 0, 1)
	if reach(0, 1) {
		t.Error("a machine is reached though what is sent to it is dropped")
	}
	m.mendTo(t, 0, 1)
	if !reach(1, 0) {
		t.Error("a mended link does not work")
	}
}
