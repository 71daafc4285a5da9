//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	link "gantry.dev/gantry/test/machines"
)

// tourEnv asks for the tour on several machines, which takes minutes: "make tour" sets it.
const tourEnv = "GANTRY_E2E_TOUR"

const (
	// addressTries are how often a request that may be repeated is sent, each time to the next address.
	addressTries = 6
	// tryLimit bounds one of these tries: longer than a good answer takes on busy cores.
	tryLimit = 2 * time.Second
	// shunned is how long an address that did not answer is asked last.
	shunned = 2 * time.Second
	// lostBefore and lostAfter bound when a request was begun that may be lost with a machine: one on its way when the machine
	// died, or given to a pod of it by another machine's gateway before that heard of the death (1.5 s, and a new leader's election).
	lostBefore, lostAfter = 2 * time.Second, 6 * time.Second
)

// TestTourOnThreeMachines is the tour on three servers. In the middle of each step the machine that serves most loses its
// power and its link, and is started again after the step. The first machine is spared: the database's volume is on its disk
// and nowhere else, and the developer's command line speaks to it. The last step kills that one, too.
//
// The client knows all three addresses. It repeats what HTTP calls idempotent at another address, as any client does; each
// request that ends without the right answer fails the test, but for one kind, which is counted apart: a POST that was on its way
// to the machine, or to a pod of it, when it died. Nobody can know whether such a one was done.
func TestTourOnThreeMachines(t *testing.T) {
	if os.Getenv(tourEnv) == "" {
		t.Skipf("%s is not set; \"make tour\" sets it", tourEnv)
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the example is compiled by this machine's go, which is missing")
	}
	images := addonImages(t)
	m := newMachines(t, 3)
	m.node[0].up(t)
	for i := 1; i < 3; i++ {
		address, token := m.token(t, 0, "--server")
		m.node[i].up(t, "--join", address, "--server", "--token", token)
	}
	m.node[0].loadAddons(t, images)
	mt := &machinesTour{machines: m, tour: newTour(t, m.node[0])}
	mt.all, mt.lost = m.node, mt.lostWithMachine
	mt.reach = func(t *testing.T) *http.Client { return mt.anyAddress(t) }
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("status: %v", mt.gantry(t, "status", "tasks"))
			mt.node[0].explainNamespace(t, "default")
		}
	})
	if !t.Run("deploy", mt.first) {
		return
	}
	for _, step := range []struct {
		name  string
		run   func(*tour, *testing.T)
		after time.Duration // from the step's begin to the machine's end
	}{
		{"CRUD", (*tour).crud, 0}, {"worker", (*tour).worker, time.Second}, {"nothing changed", (*tour).unchanged, 300 * time.Millisecond},
		{"canary", (*tour).canary, 8 * time.Second}, {"bad release", (*tour).badRelease, 6 * time.Second},
		{"crashing release", (*tour).crashingRelease, 4 * time.Second}, {"build that fails", (*tour).failedBuild, 300 * time.Millisecond},
		{"rollback", (*tour).rollback, 2 * time.Second}, {"pod killed", (*tour).podKilled, 5 * time.Second},
		{"sleep", (*tour).sleep, 6 * time.Second}, {"remove and undo", (*tour).removeAndUndo, 3 * time.Second},
	} {
		if !t.Run(step.name, func(t *testing.T) { mt.during(t, step.after, func() { step.run(mt.tour, t) }) }) {
			break
		}
	}
	if mt.load != nil {
		mt.load.stop()
	}
	if !t.Failed() {
		t.Run("the database's machine", mt.databaseLost)
	}
}

// machinesTour is a developer whose cluster has several machines.
type machinesTour struct {
	*tour
	*machines

	died atomic.Int64 // when the last machine died, in Unix nanoseconds
}

// first is the first deploy, with the database's volume on the first machine.
func (mt *machinesTour) first(t *testing.T) {
	mt.lead(t)
	for i := 1; i < 3; i++ {
		mt.node[0].kubectl(t, "cordon", mt.name(i))
	}
	deployed := make(chan struct{})
	var placing error
	placed := make(chan struct{})
	go func() { // the deploy goes on meanwhile
		defer close(placed)
		placing = poll(2*time.Minute, func() error {
			r := mt.node[0].try(t, "get", "pvc", "-n", "default", "-o", "jsonpath={.items[*].status.phase}")
			if r.stdout != "Bound" {
				return fmt.Errorf("the volume is %v", r)
			}
			return nil
		})
		for i := 1; i < 3; i++ {
			if r := mt.node[0].try(t, "uncordon", mt.name(i)); r.code != 0 {
				placing = errors.Join(placing, fmt.Errorf("%v", r))
			}
		}
	}()
	mt.duringAt(t, func() bool {
		select {
		case <-placed:
			return true
		case <-deployed:
			return true
		default:
			return false
		}
	}, func() { mt.deploy(t); close(deployed) })
	<-placed
	if placing != nil {
		t.Fatal(placing)
	}
}

// during kills the machine that serves most so long after a step has begun.
func (mt *machinesTour) during(t *testing.T, after time.Duration, step func()) {
	t.Helper()
	mt.lead(t)
	begun := time.Now()
	mt.duringAt(t, func() bool { return time.Since(begun) >= after }, step)
}

// duringAt runs a step, kills the machine that serves most when it is time, and starts it again after the step.
func (mt *machinesTour) duringAt(t *testing.T, now func() bool, step func()) {
	t.Helper()
	killed := make(chan int, 1)
	ended := make(chan struct{})
	go func() {
		for !now() {
			select {
			case <-ended:
				killed <- -1
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
		victim := mt.busiest(t)
		mt.powerOff(victim)
		killed <- victim
	}()
	begun := time.Now()
	defer func() {
		close(ended)
		victim := <-killed
		if victim < 0 {
			t.Errorf("the step ended after %v, before a machine was killed", time.Since(begun))
			return
		}
		at := time.Unix(0, mt.died.Load())
		t.Logf("%s was killed %.1f s after the step's begin; the step ended after %.1f s", mt.name(victim), at.Sub(begun).Seconds(), time.Since(begun).Seconds())
		if t.Failed() {
			return
		}
		mt.powerOn(t, victim)
	}()
	step()
}

// powerOff ends machine i as a power cut does: nothing of it is heard any more, not even that connections end.
func (mt *machinesTour) powerOff(i int) {
	cut := exec.Command("ip", "-n", strings.TrimPrefix(mt.world, "/run/netns/"), "link", "set", link.Port(i), "nomaster")
	if out, err := cut.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("cutting the link: %v: %s", err, out))
	}
	mt.died.Store(time.Now().UnixNano())
	for range 3 { // what was about to start while others were killed
		mt.signal(i, syscall.SIGKILL)
	}
}

// powerOn brings machine i back and waits until the cluster is whole, and the load as good as before.
func (mt *machinesTour) powerOn(t *testing.T, i int) {
	t.Helper()
	mt.mend(t, i)
	mt.node[i].up(t)
	mt.whole(t)
	if mt.load != nil {
		mt.load.more(t, 50)
		mt.load.check(t, mt.name(i)+" is back")
	}
}

// whole waits until all machines are ready and have votes, and all that should run runs.
func (mt *machinesTour) whole(t *testing.T) {
	t.Helper()
	eventually(t, "all machines are ready", time.Minute, func() error {
		if out := mt.node[0].try(t, "get", "nodes", "--no-headers").stdout; strings.Count(out, " Ready") != 3 {
			return fmt.Errorf("they are\n%s", out)
		}
		if got := mt.node[0].try(t, "get", "endpoints", "kubernetes", "-o", "jsonpath={.subsets[*].addresses[*].ip}").stdout; len(strings.Fields(got)) != 3 {
			return fmt.Errorf("default/kubernetes is at %s", got)
		}
		for _, node := range mt.node {
			if r := node.try(t, "get", "--raw", "/readyz", "--request-timeout=2s"); r.code != 0 {
				return fmt.Errorf("%v", r)
			}
		}
		return nil
	})
	if mt.load != nil {
		mt.ready(t)
	}
}

// lead sees to it that the first machine, which is spared, does not lead: it is restarted in order if it does.
func (mt *machinesTour) lead(t *testing.T) {
	t.Helper()
	for range 3 {
		if mt.leader(t, 0) != 0 {
			return
		}
		mt.node[0].kill(t, syscall.SIGTERM)
		mt.node[0].up(t)
		mt.whole(t)
	}
	t.Fatal("the first machine leads again and again")
}

// busiest is the machine, the first left out, with most pods of the application; of two with as many it is the one that leads.
func (mt *machinesTour) busiest(t *testing.T) int {
	t.Helper()
	pods := mt.node[0].try(t, "get", "pods", "-l", "gantry.dev/process", "-o", "jsonpath={.items[*].spec.nodeName}").stdout
	one, two := strings.Count(pods, mt.name(1)), strings.Count(pods, mt.name(2))
	victim, leader := 1, mt.leader(t, 0)
	if two > one || two == one && leader == 2 {
		victim = 2
	}
	t.Logf("pods of the application are on %s, and machine %d leads; %s is killed", pods, leader, mt.name(victim))
	return victim
}

// lostWithMachine says that a POST was begun about when a machine died.
func (mt *machinesTour) lostWithMachine(method string, begun time.Time) bool {
	died := time.Unix(0, mt.died.Load())
	return method == http.MethodPost && begun.After(died.Add(-lostBefore)) && begun.Before(died.Add(lostAfter))
}

// databaseLost kills the machine with the database. Nothing can stand in for the volume: the application answers with errors
// until that machine is back, and has all its data then.
func (mt *machinesTour) databaseLost(t *testing.T) {
	mt.powerOff(0)
	eventually(t, "nothing is listed without the database", 30*time.Second, func() error {
		if text, err := fetch(mt.client, tourURL+"/api/tasks"); err == nil {
			return fmt.Errorf("the tasks are %s", text)
		}
		return nil
	})
	eventually(t, "what needs no database is served on", time.Minute, func() error {
		_, err := fetch(mt.client, tourURL+"/version")
		return err
	})
	mt.mend(t, 0)
	mt.node[0].up(t)
	begun := time.Now()
	eventually(t, "the tasks are there again", 2*time.Minute, func() error {
		text, err := fetch(mt.client, tourURL+"/api/tasks")
		if err == nil && !strings.Contains(text, tourTask) {
			err = fmt.Errorf("the tasks are %s", text)
		}
		return err
	})
	t.Logf("the tasks were there %.1f s after the machine was up", time.Since(begun).Seconds())
	mt.whole(t)
}

// anyAddress is a client outside that knows the addresses of all machines.
func (mt *machinesTour) anyAddress(t *testing.T) *http.Client {
	t.Helper()
	encoded := mt.node[0].kubectl(t, "get", "secret", "-n", "gantry-system", "gateway-ca", "-o", `jsonpath={.data.ca\.crt}`)
	ca, err := base64.StdEncoding.DecodeString(encoded)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		t.Fatalf("the authority is %q, %v", ca, err)
	}
	client := &addresses{}
	dial := dialIn(mt.world)
	for i := range mt.node {
		address := mt.ip(i)
		client.ways = append(client.ways, &way{transport: &http.Transport{
			DialContext: func(ctx context.Context, network, to string) (net.Conn, error) {
				_, port, err := net.SplitHostPort(to)
				if err != nil {
					return nil, err
				}
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				return dial(ctx, network, net.JoinHostPort(address, port))
			},
			TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 8,
			TLSHandshakeTimeout: time.Second,
		}})
	}
	return &http.Client{Timeout: 20 * time.Second, Transport: client}
}

// addresses is a client that has several addresses of one service and takes them in turn.
type addresses struct {
	ways []*way
	turn atomic.Int64
}

// way is one of them.
type way struct {
	transport *http.Transport
	bad       atomic.Int64 // when it did not answer, in Unix nanoseconds
}

// RoundTrip sends a request. What never left, or may be sent twice, is sent to another address when it is not answered.
func (a *addresses) RoundTrip(r *http.Request) (*http.Response, error) {
	var failed error
	var tried [16]bool
	for try := range addressTries {
		w := a.next(&tried)
		response, err := w.send(r, try > 0)
		if err == nil {
			return response, nil
		}
		w.bad.Store(time.Now().UnixNano())
		failed = errors.Join(failed, err)
		if op, ok := errors.AsType[*net.OpError](err); r.Method == http.MethodPost && (!ok || op.Op != "dial") || r.Context().Err() != nil {
			break
		}
	}
	return nil, failed
}

// next is an address that was not tried yet, one that answered lately if there is one.
func (a *addresses) next(tried *[16]bool) *way {
	from := int(a.turn.Add(1))
	best := -1
	for k := range a.ways {
		i := (from + k) % len(a.ways)
		if tried[i] {
			continue
		}
		if best < 0 || time.Since(time.Unix(0, a.ways[best].bad.Load())) < shunned && time.Since(time.Unix(0, a.ways[i].bad.Load())) >= shunned {
			best = i
		}
	}
	if best < 0 {
		*tried = [16]bool{}
		best = from % len(a.ways)
	}
	tried[best] = true
	return a.ways[best]
}

// send makes one try.
func (w *way) send(r *http.Request, again bool) (*http.Response, error) {
	ctx, cancel := r.Context(), context.CancelFunc(func() {})
	if r.Method != http.MethodPost {
		ctx, cancel = context.WithTimeout(ctx, tryLimit)
	}
	out := r.Clone(ctx)
	if r.GetBody != nil {
		body, err := r.GetBody()
		if err != nil {
			cancel()
			return nil, err
		}
		out.Body = body
	}
	response, err := w.transport.RoundTrip(out)
	if err != nil {
		cancel()
		return nil, err
	}
	text, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	cancel()
	if err != nil {
		return nil, err
	}
	response.Body = io.NopCloser(strings.NewReader(string(text)))
	if again && r.Method == http.MethodDelete && response.StatusCode == http.StatusNotFound {
		response.StatusCode = http.StatusNoContent // the first try did it
	}
	return response, nil
}
