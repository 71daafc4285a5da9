//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// networkReport is what "gantry network check --json" prints.
type networkReport struct {
	Pairs []struct {
		From, To, Pods, Service, DNS, Policy string
		MTU                                  int
	}
	Problems []struct{ What, Cure string }
}

func networkCheck(t *testing.T, c *cluster) (networkReport, int) {
	t.Helper()
	r := c.gantry(t, "", "network", "check", "--json")
	var report networkReport
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatalf("gantry network check: %v: %v", err, r)
	}
	return report, r.code
}

// TestNetworkBetweenMachines proves on three machines, two that reach each other's pods by routes and one that is reached by
// the tunnel, what "gantry network check" proves, and that it finds a port that somebody closes.
func TestNetworkBetweenMachines(t *testing.T) {
	m := newMachines(t, 3)
	m.node[0].up(t)
	var token struct{ Token string }
	if err := json.Unmarshal([]byte(m.node[0].mustGantry(t, "token", "create", "--json")), &token); err != nil {
		t.Fatal(err)
	}
	joining := []string{"--join", m.ip(0) + ":6443", "--token", token.Token}
	m.node[1].up(t, joining...)
	m.node[2].up(t, append(joining, "--network-mode", "vxlan")...)

	report, code := networkCheck(t, m.node[0])
	if code != 0 || len(report.Problems) > 0 || len(report.Pairs) != 9 {
		t.Errorf("gantry network check = %d, %+v; want 0, nine pairs and no problem", code, report)
	}
	for _, p := range report.Pairs {
		want := 1500
		if p.From != p.To && (p.From == m.name(2) || p.To == m.name(2)) {
			want = 1450
		}
		if p.Pods != "ok" || p.Service != "ok" || p.DNS != "ok" || p.Policy != "ok" || p.MTU != want {
			t.Errorf("%+v; want all ok and packets of %d bytes", p, want)
		}
	}

	// The tunnel's packets do not leave machine 2 any more.
	ns := filepath.Base(m.node[2].ns)
	ip(t, "-n", ns, "rule", "add", "pref", "1", "ipproto", "udp", "dport", "8472", "blackhole")
	report, code = networkCheck(t, m.node[0])
	if code != 1 {
		t.Errorf("gantry network check = %d with the tunnel's port closed, want 1", code)
	}
	for _, p := range report.Pairs {
		want := "ok"
		if p.From != p.To && (p.From == m.name(2) || p.To == m.name(2)) {
			want = "broken"
		}
		if p.Pods != want {
			t.Errorf("%+v; want pods %s", p, want)
		}
	}
	for _, p := range report.Problems {
		if !strings.Contains(p.What, m.name(2)) || !strings.Contains(p.Cure, "UDP port 8472") {
			t.Errorf("%+v; want one about %s, and the port as its cure", p, m.name(2))
		}
	}
	ip(t, "-n", ns, "rule", "del", "pref", "1")
	eventually(t, "nothing is left of the checks", 30*time.Second, func() error {
		if spaces := m.node[0].kubectl(t, "get", "namespaces", "-o", "name"); strings.Contains(spaces, "gantry-network-check") {
			return errors.New(spaces)
		}
		return nil
	})

	// A machine that leaves is forgotten by the others.
	m.node[2].mustGantry(t, "down")
	m.node[0].kubectl(t, "delete", "node", m.name(2))
	if report, code = networkCheck(t, m.node[0]); code != 0 || len(report.Pairs) != 4 {
		t.Errorf("without machine 2: %d, %+v; want 0 and four pairs", code, report)
	}
}
