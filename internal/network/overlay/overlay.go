package overlay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/lifecycle"
)

// Informers is where an Overlay hears of Nodes.
type Informers interface {
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// Nodes is what an Overlay does to the API: it lists Nodes, and writes annotations on its own.
type Nodes interface {
	List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error
	Patch(ctx context.Context, obj client.Object, patch client.Patch, opts ...client.PatchOption) error
}

// Options tunes an Overlay.
type Options struct {
	NodeName    string                    // of this machine; required
	ClusterCIDR netip.Prefix              // all pods of the cluster; required
	TunnelOnly  bool                      // use the tunnel also where machines share a link
	MinInterval time.Duration             // between two looks at the Nodes; default 50ms
	RetryDelay  time.Duration             // after an error; default 1s
	Resync      time.Duration             // between looks at the kernel while there are other machines; default 30s
	OnTunnel    func(ctx context.Context) // called each time the tunnel was needed first; may be nil
	Logger      *slog.Logger              // default: discards
}

// Overlay keeps the ways from this machine to the pods of all others.
type Overlay struct {
	nodes     Nodes
	informers Informers
	opts      Options
	log       *slog.Logger
	wake      chan struct{} // holds one token when there is work
}

// New checks opts and returns an Overlay that has started nothing; call Run.
func New(nodes Nodes, informers Informers, opts Options) (*Overlay, error) {
	opts.MinInterval = cmp.Or(opts.MinInterval, 50*time.Millisecond)
	opts.RetryDelay = cmp.Or(opts.RetryDelay, time.Second)
	opts.Resync = cmp.Or(opts.Resync, 30*time.Second)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case nodes == nil || informers == nil:
		return nil, errors.New("overlay: nodes and informers are required")
	case opts.NodeName == "":
		return nil, errors.New("overlay: NodeName is empty")
	case !opts.ClusterCIDR.Addr().Is4():
		return nil, fmt.Errorf("overlay: ClusterCIDR is %v, want an IPv4 prefix", opts.ClusterCIDR)
	case opts.MinInterval < 0 || opts.RetryDelay < 0 || opts.Resync < 0:
		return nil, fmt.Errorf("overlay: MinInterval is %v, RetryDelay %v and Resync %v, want 0 or more", opts.MinInterval, opts.RetryDelay, opts.Resync)
	}
	opts.ClusterCIDR = opts.ClusterCIDR.Masked()
	return &Overlay{nodes: nodes, informers: informers, opts: opts, log: opts.Logger, wake: make(chan struct{}, 1)}, nil
}

// Cleanup removes routes, tunnel and rules from the kernel; no Overlay may run.
func Cleanup(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("removing the network between machines: %w", err)
	}
	k, err := newKernel(netip.Prefix{})
	if err != nil {
		return fmt.Errorf("removing the network between machines: %w", err)
	}
	defer k.close()
	if err := k.apply(paths{}); err != nil {
		return fmt.Errorf("removing the network between machines: %w", err)
	}
	return nil
}

// HasTunnel reports whether this machine has a tunnel to others.
func HasTunnel() (bool, error) {
	_, err := netlink.LinkByName(TunnelLink)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for link %s: %w", TunnelLink, err)
	}
	return true, nil
}

// Run keeps the ways up until ctx ends. They stay in the kernel: connections go on while
// nobody keeps them. The pod network of this machine must be prepared: its address there is
// the source of what the machine itself sends.
func (o *Overlay) Run(ctx context.Context) error {
	stop, err := informer.Listen(ctx, o.informers, informer.Subscription{Object: &corev1.Node{}, OnEvent: o.nodeChanged})
	if err != nil {
		return err
	}
	defer stop()
	k, err := newKernel(o.opts.ClusterCIDR)
	if err != nil {
		return err
	}
	defer k.close()
	ctx, cancel := context.WithCancel(ctx)
	wait := func() {}
	defer func() { cancel(); wait() }()
	watching := false
	var last paths
	for ctx.Err() == nil {
		next := o.opts.Resync
		now, err := o.sync(ctx, k)
		if err != nil && ctx.Err() == nil {
			o.log.Warn("the network between machines is behind", "error", err)
			next = o.opts.RetryDelay
		}
		if err == nil {
			o.report(last, now)
			if o.opts.OnTunnel != nil && now.TunnelMTU > 0 && last.TunnelMTU == 0 {
				o.opts.OnTunnel(ctx)
			}
			last = now
		}
		if len(now.List) > 0 && !watching {
			if wait, err = watch(ctx, o.look); err != nil {
				return err
			}
			watching = true
		}
		if !k.peers && err == nil {
			next = 0 // a lone machine has nothing that could break
		}
		if !o.pause(ctx, next) {
			return nil
		}
	}
	return nil
}

// pause waits for work, or for so long where that is not 0, and at least the least interval.
func (o *Overlay) pause(ctx context.Context, longest time.Duration) bool {
	if !lifecycle.Pause(ctx, o.opts.MinInterval) {
		return false
	}
	var expired <-chan time.Time
	if longest > 0 {
		timer := time.NewTimer(longest)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-o.wake:
	case <-expired:
	}
	return true
}

// look asks for another look.
func (o *Overlay) look() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// nodeChanged asks for another look if the event says anything new about the way to pods.
// Most events are heartbeats.
func (o *Overlay) nodeChanged(old, current client.Object) {
	before, ok1 := old.(*corev1.Node)
	after, ok2 := current.(*corev1.Node)
	if ok1 && ok2 && before != nil && after != nil && machineOf(before) == machineOf(after) {
		return
	}
	o.look()
}

// sync looks at Nodes and kernel once and brings the kernel up to date.
func (o *Overlay) sync(ctx context.Context, k *kernel) (paths, error) {
	var list corev1.NodeList
	if err := o.nodes.List(ctx, &list); err != nil {
		return paths{}, fmt.Errorf("listing nodes: %w", err)
	}
	at := slices.IndexFunc(list.Items, func(n corev1.Node) bool { return n.Name == o.opts.NodeName })
	if at < 0 {
		// Not registered yet, or deleted under its agent, which registers it anew: what is in the
		// kernel was right a moment ago.
		return paths{}, nil
	}
	self := machineOf(&list.Items[at])
	if !self.Addr.IsValid() || !self.Pods.IsValid() {
		return paths{}, nil
	}
	up, err := k.uplink(self.Addr)
	if err != nil {
		return paths{}, err
	}
	self.Link, self.MTU = netip.Prefix{}, up.MTU
	if !o.opts.TunnelOnly {
		self.Link = up.Link
	}
	machines := make([]machine, len(list.Items))
	for i := range list.Items {
		machines[i] = machineOf(&list.Items[i])
	}
	plan := planPaths(self, up, machines, o.opts.ClusterCIDR)
	// Without its annotations the others take the tunnel; the own ways do not wait for the API.
	return plan, errors.Join(k.apply(plan), o.publish(ctx, &list.Items[at], annotations(up, !o.opts.TunnelOnly)))
}

// publish writes the annotations that differ on the own Node.
func (o *Overlay) publish(ctx context.Context, node *corev1.Node, want map[string]string) error {
	change := map[string]any{}
	for key, value := range want {
		switch have, there := node.Annotations[key]; {
		case value == "" && there:
			change[key] = nil
		case value != have:
			change[key] = value
		}
	}
	if len(change) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": change}})
	if err != nil {
		return fmt.Errorf("making the annotations' patch: %w", err)
	}
	target := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}
	if err := o.nodes.Patch(ctx, target, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("saying on the node how its pods are reached: %w", err)
	}
	return nil
}

// report logs what is new in a plan.
func (o *Overlay) report(before, now paths) {
	known := map[path]bool{}
	for _, p := range before.List {
		known[p] = true
	}
	for _, p := range now.List {
		if !known[p] {
			o.log.Info("pods of another node are in reach", "nodeName", p.Node, "podCIDR", p.Pods, "address", p.Addr, "by", string(p.Kind), "mtu", p.MTU)
		}
	}
	for _, p := range now.Problems {
		if !slices.Contains(before.Problems, p) {
			o.log.Error("pods of a node cannot be reached", "nodeName", p.Node, "reason", p.Reason)
		}
	}
}
