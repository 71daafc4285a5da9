package node

import (
	"errors"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// errNoCIDR says that the cluster's range has no part left.
var errNoCIDR = errors.New("the cluster's pod range has no part left")

// ranges knows which parts of the cluster's pod addresses the nodes hold.
type ranges struct {
	cluster netip.Prefix
	bits    int // of a part

	holders map[netip.Prefix]types.UID
	held    map[types.UID][]netip.Prefix
	next    netip.Prefix // where the search for a free part begins
}

func newRanges(cluster netip.Prefix, bits int) *ranges {
	return &ranges{
		cluster: cluster, bits: bits, next: netip.PrefixFrom(cluster.Masked().Addr(), bits),
		holders: map[netip.Prefix]types.UID{}, held: map[types.UID][]netip.Prefix{},
	}
}

// hold notes what a node has.
func (r *ranges) hold(node *corev1.Node) {
	for _, text := range node.Spec.PodCIDRs {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			continue
		}
		if prefix.Bits() >= r.bits {
			r.note(netip.PrefixFrom(prefix.Addr(), r.bits).Masked(), node.UID)
			continue
		}
		// A larger part, from before the size was changed.
		for part := range parts(prefix, r.bits) {
			r.note(part, node.UID)
		}
	}
}

func (r *ranges) note(part netip.Prefix, uid types.UID) {
	if r.cluster.Contains(part.Addr()) && r.holders[part] == "" {
		r.holders[part] = uid
		r.held[uid] = append(r.held[uid], part)
	}
}

// release frees what a node had.
func (r *ranges) release(uid types.UID) {
	for _, part := range r.held[uid] {
		delete(r.holders, part)
	}
	delete(r.held, uid)
}

// take gives a node the next part that nobody holds, or again the one it was given. Parts that became
// free are given out last, so that addresses of a node that is gone do not mean another one at once.
func (r *ranges) take(uid types.UID) (netip.Prefix, error) {
	if held := r.held[uid]; len(held) > 0 {
		return held[0], nil
	}
	if len(r.holders) >= 1<<(r.bits-r.cluster.Bits()) {
		return netip.Prefix{}, errNoCIDR
	}
	for part := range r.fromNext() {
		if r.holders[part] == "" {
			r.note(part, uid)
			r.next = part
			return part, nil
		}
	}
	return netip.Prefix{}, errNoCIDR
}

// fromNext yields all parts, beginning at next.
func (r *ranges) fromNext() func(yield func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		for address, ok := r.next.Addr(), true; ok && r.cluster.Contains(address); {
			part := netip.PrefixFrom(address, r.bits)
			if !yield(part) {
				return
			}
			address, ok = after(part)
		}
		for part := range parts(r.cluster, r.bits) {
			if part == r.next || !yield(part) {
				return
			}
		}
	}
}

// parts yields the parts of a range in order.
func parts(cluster netip.Prefix, bits int) func(yield func(netip.Prefix) bool) {
	return func(yield func(netip.Prefix) bool) {
		for address := cluster.Masked().Addr(); cluster.Contains(address); {
			part := netip.PrefixFrom(address, bits)
			if !yield(part) {
				return
			}
			next, ok := after(part)
			if !ok {
				return
			}
			address = next
		}
	}
}

// after is the first address behind a prefix; false if there is none.
func after(prefix netip.Prefix) (netip.Addr, bool) {
	raw := prefix.Addr().AsSlice()
	for bit := prefix.Bits() - 1; bit >= 0; bit-- {
		mask := byte(1) << (7 - bit%8)
		if raw[bit/8]&mask == 0 {
			raw[bit/8] |= mask
			next, ok := netip.AddrFromSlice(raw)
			return next, ok
		}
		raw[bit/8] &^= mask
	}
	return netip.Addr{}, false
}
