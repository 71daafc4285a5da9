//go:build linux

package edge_test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"gantry.dev/gantry/internal/network/dns"
	"gantry.dev/gantry/internal/network/edge"
	"gantry.dev/gantry/internal/network/feed"
	"gantry.dev/gantry/internal/network/nettest"
)

const runEnv = "GANTRY_EDGE_TEST_OPTIONS"

// TestMain also is the program under test: processes that start each other must be real ones.
func TestMain(m *testing.M) {
	if text := os.Getenv(runEnv); text != "" {
		var opts edge.Options
		err := json.Unmarshal([]byte(text), &opts)
		if err == nil {
			err = edge.Run(signalContext(), opts)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(nettest.Main(m))
}

const at = "127.0.0.1:5300"

type process struct {
	t   *testing.T
	cmd *exec.Cmd
}

func options(t *testing.T, build string, uid int) edge.Options {
	t.Helper()
	dir, err := os.MkdirTemp("", "edge")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return edge.Options{Socket: filepath.Join(dir, "s"), StateDir: filepath.Join(dir, "state"), UID: uid, Build: build,
		Listen: []netip.AddrPort{netip.MustParseAddrPort(at)}, ResolvConf: "/nonexistent"}
}

func start(t *testing.T, opts edge.Options) *process {
	t.Helper()
	text, err := json.Marshal(opts)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), runEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{t, cmd}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _, _ = cmd.Process.Wait() })
	return p
}

// waitEnd waits until the process has ended by itself.
func (p *process) waitEnd() {
	p.t.Helper()
	done := make(chan error, 1)
	go func() { done <- p.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			p.t.Fatalf("edge ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		p.t.Fatal("edge does not end")
	}
}

// connect waits until an edge of the build answers.
func connect(t *testing.T, opts edge.Options) (net.Conn, feed.Hello) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("unix", opts.Socket)
		if err == nil {
			var hello feed.Hello
			if err = feed.Expect(conn, feed.KindHello, &hello); err == nil && hello.Build == opts.Build {
				t.Cleanup(func() { _ = conn.Close() })
				return conn, hello
			}
			_ = conn.Close()
		}
		if time.Now().After(deadline) {
			t.Fatalf("no edge %s answers: %v", opts.Build, err)
		}
	}
}

func request(t *testing.T, conn net.Conn, kind feed.Kind, body any) {
	t.Helper()
	var ack feed.Ack
	if err := feed.Write(conn, kind, body); err != nil {
		t.Fatal(err)
	}
	if err := feed.Expect(conn, feed.KindAck, &ack); err != nil {
		t.Fatal(err)
	}
}

func table(generation uint64, addr string) feed.Table {
	return feed.Table{Generation: generation, DNS: dns.Table{Config: dns.Config{Domain: "cluster.local"},
		Sets: map[string][]dns.Record{"web": {{Name: "web.default.svc.cluster.local", Type: dns.A, Addr: netip.MustParseAddr(addr)}}}}}
}

func lookup(network string) (string, error) {
	m := new(mdns.Msg)
	m.SetQuestion("web.default.svc.cluster.local.", mdns.TypeA)
	r, _, err := (&mdns.Client{Net: network, Timeout: 3 * time.Second}).Exchange(m, at)
	if err != nil {
		return "", err
	}
	if len(r.Answer) != 1 {
		return mdns.RcodeToString[r.Rcode], nil
	}
	return r.Answer[0].(*mdns.A).A.String(), nil
}

func expect(t *testing.T, want string) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		if got, err := lookup(network); got != want || err != nil {
			t.Errorf("lookup by %s = %q, %v; want %s", network, got, err, want)
		}
	}
}

func TestFeedAndRestart(t *testing.T) {
	nettest.Need(t)
	opts := options(t, "one", testUID)
	p := start(t, opts)
	conn, hello := connect(t, opts)
	if hello.Generation != 0 || hello.Version != feed.Version {
		t.Errorf("hello %+v", hello)
	}
	request(t, conn, feed.KindTable, table(1, "10.96.0.1"))
	expect(t, "10.96.0.1")
	request(t, conn, feed.KindDelta, feed.Delta{Generation: 2, DNS: table(2, "10.96.0.2").DNS.Sets})
	expect(t, "10.96.0.2")
	if err := feed.Write(conn, feed.KindTable, feed.Table{Generation: 9}); err != nil {
		t.Fatal(err)
	}
	var ack feed.Ack
	if err := feed.Expect(conn, feed.KindAck, &ack); err == nil || !strings.Contains(err.Error(), "domain") {
		t.Errorf("a table without domain: %v, want it refused", err)
	}
	expect(t, "10.96.0.2")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", hello.PID))
	if testUID != 0 && (err != nil || !strings.Contains(string(status), "Uid:\t65053\t65053") || !strings.Contains(string(status), "CapEff:\t0000000000000400")) {
		t.Errorf("the edge did not give up root: %v\n%s", err, status)
	}
	if err := feed.Write(conn, feed.KindStats, nil); err != nil {
		t.Fatal(err)
	}
	var stats feed.Stats
	if err := feed.Expect(conn, feed.KindStats, &stats); err != nil || stats.DNS.Local < 6 || stats.Sets != 1 {
		t.Errorf("stats %+v, %v", stats, err)
	}
	t.Logf("resident: %d KiB", stats.RSSKiB)
	waitSaved(t, opts, 2)
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
	next := start(t, opts)
	conn, hello = connect(t, opts)
	if hello.Generation != 2 {
		t.Errorf("after kill -9: generation %d, want 2 from disk", hello.Generation)
	}
	expect(t, "10.96.0.2")
	request(t, conn, feed.KindStop, nil)
	next.waitEnd()
}

func waitSaved(t *testing.T, opts edge.Options, generation uint64) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		data, err := os.ReadFile(filepath.Join(opts.StateDir, "table.json"))
		var saved feed.Table
		if err == nil && json.Unmarshal(data, &saved) == nil && saved.Generation == generation {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("generation %d is not on disk: %v", generation, err)
		}
	}
}

// While edges replace each other, every lookup is answered.
func TestTakeover(t *testing.T) {
	nettest.Need(t)
	opts := options(t, "one", testUID)
	old := start(t, opts)
	conn, _ := connect(t, opts)
	request(t, conn, feed.KindTable, table(1, "10.96.0.1"))
	var stop atomic.Bool
	results := make(chan error, 2)
	var asked atomic.Int64
	for _, network := range []string{"udp", "tcp"} {
		go func() {
			for !stop.Load() {
				got, err := lookup(network)
				if err == nil && got != "10.96.0.1" {
					err = fmt.Errorf("got %q", got)
				}
				if err != nil {
					results <- fmt.Errorf("by %s: %w", network, err)
					return
				}
				asked.Add(1)
			}
			results <- nil
		}()
	}
	for i := range 5 {
		opts.Build = fmt.Sprintf("build-%d", i)
		next := start(t, opts)
		connect(t, opts)
		old.waitEnd()
		old = next
	}
	stop.Store(true)
	for range 2 {
		if err := <-results; err != nil {
			t.Errorf("a lookup failed during the takeover: %v", err)
		}
	}
	t.Logf("%d lookups", asked.Load())
}
