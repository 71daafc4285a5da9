package registry

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	api "k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"

	"gantry.dev/gantry/internal/store"
)

// nodePortsKey is where upstream keeps the bitmap of node ports, under /registry/ranges/.
const nodePortsKey = "servicenodeports"

// rangeKind is the table of upstream's range allocations. It is not served.
func rangeKind() *store.Kind {
	return &store.Kind{
		Name: "ranges", Prefix: "/registry/ranges/",
		Codec: typedCodec[corev1.RangeAllocation, *corev1.RangeAllocation]{corev1.SchemeGroupVersion.WithKind("RangeAllocation")},
	}
}

// serviceAllocator hands out cluster IPs, each an IPAddress object whose creation is the
// claim, and node ports, bits of one object that changes by compare and swap. Several
// servers may allocate at once.
type serviceAllocator struct {
	registry *Registry
	prefix   netip.Prefix
	family   api.IPFamily
	ports    utilnet.PortRange
}

func newServiceAllocator(r *Registry) *serviceAllocator {
	family := api.IPv4Protocol
	if r.opts.ServiceCIDR.Addr().Is6() {
		family = api.IPv6Protocol
	}
	return &serviceAllocator{
		registry: r,
		prefix:   r.opts.ServiceCIDR.Masked(),
		family:   family,
		ports:    utilnet.PortRange{Base: r.opts.NodePorts.First, Size: r.opts.NodePorts.Last - r.opts.NodePorts.First + 1},
	}
}

// takeIP claims the address that svc asks for, or a free one.
func (a *serviceAllocator) takeIP(ctx context.Context, svc *api.Service, gained *holding) (string, error) {
	if wanted := svc.Spec.ClusterIP; wanted != "" {
		addr, err := netip.ParseAddr(wanted)
		switch {
		case err != nil || !a.usable(addr):
			err = fmt.Errorf("the provided IP (%s) is not in the valid range. The range of valid IPs is %s", wanted, a.prefix)
		default:
			err = a.claimIP(ctx, addr, svc, gained)
			if apierrors.IsAlreadyExists(err) {
				err = errors.New("provided IP is already allocated")
			}
		}
		if err != nil {
			return "", apierrors.NewInvalid(api.Kind("Service"), svc.Name, field.ErrorList{
				field.Invalid(field.NewPath("spec", "clusterIPs"), svc.Spec.ClusterIPs, "failed to allocate IP "+wanted+": "+err.Error()),
			})
		}
		return wanted, nil
	}
	size, reserved := a.size()
	// Dynamic addresses come from the upper band first, so that the lower one stays free for
	// addresses that people choose (KEP-3070).
	for _, band := range [][2]uint64{{reserved, size}, {1, reserved}} {
		width := band[1] - band[0]
		if band[1] <= band[0] {
			continue
		}
		start := rand.Uint64N(width)
		for i := range width {
			addr := addrAt(a.prefix, band[0]+(start+i)%width)
			if !a.usable(addr) {
				continue
			}
			err := a.claimIP(ctx, addr, svc, gained)
			if err == nil {
				return addr.String(), nil
			}
			if !apierrors.IsAlreadyExists(err) {
				return "", err
			}
		}
	}
	return "", apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP: range %s is full", a.prefix))
}

// size is the number of addresses looked at and the end of the band kept for chosen ones:
// a sixteenth of the range, at least 16 and at most 256.
func (a *serviceAllocator) size() (size, reserved uint64) {
	bits := min(a.prefix.Addr().BitLen()-a.prefix.Bits(), 32)
	size = uint64(1) << bits
	reserved = min(max(16, size/16), 256)
	if size <= reserved {
		reserved = 1
	}
	return size, reserved
}

// usable excludes addresses outside the range, its first, and an IPv4 range's last.
func (a *serviceAllocator) usable(addr netip.Addr) bool {
	if !a.prefix.Contains(addr) || addr == a.prefix.Addr() {
		return false
	}
	return !addr.Is4() || a.prefix.Contains(addr.Next())
}

func addrAt(prefix netip.Prefix, offset uint64) netip.Addr {
	base := new(big.Int).SetBytes(prefix.Addr().AsSlice())
	base.Add(base, new(big.Int).SetUint64(offset))
	raw := base.FillBytes(make([]byte, len(prefix.Addr().AsSlice())))
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

func (a *serviceAllocator) claimIP(ctx context.Context, addr netip.Addr, svc *api.Service, gained *holding) error {
	addresses := a.registry.Resource(networkingv1.SchemeGroupVersion.WithResource("ipaddresses"))
	obj := &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name: addr.String(),
			Labels: map[string]string{
				networkingv1.LabelIPAddressFamily: string(a.family),
				networkingv1.LabelManagedBy:       "ipallocator.k8s.io",
			},
		},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{
			Resource: "services", Namespace: svc.Namespace, Name: svc.Name,
		}},
	}
	opts := &metav1.CreateOptions{}
	if gained.dryRun {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	if _, err := addresses.Create(ctx, "", obj, "gantry", opts); err != nil {
		return err
	}
	gained.ips = append(gained.ips, addr.String())
	return nil
}

func (a *serviceAllocator) freeIP(ctx context.Context, ip string) error {
	addresses := a.registry.Resource(networkingv1.SchemeGroupVersion.WithResource("ipaddresses"))
	_, err := addresses.Delete(ctx, "", ip, &metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// takePort claims the port, or a free one for 0.
func (a *serviceAllocator) takePort(ctx context.Context, port int32, gained *holding) (int32, error) {
	err := a.changePorts(ctx, gained.dryRun, func(ports *portallocator.PortAllocator) error {
		if port != 0 {
			return ports.Allocate(int(port))
		}
		next, err := ports.AllocateNext()
		port = int32(next)
		return err
	})
	switch {
	case errors.Is(err, portallocator.ErrAllocated):
		return 0, errors.New("provided port is already allocated")
	case err != nil:
		return 0, err
	}
	gained.ports = append(gained.ports, port)
	return port, nil
}

func (a *serviceAllocator) freePorts(ctx context.Context, free []int32) error {
	if len(free) == 0 {
		return nil
	}
	return a.changePorts(ctx, false, func(ports *portallocator.PortAllocator) error {
		for _, port := range free {
			if err := ports.Release(int(port)); err != nil {
				return err
			}
		}
		return nil
	})
}

// changePorts applies change to the bitmap of node ports until no one else was faster.
func (a *serviceAllocator) changePorts(ctx context.Context, dryRun bool, change func(*portallocator.PortAllocator) error) error {
	st := a.registry.store
	for ctx.Err() == nil {
		entry, err := st.Get("ranges", nodePortsKey)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		ports, err := a.portAllocator(entry)
		if err != nil {
			return err
		}
		var picked error
		if picked = change(ports); picked != nil || dryRun {
			return picked
		}
		var snapshot api.RangeAllocation
		if err := ports.Snapshot(&snapshot); err != nil {
			return fmt.Errorf("saving node ports: %w", err)
		}
		next := &corev1.RangeAllocation{Range: snapshot.Range, Data: snapshot.Data}
		if entry == nil {
			_, err = st.Create(ctx, "ranges", nodePortsKey, next)
		} else {
			_, err = st.Update(ctx, "ranges", nodePortsKey, entry.Rev, next)
		}
		var conflict *store.ConflictError
		if errors.Is(err, store.ErrExists) || errors.As(err, &conflict) {
			continue
		}
		return err
	}
	return ctx.Err()
}

func (a *serviceAllocator) portAllocator(entry *store.Entry) (*portallocator.PortAllocator, error) {
	if entry == nil {
		return portallocator.NewInMemory(a.ports)
	}
	var stored api.RangeAllocation
	if err := legacyscheme.Scheme.Convert(entry.Object, &stored, nil); err != nil {
		return nil, fmt.Errorf("reading node ports: %w", err)
	}
	if stored.Range == a.ports.String() {
		return portallocator.NewFromSnapshot(&stored)
	}
	// The range was changed: keep what is taken and still inside.
	old, err := portallocator.NewFromSnapshot(&stored)
	if err != nil {
		return nil, err
	}
	ports, err := portallocator.NewInMemory(a.ports)
	if err != nil {
		return nil, err
	}
	old.ForEach(func(port int) {
		if a.ports.Contains(port) {
			err = errors.Join(err, ports.Allocate(port))
		}
	})
	return ports, err
}
