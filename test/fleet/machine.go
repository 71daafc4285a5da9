//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"gantry.dev/gantry/internal/agent"
	"gantry.dev/gantry/internal/agent/agenttest"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/heartbeat"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/remote"
)

// labelFleet marks the simulated machines' nodes.
const labelFleet = "fleet.gantry.dev/simulated"

// joinAttempts is how often a machine tries to join.
const joinAttempts = 10

// errOff is what a machine's requests meet when it is off.
var errOff = errors.New("the machine is off")

// machine is a simulated worker.
type machine struct {
	name    string
	uid     types.UID
	dir     string
	address string
	keeper  *join.Keeper
	servers *join.Servers
	log     *slog.Logger

	mu      sync.Mutex // guards the fields below
	runtime *agenttest.Runtime
	off     *atomic.Bool // of the present life; nil: it is off
	since   time.Time    // when it was switched on or off
	cancel  context.CancelFunc
	ended   chan struct{}
}

// joinMachine gives a machine its certificate by a token, as "gantry up --join" does.
func joinMachine(ctx context.Context, i int, dir string, request cluster, log *slog.Logger) (*machine, error) {
	name := fmt.Sprintf("fleet-%04d", i)
	address := netip.AddrFrom4([4]byte{10, 79, byte(i / 250), byte(i%250 + 1)})
	m := &machine{name: name, uid: uuid.NewUUID(), dir: filepath.Join(dir, name), address: address.String(), servers: join.NewServers(request.servers...), log: log.With("machine", name)}
	var err error
	m.keeper, err = join.NewKeeper(join.KeeperOptions{Dir: filepath.Join(m.dir, "pki"), NodeName: name, Addresses: []netip.Addr{address}, Logger: m.log})
	if err != nil {
		return nil, err
	}
	transport := m.servers.Transport(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: request.believed.Pool()})
	defer transport.CloseIdleConnections()
	for attempt := 1; ; attempt++ { // a person would type the command again
		err := m.keeper.Join(ctx, request.believed, join.API{Transport: transport, Token: request.token.Bootstrap()})
		if err == nil {
			return m, nil
		}
		if attempt == joinAttempts || !lifecycle.Pause(ctx, time.Second) {
			return nil, fmt.Errorf("join %s: %w", name, err)
		}
	}
}

// on switches the machine on, with nothing in its memory.
func (m *machine) on(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off != nil {
		return nil
	}
	off, runtime := new(atomic.Bool), agenttest.NewRuntime()
	transport := m.servers.Transport(m.keeper.ClientTLS())
	cluster, err := remote.New(remote.Options{
		Transport: &switched{off: off, next: transport}, NodeName: m.name, Agent: "gantry-node/fleet", Dir: filepath.Join(m.dir, "known"), Logger: m.log,
	})
	if err != nil {
		return err
	}
	node, err := agent.New(agent.Parts{
		Client: cluster.Client(), Informers: cluster.Own(), Runtime: runtime, Images: &agenttest.Images{}, Network: &agenttest.Network{}, Volumes: agenttest.Volumes{},
	}, agent.Options{
		NodeName: m.name, NodeUID: m.uid, NodeIPs: []string{m.address}, PodsDir: filepath.Join(m.dir, "pods"), LogDir: filepath.Join(m.dir, "log"),
		ClusterDNS: []string{"10.96.0.10"}, NodeLabels: map[string]string{labelFleet: "true"}, DisableCollection: true, Confirmed: cluster.Confirmed, Logger: m.log,
		Capacity:  corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourceEphemeralStorage: resource.MustParse("100Gi")},
		DiskUsage: func(string) (int64, int64, error) { return 1, 100 << 30, nil },
		Clock:     runtime.SinceStart,
		NodeInfo:  corev1.NodeSystemInfo{BootID: string(uuid.NewUUID()), KubeletVersion: "v1.36.3", ContainerRuntimeVersion: "memory://1"},
		Heartbeats: func() []heartbeat.Server {
			var out []heartbeat.Server
			for _, address := range m.servers.List() {
				out = append(out, &switchedBeats{Server: heartbeat.NewRemote(address, m.keeper.ClientTLS), off: off})
			}
			return out
		},
	})
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(ctx)
	m.off, m.runtime, m.cancel, m.since, m.ended = off, runtime, cancel, time.Now(), make(chan struct{})
	go func(ended chan struct{}) {
		defer close(ended)
		var group sync.WaitGroup
		group.Go(func() { _ = cluster.Run(running) }) // it ends with its context only
		if err := node.Run(running); err != nil && running.Err() == nil {
			m.log.Error("the agent has ended", "error", err)
		}
		cancel()
		group.Wait()
		transport.CloseIdleConnections()
	}(m.ended)
	return nil
}

// kill is a power cut: nothing is announced, and what ran is gone. It returns the pods that ran.
func (m *machine) kill() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off == nil {
		return nil
	}
	m.off.Store(true)
	lost := running(m.runtime)
	m.servers.Reconnect()
	m.cancel()
	m.off, m.runtime, m.since = nil, nil, time.Now()
	return lost
}

// wait returns when all of a machine that was switched off has ended.
func (m *machine) wait() {
	m.mu.Lock()
	ended := m.ended
	m.mu.Unlock()
	if ended != nil {
		<-ended
	}
}

// pods are those that run, and since when the machine has been on; false: it is off.
func (m *machine) pods() (names []string, since time.Time, on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off == nil {
		return nil, m.since, false
	}
	return running(m.runtime), m.since, true
}

// running are the names of the pods with a running container.
func running(runtime *agenttest.Runtime) []string {
	list, err := runtime.List(context.Background())
	if err != nil {
		return nil
	}
	var names []string
	for _, s := range list {
		for _, c := range s.Containers {
			if c.State == container.StateRunning {
				names = append(names, s.Sandbox.Name)
				break
			}
		}
	}
	return names
}

// deploymentOf is the Deployment of a pod: its name without the hash of its ReplicaSet and its own.
func deploymentOf(pod string) string {
	for range 2 {
		if i := strings.LastIndexByte(pod, '-'); i > 0 {
			pod = pod[:i]
		}
	}
	return pod
}

// switched makes requests until the machine is off.
type switched struct {
	off  *atomic.Bool
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (s *switched) RoundTrip(r *http.Request) (*http.Response, error) {
	if s.off.Load() {
		return nil, errOff
	}
	return s.next.RoundTrip(r)
}

// switchedBeats sends beats until the machine is off.
type switchedBeats struct {
	heartbeat.Server
	off *atomic.Bool
}

// Beat implements heartbeat.Server.
func (s *switchedBeats) Beat(ctx context.Context, beat heartbeat.Beat, timeout time.Duration) (heartbeat.Answer, error) {
	if s.off.Load() {
		return heartbeat.Answer{}, errOff
	}
	return s.Server.Beat(ctx, beat, timeout)
}
