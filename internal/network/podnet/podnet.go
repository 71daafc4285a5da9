package podnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// Options says where the network of this node's pods is and what it looks like.
type Options struct {
	Dir         string       // state: namespaces under ns/, one record a pod under pods/
	Bridge      string       // name of the bridge; default "gantry0"
	PodCIDR     netip.Prefix // this node's pods (node.spec.podCIDR); the first address is the bridge's
	ClusterCIDR netip.Prefix // all pods of the cluster; not masqueraded. Default PodCIDR
	ServiceCIDR netip.Prefix // routed to the bridge so that the node reaches services; may be zero
	DNSLink     string       // dummy link that carries DNSAddr(ServiceCIDR); default "gantry-dns"
	MTU         int          // of the pods' links; 0 takes the default route's link, else 1500
	Logger      *slog.Logger // default: discards
}

// Pod is one pod that has a network.
type Pod struct {
	UID       string
	Addrs     []netip.Addr // the primary one first
	NetNSPath string
	HostPorts []HostPort
}

// Network makes and removes the pods' interfaces on one node. Its methods may be called at
// the same time; calls for one pod wait for each other.
type Network struct {
	opts  Options
	store store
	log   *slog.Logger

	mu      sync.Mutex // guards the fields below
	nl      *netlink.Handle
	bridge  int // link index; 0 before Prepare
	mtu     int
	pool    *pool
	records map[string]record
	busy    map[string]chan struct{} // closed when the call that holds the pod ends
}

// Request is what a pod wants of its network.
type Request struct {
	UID       string
	HostPorts []HostPort
	// Cover, when set, is called with the pod's addresses before Setup returns; when isNew is set nothing of the pod is
	// connected yet. What it returns fails Setup.
	Cover func(ctx context.Context, addrs []netip.Addr, isNew bool) error
}

// ErrNotPrepared is returned by methods that need Prepare first.
var ErrNotPrepared = errors.New("pod network: Prepare has not succeeded yet")

var validUID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// DNSAddr is the cluster's DNS address: the tenth of the service range.
func DNSAddr(serviceCIDR netip.Prefix) netip.Addr { return nthAddr(serviceCIDR, 10) }

// New checks opts; it touches neither disk nor kernel.
func New(opts Options) (*Network, error) {
	opts.Bridge = cmp.Or(opts.Bridge, "gantry0")
	opts.DNSLink = cmp.Or(opts.DNSLink, "gantry-dns")
	if !opts.ClusterCIDR.IsValid() {
		opts.ClusterCIDR = opts.PodCIDR
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case !filepath.IsAbs(opts.Dir):
		return nil, fmt.Errorf("podnet: Dir is %q, want an absolute path", opts.Dir)
	case !opts.PodCIDR.IsValid() || !opts.PodCIDR.Addr().Is4() || opts.PodCIDR.Bits() > 29 || opts.PodCIDR.Bits() < 8:
		return nil, fmt.Errorf("podnet: PodCIDR is %v, want an IPv4 prefix of 8 to 29 bits", opts.PodCIDR)
	case !opts.ClusterCIDR.Addr().Is4() || !opts.ClusterCIDR.Overlaps(opts.PodCIDR):
		return nil, fmt.Errorf("podnet: ClusterCIDR %v does not hold PodCIDR %v", opts.ClusterCIDR, opts.PodCIDR)
	case opts.ServiceCIDR.IsValid() && (!opts.ServiceCIDR.Addr().Is4() || opts.ServiceCIDR.Bits() > 28 || opts.ServiceCIDR.Overlaps(opts.ClusterCIDR)):
		return nil, fmt.Errorf("podnet: ServiceCIDR is %v, want an IPv4 prefix of at most 28 bits outside of %v", opts.ServiceCIDR, opts.ClusterCIDR)
	case len(opts.Bridge) > 15 || len(opts.DNSLink) > 15:
		return nil, fmt.Errorf("podnet: link names %q, %q: want at most 15 bytes", opts.Bridge, opts.DNSLink)
	case opts.MTU < 0 || opts.MTU > 65535:
		return nil, fmt.Errorf("podnet: MTU is %d, want 0 to 65535", opts.MTU)
	}
	opts.PodCIDR, opts.ClusterCIDR, opts.ServiceCIDR = opts.PodCIDR.Masked(), opts.ClusterCIDR.Masked(), opts.ServiceCIDR.Masked()
	return &Network{opts: opts, log: opts.Logger, store: store{filepath.Join(opts.Dir, "pods")},
		records: map[string]record{}, busy: map[string]chan struct{}{}}, nil
}

// Gateway is the bridge's address: the pods' default route and the node's address on the pod network.
func (n *Network) Gateway() netip.Addr { return newPool(n.opts.PodCIDR).gateway() }

// Prepare sets up the node: state directory, bridge, DNS link, forwarding, routes and the own
// nftables table. It may be called again at any time and repairs what is missing.
func (n *Network) Prepare(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("preparing the pod network: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, dir := range []string{n.nsDir(), n.store.dir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("preparing the pod network: %w", err)
		}
	}
	if err := shareMount(n.nsDir()); err != nil {
		return fmt.Errorf("preparing the pod network: %w", err)
	}
	if n.pool == nil {
		if err := n.loadLocked(); err != nil {
			return err
		}
	}
	if n.nl == nil {
		nl, err := netlink.NewHandle()
		if err != nil {
			return fmt.Errorf("opening netlink: %w", err)
		}
		n.nl = nl
	}
	if err := n.prepareLinksLocked(); err != nil {
		return err
	}
	records := make([]record, 0, len(n.records))
	for _, r := range n.records {
		records = append(records, r)
	}
	return replaceTable(&nftables.Conn{}, n.opts, records)
}

// loadLocked reads the records into memory. n.mu is held.
func (n *Network) loadLocked() error {
	list, err := n.store.load()
	if err != nil {
		return err
	}
	p := newPool(n.opts.PodCIDR)
	for _, r := range list {
		for _, addr := range r.Addrs {
			if !p.reserve(addr) {
				return fmt.Errorf("pod record %s: address %s is taken twice", r.UID, addr)
			}
		}
		n.records[r.UID] = r
	}
	n.pool = p
	return nil
}

// Setup gives a pod its network and returns the path of its namespace and its addresses. A
// pod that has one keeps it; one that is incomplete, as after a crash or a reboot, is made
// anew with the same addresses. On error nothing of the pod is left.
func (n *Network) Setup(ctx context.Context, podUID string, ports ...HostPort) (string, []netip.Addr, error) {
	return n.SetupCovered(ctx, Request{UID: podUID, HostPorts: ports})
}

// SetupCovered is Setup for a pod that must have its rules before it can send anything.
func (n *Network) SetupCovered(ctx context.Context, pod Request) (string, []netip.Addr, error) {
	podUID := pod.UID
	if !validUID.MatchString(podUID) {
		return "", nil, fmt.Errorf("pod network: UID %q is not a file name", podUID)
	}
	unlock, err := n.lockPod(ctx, podUID)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	r, known, err := n.reserve(podUID, pod.HostPorts)
	if err != nil {
		return "", nil, err
	}
	if known && n.complete(r) {
		if err := pod.cover(ctx, r, false); err != nil {
			return "", nil, err
		}
		return n.nsPath(podUID), slices.Clone(r.Addrs), nil
	}
	err = n.dismantle(r)
	if err == nil && !known {
		err = n.store.write(r)
	}
	if err == nil {
		err = pod.cover(ctx, r, true)
	}
	if err == nil {
		err = n.build(r)
	}
	if err != nil {
		return "", nil, fmt.Errorf("setting up the network of pod %s: %w", podUID, errors.Join(err, n.forget(r)))
	}
	return n.nsPath(podUID), slices.Clone(r.Addrs), nil
}

func (p Request) cover(ctx context.Context, r record, isNew bool) error {
	if p.Cover == nil {
		return nil
	}
	return p.Cover(ctx, slices.Clone(r.Addrs), isNew)
}

// reserve returns the pod's record, a new one with fresh addresses if there was none.
func (n *Network) reserve(uid string, ports []HostPort) (r record, known bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.bridge == 0 {
		return record{}, false, ErrNotPrepared
	}
	if r, known = n.records[uid]; known {
		return r, true, nil
	}
	addr, err := n.pool.take()
	if err != nil {
		return record{}, false, err
	}
	r = record{UID: uid, Addrs: []netip.Addr{addr}, HostPorts: ports}
	n.records[uid] = r
	return r, false, nil
}

// Teardown removes a pod's network. Unknown pods are fine.
func (n *Network) Teardown(ctx context.Context, podUID string) error {
	unlock, err := n.lockPod(ctx, podUID)
	if err != nil {
		return err
	}
	defer unlock()
	n.mu.Lock()
	r, known := n.records[podUID]
	n.mu.Unlock()
	if !known {
		return nil
	}
	if err := n.forget(r); err != nil {
		return fmt.Errorf("removing the network of pod %s: %w", podUID, err)
	}
	return nil
}

// forget removes all of a pod and then frees its addresses.
func (n *Network) forget(r record) error {
	if err := n.dismantle(r); err != nil {
		return err
	}
	if err := n.store.remove(r.UID); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, addr := range r.Addrs {
		n.pool.free(addr)
	}
	delete(n.records, r.UID)
	return nil
}

// List returns every pod that has a record, ordered by UID.
func (n *Network) List() []Pod {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]Pod, 0, len(n.records))
	for uid, r := range n.records {
		out = append(out, Pod{UID: uid, Addrs: slices.Clone(r.Addrs), NetNSPath: n.nsPath(uid), HostPorts: slices.Clone(r.HostPorts)})
	}
	slices.SortFunc(out, func(a, b Pod) int { return cmp.Compare(a.UID, b.UID) })
	return out
}

// Reconcile removes the network of every pod whose UID is not in keep, and links and
// namespaces that belong to no pod. No Setup may run for a pod outside of keep.
func (n *Network) Reconcile(ctx context.Context, keep map[string]bool) error {
	var errs []error
	for _, pod := range n.List() {
		if !keep[pod.UID] {
			n.log.Info("removing the network of a pod that is gone", "uid", pod.UID)
			errs = append(errs, n.Teardown(ctx, pod.UID))
		}
	}
	entries, err := os.ReadDir(n.nsDir())
	errs = append(errs, err)
	known, links := n.knownNames()
	for _, entry := range entries {
		if !known[entry.Name()] {
			errs = append(errs, removeNamespace(n.nsPath(entry.Name())))
		}
	}
	errs = append(errs, n.removeStrayLinks(links))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing leftovers of the pod network: %w", err)
	}
	return nil
}

// knownNames returns the UIDs with a record and the names of their links.
func (n *Network) knownNames() (uids, links map[string]bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	uids, links = map[string]bool{}, map[string]bool{}
	for uid := range n.records {
		uids[uid], links[linkName(uid)] = true, true
	}
	return uids, links
}

// lockPod waits until no other call works on the pod.
func (n *Network) lockPod(ctx context.Context, uid string) (unlock func(), err error) {
	for {
		n.mu.Lock()
		wait, taken := n.busy[uid]
		if !taken {
			done := make(chan struct{})
			n.busy[uid] = done
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				delete(n.busy, uid)
				n.mu.Unlock()
				close(done)
			}, nil
		}
		n.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the network of pod %s: %w", uid, ctx.Err())
		}
	}
}

func (n *Network) nsDir() string            { return filepath.Join(n.opts.Dir, "ns") }
func (n *Network) nsPath(uid string) string { return filepath.Join(n.nsDir(), uid) }
