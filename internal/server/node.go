package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/agent"
	"gantry.dev/gantry/internal/agent/static"
	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/cli"
	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/container/containerd"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/network/overlay"
	"gantry.dev/gantry/internal/network/podnet"
	"gantry.dev/gantry/internal/network/policy"
	"gantry.dev/gantry/internal/network/routes"
	"gantry.dev/gantry/internal/network/service"
	"gantry.dev/gantry/internal/platform/build"
	"gantry.dev/gantry/internal/programs"
	"gantry.dev/gantry/internal/upgrade"
	"gantry.dev/gantry/internal/volume"
)

// edgeUID is the user that gantry-edge becomes: none that Debian gives out.
const edgeUID = 65053

// nodeOptions says what makes this machine a node. All but controlPlane are required.
type nodeOptions struct {
	config       config.Config
	identity     lifecycle.Identity
	nodeIP       netip.Addr
	serving      *tls.Config // of the agent's API
	programs     *programs.Set
	cluster      nodeCluster
	controlPlane *ControlPlane // of a server; nil on a worker, which neither builds nor stores images
	version      string        // of Gantry
	change       *cli.Changing // how the process becomes another program; nil: it does not
	trial        bool          // the node is ready when a server says so, even if there is none
	steps        *lifecycle.Steps
	logger       *slog.Logger
}

// node is the part of the process that runs pods.
type node struct {
	opts    nodeOptions
	runtime *containerd.Runtime
	network *networkPart
	agent   *agent.Agent
	proxy   *service.Proxy
	overlay *overlay.Overlay
	feeder  *routes.Feeder
	server  *apiListener // of the agent's API
	images  *imageServer
	builds  *buildsPart
	logs    *nodeLogs

	unpacked chan struct{} // closed when the programs that every node needs are there
}

// newNode wires the parts. Nothing is started.
func newNode(opts nodeOptions) (*node, error) {
	n := &node{opts: opts, unpacked: make(chan struct{})}
	builds := []func() error{n.buildRuntime, n.buildNetwork, n.buildAgent, n.buildServer}
	if opts.controlPlane != nil {
		builds = append(builds, n.buildBuilds)
	}
	for _, build := range builds {
		if err := build(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *node) buildRuntime() (err error) {
	paths := make(map[string]string, 3)
	for _, name := range []string{programs.Runc, programs.Shim, programs.RuncShim} {
		if paths[name], err = n.opts.programs.Path(name); err != nil {
			return err
		}
	}
	root, state := runtimeDirs(n.opts.config)
	n.runtime, err = containerd.New(containerd.Options{
		Root: root, State: state, Runc: paths[programs.Runc], Shim: paths[programs.Shim],
		RuncShim: paths[programs.RuncShim], Logger: n.opts.logger,
		Registry: n.opts.cluster.registry(),
	})
	if err != nil {
		return err
	}
	n.images = &imageServer{runtime: n.runtime, cluster: n.opts.controlPlane, socket: nodeSocket(n.opts.config), logger: n.opts.logger}
	return nil
}

func (n *node) buildNetwork() error {
	c := n.opts.config
	dns := podnet.DNSAddr(c.ServiceCIDR)
	reader, informers, err := n.opts.cluster.part(partPolicy)
	if err != nil {
		return err
	}
	policies, err := policy.New(reader, informers, policy.Options{NodeName: n.opts.identity.Name, Logger: n.opts.logger})
	if err != nil {
		return err
	}
	if cp := n.opts.controlPlane; cp != nil { // whose API tells the metrics of this process
		if err := registerPolicyDrops(cp.metrics, policies); err != nil {
			return err
		}
	}
	n.network = &networkPart{policies: policies, options: func(podCIDR netip.Prefix) podnet.Options {
		return podNetworkOptions(c, podCIDR, n.opts.logger)
	}}
	reader, informers, err = n.opts.cluster.part(partProxy)
	if err != nil {
		return err
	}
	n.proxy, err = service.New(reader, informers, service.Options{
		NodeName: n.opts.identity.Name, ClusterCIDR: c.PodCIDR, ServiceCIDR: c.ServiceCIDR,
		SkipIPs: []netip.Addr{dns}, Reset: n.network.resetConnections, Logger: n.opts.logger,
	})
	if err != nil {
		return err
	}
	self, _, err := n.opts.cluster.part(partNode)
	if err != nil {
		return err
	}
	if n.overlay, err = n.newOverlay(reader, informers, self); err != nil {
		return err
	}
	edge, err := n.opts.programs.Path(programs.Edge)
	if err != nil {
		return err
	}
	reader, informers, err = n.opts.cluster.part(partEdge)
	if err != nil {
		return err
	}
	gatewayFeed, err := n.opts.cluster.gateway(&c.Gateway, func(text string) { n.opts.steps.Say("%s", text) })
	if err != nil {
		return err
	}
	n.feeder, err = routes.New(reader, informers, routes.Options{
		Binary: edge, Socket: edgeSocket(c), StateDir: c.Path("edge"), LogFile: c.Path("log", "edge.log"),
		UID: edgeUID, Listen: []netip.AddrPort{netip.AddrPortFrom(dns, 53)}, Domain: c.ClusterDomain,
		Ranges: []netip.Prefix{c.ServiceCIDR, c.PodCIDR}, Gateway: gatewayFeed, Logger: n.opts.logger,
	})
	return err
}

func (n *node) buildAgent() error {
	c := n.opts.config
	api, informers, err := n.opts.cluster.forAgent()
	if err != nil {
		return err
	}
	folders, err := volume.NewFolders(c.Path("volumes"))
	if err != nil {
		return err
	}
	volumes, err := volume.New(volume.ClientSource{Client: api}, volume.Options{
		PodsDir: c.Path("pods"), NodeName: n.opts.identity.Name, Folders: folders,
	})
	if err != nil {
		return err
	}
	manifests, err := static.New(static.Options{Path: c.Manifests, Logger: n.opts.logger, Decode: func(data []byte, file string) (*corev1.Pod, error) {
		return registry.DecodeStaticPod(data, file, n.opts.identity.Name)
	}})
	if err != nil {
		return err
	}
	root, _ := runtimeDirs(c)
	opts := agent.Options{
		NodeName: n.opts.identity.Name, NodeUID: types.UID(n.opts.identity.UID), NodeIPs: []string{n.opts.nodeIP.String()},
		PodsDir: c.Path("pods"), LogDir: c.Path("log", "pods"), ImageDir: root,
		ClusterDNS: []string{podnet.DNSAddr(c.ServiceCIDR).String()}, ClusterDomain: c.ClusterDomain,
		KubeletPort: int32(c.AgentPort), LocalVolumes: folders, Logger: n.opts.logger,
		PluginRoots: pluginRoots(c), UnsafeSysctls: c.UnsafeSysctls, DeviceFile: c.Path("devices.json"),
		IsNotFound:  func(err error) bool { return errors.Is(err, containerd.ErrNotFound) },
		ImageAccess: n.opts.cluster.mayPull, Confirmed: n.opts.cluster.confirmed,
		NodeInfo: corev1.NodeSystemInfo{KubeletVersion: nodeVersion(n.opts.version), ContainerRuntimeVersion: "containerd://" + containerdVersion()},
	}
	if cp := n.opts.controlPlane; cp != nil {
		opts.StoreTrouble = cp.store.Trouble
	}
	opts.Heartbeats = n.opts.cluster.heartbeats
	opts.Heard = func(server string, heard bool) {
		if at, err := netip.ParseAddrPort(server); err == nil { // not the one in this process
			n.proxy.Hear(at.Addr(), heard)
		}
	}
	if !c.Gateway.Off && n.opts.controlPlane != nil {
		opts.Gateway = gatewayCounts(edgeSocket(c))
	}
	if n.logs, err = newNodeLogs(n.opts.controlPlane, c, n.opts.logger); err != nil {
		return err
	}
	opts.KeepLogs, opts.Extra = n.logs, n.extra()
	if err := setNodeLimits(&opts, c.Node, n.opts.logger); err != nil {
		return err
	}
	n.agent, err = agent.New(agent.Parts{
		Client: api, Informers: informers, Runtime: runtimePart{n.runtime}, Images: imagesPart{n.runtime},
		Network: n.network, Volumes: volumes, Static: manifests,
	}, opts)
	if err == nil {
		n.logs.pods = n.agent.Pods
		n.logs.costs = costs{node: n.opts.identity.Name, bin: c.Path("bin"), proc: "/proc", stats: n.agent.Stats}
	}
	return err
}

// extra is what the node's API has beside the kubelet's.
func (n *node) extra() http.Handler {
	mux, programs := http.NewServeMux(), newUpgrader(n.opts.config.DataDir, n.opts.version, n.opts.change, n.opts.logger)
	mux.Handle("GET /gantry/logs", n.logs)
	mux.Handle("GET /gantry/costs", n.logs)
	mux.Handle("GET /gantry/requests", n.logs)
	mux.Handle(join.RolePath, &roles{
		config: n.opts.config, name: n.opts.identity.Name, cp: n.opts.controlPlane, change: n.opts.change, log: n.opts.logger,
	})
	mux.Handle(upgrade.Path, programs)
	mux.Handle(upgrade.Path+"/", programs)
	return mux
}

// nodeVersion is what a Node says of the program that runs it.
func nodeVersion(gantry string) string { return kubernetesVersion + gantrySuffix + gantry }

// gantrySuffix is between the version of the API and that of Gantry.
const gantrySuffix = "+gantry."

// nodeInformers gives an agent the events of its node and its pods as itself. A node may read
// the ConfigMaps and Secrets of its pods one by one but not watch them all, so that they
// changed is told by an informer of the server; what they hold the agent reads as itself.
type nodeInformers struct{ own, all *client.Cache }

// GetInformer implements agent.Informers.
func (i nodeInformers) GetInformer(ctx context.Context, obj ctrlclient.Object, opts ...cache.InformerGetOption) (cache.Informer, error) {
	switch obj.(type) {
	case *corev1.ConfigMap, *corev1.Secret, *corev1.Service:
		return i.all.GetInformer(ctx, obj, opts...)
	}
	return i.own.GetInformer(ctx, obj, opts...)
}

// pluginRoots are the folders for the sockets of device plugins.
func pluginRoots(c config.Config) []string {
	roots := []string{c.DataDir}
	if c.KubeletDir != "" && c.KubeletDir != c.DataDir {
		roots = append(roots, c.KubeletDir)
	}
	return roots
}

func containerdVersion() string {
	for _, v := range programs.Versions() {
		if v.Name == "containerd" {
			return strings.TrimPrefix(v.Version, "v")
		}
	}
	return "unknown"
}

// buildServer makes the kubelet's API: the agent's handler behind the API's own
// authentication and the nodes/proxy right.
func (n *node) buildServer() error {
	handler, err := n.agent.Handler()
	if err != nil {
		return err
	}
	n.server = &apiListener{
		handler: n.guard(handler), tls: n.opts.serving, logger: n.opts.logger,
		addrs: []netip.AddrPort{netip.AddrPortFrom(n.opts.nodeIP, n.opts.config.AgentPort)},
	}
	return nil
}

// guard lets through who may use nodes/proxy of this node, as the kubelet's webhook mode does.
func (n *node) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, ok := n.opts.cluster.identify(r)
		if !ok {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		subresources := nodeSubresources(r.URL.Path)
		allowed := slices.ContainsFunc(subresources, func(sub string) bool {
			return n.opts.cluster.allows(r.Context(), authorizer.AttributesRecord{
				User: who, Verb: nodeVerb(r.Method), APIVersion: "v1", Resource: "nodes", Subresource: sub,
				Name: n.opts.identity.Name, ResourceRequest: true, Path: r.URL.Path,
			})
		})
		if !allowed {
			http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)",
				who.GetName(), nodeVerb(r.Method), subresources), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func nodeVerb(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return "get"
}

// nodeSubresources are the parts of the node of which one must be allowed for a path of the
// kubelet's API (Kubernetes documentation, "Kubelet authentication/authorization").
func nodeSubresources(path string) []string {
	for _, part := range []struct {
		prefix string
		subs   []string
	}{
		{"/stats", []string{"stats"}}, {"/metrics", []string{"metrics"}}, {"/logs", []string{"log"}}, {"/checkpoint", []string{"checkpoint"}},
		{"/pods", []string{"pods", "proxy"}}, {"/runningpods", []string{"pods", "proxy"}}, {"/healthz", []string{"healthz", "proxy"}},
	} {
		if path == part.prefix || strings.HasPrefix(path, part.prefix+"/") {
			return part.subs
		}
	}
	return []string{"proxy"}
}

// components are the parts in start order.
func (n *node) components() []lifecycle.Component {
	parts := []lifecycle.Component{
		{Name: "containers", Run: n.runContainers, Ready: waitFor(n.runtime.Ready())},
		{Name: "node", Run: n.runAgent, Ready: n.nodeReady},
		{Name: "network", Run: n.runNetwork, Ready: n.networkReady},
	}
	if n.builds != nil {
		parts = append(parts, lifecycle.Component{Name: "builds", Run: n.builds.Run})
	}
	return parts
}

// unpack makes the programs that every node needs, beside the start of the API; then it waits for ctx.
func (n *node) unpack(ctx context.Context) error {
	end := n.opts.steps.Begin("programs", "unpacked")
	err := n.opts.programs.Unpack(programs.Edge, programs.Shim, programs.Runc, programs.RuncShim)
	end(err)
	if err != nil {
		return err
	}
	close(n.unpacked)
	<-ctx.Done()
	return nil
}

// runContainers runs the runtime and takes image commands.
func (n *node) runContainers(ctx context.Context) error {
	protectProcess(n.opts.logger)
	select {
	case <-ctx.Done():
		return nil
	case <-n.unpacked:
	}
	return runAll(ctx, n.runtime.Run, n.images.Run)
}

// runAgent runs the agent and its API, and the network policies that its pods wait for.
func (n *node) runAgent(ctx context.Context) error {
	return runAll(ctx, n.network.policies.Run, n.agent.Run, n.server.Run, n.logs.Run)
}

// runNetwork prepares the pod network as soon as the node has its range, and keeps services
// and names.
func (n *node) runNetwork(ctx context.Context) error {
	cidrs, err := n.podCIDRs(ctx)
	if err != nil {
		return err
	}
	if _, err := n.network.prepared(ctx, cidrs); err != nil {
		return err
	}
	n.warnOfFirewalls(ctx)
	return runAll(ctx, n.overlay.Run, n.proxy.Run, n.feeder.Run)
}

// warnOfFirewalls names rules of others that drop the pods' traffic, and the cure.
func (n *node) warnOfFirewalls(ctx context.Context) {
	found, err := otherFirewalls(ctx)
	if err != nil {
		n.opts.logger.Warn("cannot look at other firewalls' rules", "error", err)
	}
	for _, f := range found {
		n.opts.steps.Say("firewall: %s; cure: %s (or gantry doctor --fix)", f.What, commands(f.Cure))
	}
}

// runAll runs all until ctx ends or one of them returns.
func runAll(ctx context.Context, runs ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	errs := make([]error, len(runs))
	for i, run := range runs {
		group.Go(func() {
			errs[i] = run(ctx)
			cancel()
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// poll calls check every few milliseconds until it is true or ctx ends.
func poll(ctx context.Context, check func() bool) error {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for !check() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

func (n *node) podCIDRs(ctx context.Context) (cidrs []string, err error) {
	err = poll(ctx, func() bool {
		if obj := n.opts.cluster.node(ctx); obj != nil {
			cidrs = obj.Spec.PodCIDRs
		}
		return len(cidrs) > 0
	})
	return cidrs, err
}

func (n *node) nodeReady(ctx context.Context) error {
	return poll(ctx, func() bool {
		// Without a server nobody says that the node is ready; it works all the same.
		if worker, ok := n.opts.cluster.(*remoteCluster); ok && worker.cluster.Alone() && !n.opts.trial {
			return true
		}
		obj := n.opts.cluster.node(ctx)
		if obj == nil {
			return false
		}
		for _, c := range obj.Status.Conditions {
			if c.Type == corev1.NodeReady {
				return c.Status == corev1.ConditionTrue
			}
		}
		return false
	})
}

func (n *node) networkReady(ctx context.Context) error { return poll(ctx, n.feeder.Ready) }

// stopContainers stops every container and shim of the data dir, and unmounts the pods' volumes.
func stopContainers(ctx context.Context, c config.Config) error {
	root, state := runtimeDirs(c)
	if err := containerd.StopAll(ctx, root, state); err != nil {
		return err
	}
	if err := build.Cleanup(ctx, c.Path("build")); err != nil {
		return err
	}
	return volume.Unmount(ctx, c.Path("pods"))
}

// stopNetwork stops gantry-edge and removes links, rules and namespaces.
func stopNetwork(ctx context.Context, c config.Config) error {
	err := routes.Stop(ctx, edgeSocket(c))
	options := podNetworkOptions(c, firstPodCIDR(c.PodCIDR), slog.New(slog.DiscardHandler))
	err = errors.Join(err, service.Cleanup(ctx), policy.Cleanup(ctx), overlay.Cleanup(ctx), podnet.Isolate(ctx, options, netip.Addr{}))
	return errors.Join(err, podnet.Cleanup(ctx, options))
}
