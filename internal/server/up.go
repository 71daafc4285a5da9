package server

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"k8s.io/apimachinery/pkg/version"

	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/network/podnet"
	"gantry.dev/gantry/internal/pki"
	"gantry.dev/gantry/internal/programs"
	"gantry.dev/gantry/internal/store"
)

// kubernetesVersion is the level of the API, as /version says it.
const kubernetesVersion = "v1.36.3"

// peerPort is where servers' stores reach each other, etcd's own.
const peerPort = 2380

// UpOptions is everything that a node needs to run.
type UpOptions struct {
	Config   config.Config
	Identity lifecycle.Identity
	Version  string // of Gantry
	Steps    *lifecycle.Steps
	Logger   *slog.Logger
	Ready    func()           // called once, when the node is Ready
	Join     *cli.JoinRequest // a cluster to join first; nil: none
	Change   *cli.Changing    // how the process becomes another program; nil: it does not
	Trial    bool             // Ready is called when a server has said so, not before

	joining *joining // as a server, until its store has a vote
}

// Up runs this machine's part of its cluster until ctx ends: a server and its node, or a node only. Containers and
// gantry-edge go on then.
func Up(ctx context.Context, opts UpOptions) error {
	quietKlog(opts.Logger)
	member, err := membership(ctx, &opts)
	if err != nil {
		return err
	}
	if member.Role == join.Worker {
		return upWorker(ctx, opts, member)
	}
	err = upServer(ctx, opts)
	if j := opts.joining; j != nil && !j.finished.Load() && !j.begun {
		if j.promotes == nil {
			err = errors.Join(err, j.undo(ctx), removeIdentity(opts.Config))
		} else if worker, failed := promotionFailed(ctx, opts, err); failed != nil || ctx.Err() != nil {
			return errors.Join(err, failed)
		} else {
			return upWorker(ctx, opts, worker)
		}
	}
	if errors.Is(err, store.ErrRemoved) {
		if asked, err := becomeWorker(&opts.Config); asked || err != nil {
			if err == nil && opts.Change != nil {
				opts.Change.Restart()
			}
			return err
		}
		return fmt.Errorf("this server was taken out of its cluster; \"gantry down --purge\" removes what it has, then it can join again: %w", err)
	}
	return err
}

// upServer runs a server and its node.
func upServer(ctx context.Context, opts UpOptions) error {
	c := opts.Config
	nodeIP := c.NodeIP
	if !nodeIP.IsValid() {
		nodeIP = firstPodCIDR(c.PodCIDR).Addr().Next() // the pod bridge's
	}
	if err := CheckRestored(c.DataDir); err != nil {
		return err
	}
	if err := makeFolders(c); err != nil {
		return err
	}
	authority, err := newAuthority(opts, nodeIP)
	if err != nil {
		return err
	}
	end := opts.Steps.Begin("certificates", "ready")
	err = authority.Ensure(ctx)
	end(err)
	if err != nil {
		return err
	}
	embedded, err := programs.Open(c.Path("bin"))
	if err != nil {
		return err
	}
	endpoint := netip.AddrPortFrom(nodeIP, c.Listen.Port())
	cp, err := NewControlPlane(ctx, ControlPlaneOptions{
		Name: opts.Identity.Name, Peer: storePeer(&c), Join: opts.joining.others(),
		Bundle:  func() (map[string]bundleFile, error) { return readBundle(c.Path("pki"), encryptionFile(&c)) },
		EtcdDir: c.Path("etcd"), EncryptionKey: encryptionFile(&c), Access: &c.Access,
		Tolerations: &c.Tolerations,
		Authority:   func() (*x509.Certificate, crypto.Signer) { return authority.Signer(pki.ClusterCA) },
		ServedAs:    servedAs(authority),
		ClientCAs:   clientCAs(authority), SigningKey: authority.ServiceAccountKey(), RootCA: authority.CertPEM(pki.ClusterCA),
		PodCIDR: c.PodCIDR, ServiceCIDR: c.ServiceCIDR, ClusterDomain: c.ClusterDomain,
		RuntimeConfig: c.RuntimeConfig, SchedulerFile: c.SchedulerFile, NoLoadBalancer: c.LoadBalancer == config.LoadBalancerNone,
		Gateway: gatewaySettings(&c),
		Version: serverVersion(opts.Version), Endpoint: func() netip.AddrPort { return endpoint },
		ServerTLS:      serverTLS(authority),
		AgentTransport: agentTransport(authority), FrontProxy: frontProxy(authority), Logger: opts.Logger,
		ImagesDir: c.Path("registry"), GitDir: c.Path("git"),
		Backup: &BackupOptions{
			Gantry: opts.Version, Server: opts.Identity.Name, KeysDir: c.Path("pki"), VolumesDir: c.Path("volumes"),
			Kubeconfig: cmp.Or(c.Kubeconfig, c.Path("admin.kubeconfig")),
		},
	})
	if err != nil {
		return err
	}
	node, err := newNode(nodeOptions{
		config: c, identity: opts.Identity, nodeIP: nodeIP, serving: authority.ServerTLS(pki.Kubelet, pki.ClusterCA), programs: embedded,
		cluster: localCluster{cp, opts.Identity.Name, nodeTLS(authority)}, controlPlane: cp, steps: opts.Steps, logger: opts.Logger, change: opts.Change, trial: opts.Trial, version: opts.Version,
	})
	if err != nil {
		return err
	}
	if !c.NodeIP.IsValid() { // the bridge must be there before it can be listened on
		if _, err := node.network.prepared(ctx, []string{firstPodCIDR(c.PodCIDR).String()}); err != nil {
			return err
		}
	}
	listener := &apiListener{
		handler: cp.Handler(), tls: apiTLS(authority),
		addrs: listenAddrs(c.Listen, endpoint), logger: opts.Logger,
	}
	components := append([]lifecycle.Component{
		{Name: "store", Run: func(ctx context.Context) error { return runAll(ctx, cp.Run, authority.Run) }, Ready: waitFor(cp.Serving())},
		{Name: "api", Run: listener.Run, Ready: both(listener.Ready, waitFor(cp.Ready()))},
	}, node.components()...)
	ready, onReady := readiness(opts.Ready)
	return runAll(ctx,
		func(ctx context.Context) error {
			return lifecycle.Supervise(ctx, lifecycle.SuperviseOptions{Logger: opts.Logger, Steps: opts.Steps, OnReady: onReady}, components...)
		},
		node.unpack, pace, noteServers(cp, c.Path(join.ServersFile), opts.Logger),
		func(ctx context.Context) error { return opts.joining.wait(ctx, opts.Steps, cp.Serving()) },
		func(ctx context.Context) error { return settle(ctx, ready, opts.Logger) },
		func(ctx context.Context) error { return loadRestored(ctx, cp, &c, opts.Logger) })
}

// encryptionFile has the keys that Secrets are encrypted with.
func encryptionFile(c *config.Config) string {
	return cmp.Or(c.Access.EncryptionFile, c.Path("pki", encryptionName))
}

// makeFolders makes those of the data dir that more than one part writes to.
func makeFolders(c config.Config) error {
	for _, dir := range []string{"log", "run"} {
		if err := os.MkdirAll(c.Path(dir), 0o700); err != nil {
			return fmt.Errorf("making the data dir: %w", err)
		}
	}
	return nil
}

// readiness is a channel that is closed, and a call that is made, when the node is Ready.
func readiness(tell func()) (ready chan struct{}, onReady func()) {
	ready = make(chan struct{})
	return ready, func() {
		close(ready)
		if tell != nil {
			tell()
		}
	}
}

// nodeTLS is for connections of this server's node to the other servers.
func nodeTLS(authority *pki.Authority) func() *tls.Config {
	return func() *tls.Config {
		config := authority.ClientTLS(pki.KubeletClient, pki.ClusterCA)
		config.ServerName = join.ServerName
		return config
	}
}

// serverTLS is for what servers ask each other.
func serverTLS(authority *pki.Authority) func() *tls.Config {
	return func() *tls.Config {
		config := authority.ClientTLS(pki.APIServerKubeletClient, pki.ClusterCA)
		config.ServerName = join.ServerName
		return config
	}
}

// servedAs is the API's certificate.
func servedAs(authority *pki.Authority) func() *x509.Certificate {
	return func() *x509.Certificate {
		cert, err := authority.Certificate(pki.APIServer)
		if err != nil {
			return &x509.Certificate{}
		}
		return cert.Leaf
	}
}

// storePeer is how other servers reach this one's store; nil where they cannot.
func storePeer(c *config.Config) *store.Peer {
	if !c.NodeIP.IsValid() || c.NodeIP.IsLoopback() {
		return nil
	}
	file := func(name, ending string) string { return c.Path("pki", filepath.FromSlash(name)+ending) }
	return &store.Peer{
		URL:      "https://" + netip.AddrPortFrom(c.NodeIP, peerPort).String(),
		CertFile: file(string(pki.EtcdPeer), ".crt"), KeyFile: file(string(pki.EtcdPeer), ".key"), CAFile: file(string(pki.EtcdCA), ".crt"),
	}
}

// gatewaySettings are those of the control plane; nil without a gateway.
func gatewaySettings(c *config.Config) *config.Gateway {
	if c.Gateway.Off {
		return nil
	}
	return &c.Gateway
}

func newAuthority(opts UpOptions, nodeIP netip.Addr) (*pki.Authority, error) {
	c := opts.Config
	addrs := []netip.Addr{nodeIP, netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	if !c.Listen.Addr().IsUnspecified() {
		addrs = append(addrs, c.Listen.Addr())
	}
	return pki.New(pki.Options{
		Dir: c.Path("pki"), Logger: opts.Logger,
		Names: pki.Names{
			NodeName: opts.Identity.Name, ClusterDomain: c.ClusterDomain, ServiceIP: c.APIServiceIP(),
			Addresses: addrs, ExtraSANs: c.TLSSANs,
		},
		Kubeconfigs: []pki.Kubeconfig{
			{Path: cmp.Or(c.Kubeconfig, c.Path("admin.kubeconfig")), Server: c.APIURL(), Client: pki.Admin},
		},
	})
}

func serverVersion(gantry string) version.Info {
	return version.Info{
		Major: "1", Minor: "36", EmulationMajor: "1", EmulationMinor: "36", MinCompatibilityMajor: "1", MinCompatibilityMinor: "35",
		GitVersion: nodeVersion(gantry), GitTreeState: "clean",
		GoVersion: runtime.Version(), Compiler: runtime.Compiler, Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
}

// firstPodCIDR is the part of the cluster's pod range that its first node gets.
func firstPodCIDR(cluster netip.Prefix) netip.Prefix {
	bits := 24
	if cluster.Addr().Is6() {
		bits = 64
	}
	return netip.PrefixFrom(cluster.Masked().Addr(), max(bits, cluster.Bits()))
}

func waitFor(ch <-chan struct{}) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-ch:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func both(first, second func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := first(ctx); err != nil {
			return err
		}
		return second(ctx)
	}
}

// Down stops what outlives the main process: the containers, gantry-edge, and the network.
// It does nothing where nothing is left.
func Down(ctx context.Context, c config.Config, steps *lifecycle.Steps) error {
	if member, there, err := join.ReadMembership(c.Path(join.MembershipFile)); err == nil && there {
		takeSettings(&c, member.Settings)
	}
	end := steps.Begin("containers", "stopped")
	err := stopContainers(ctx, c)
	end(err)
	end = steps.Begin("network", "removed")
	netErr := stopNetwork(ctx, c)
	end(netErr)
	return errors.Join(err, netErr)
}

// runtimeDirs are where containerd keeps images and what runs.
func runtimeDirs(c config.Config) (root, state string) {
	return c.Path("containerd", "root"), c.Path("containerd", "state")
}

func edgeSocket(c config.Config) string { return c.Path("run", "edge.sock") }

func nodeSocket(c config.Config) string { return filepath.Join(c.DataDir, "run", "node.sock") }

// podNetworkOptions are those of this node; its pod range is known once the API has given it.
func podNetworkOptions(c config.Config, podCIDR netip.Prefix, logger *slog.Logger) podnet.Options {
	return podnet.Options{
		Dir: c.Path("net"), PodCIDR: podCIDR, ClusterCIDR: c.PodCIDR, ServiceCIDR: c.ServiceCIDR, Logger: logger,
	}
}

var errNoPodCIDR = fmt.Errorf("the node has no pod range yet")
