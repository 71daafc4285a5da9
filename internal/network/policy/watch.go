package policy

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/network/nft"
)

// dirtyKey is an object to look at.
type dirtyKey struct {
	kind kind
	types.NamespacedName
}

type kind int

const (
	kindPolicy kind = iota
	kindNamespace
	kindPod
)

// news is an object as it was last told.
type news struct {
	obj  client.Object
	gone bool
}

// enter subscribes to what only matters while there are policies, and waits until all of it is told.
func (e *Enforcer) enter(ctx context.Context) {
	stop := e.listen(ctx,
		informer.Subscription{Object: &corev1.Pod{}, OnEvent: e.changed},
		informer.Subscription{Object: &corev1.Namespace{}, OnEvent: e.changed})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unlisten, e.known = stop, false
	for _, p := range e.covers {
		covered := *p
		e.state.cover(&covered)
	}
}

// leave ends what enter began, and forgets it. e.mu is held.
func (e *Enforcer) leave() {
	if e.unlisten != nil {
		e.unlisten()
		e.unlisten = nil
	}
	e.state = newState()
}

// changed notes the object that an event is about.
func (e *Enforcer) changed(old, current client.Object) {
	obj, gone := current, current == nil
	if gone {
		obj = old
	}
	key := dirtyKey{NamespacedName: client.ObjectKeyFromObject(obj)}
	switch o := obj.(type) {
	case *networkingv1.NetworkPolicy:
		key.kind = kindPolicy
	case *corev1.Namespace:
		key.kind = kindNamespace
	case *corev1.Pod:
		key.kind = kindPod
		if before, ok := old.(*corev1.Pod); ok && !gone && !matters(before, o) {
			return
		}
	default:
		return
	}
	e.events.Lock()
	e.dirty[key] = news{obj, gone}
	e.events.Unlock()
	e.poke()
}

// matters reports whether a change of a pod can change rules.
func matters(before, after *corev1.Pod) bool {
	return before.UID != after.UID || before.Status.Phase != after.Status.Phase || before.Spec.NodeName != after.Spec.NodeName ||
		!slices.Equal(before.Status.PodIPs, after.Status.PodIPs) || !maps.Equal(before.Labels, after.Labels)
}

func (e *Enforcer) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// takeDirty returns the objects to look at and starts a new list.
func (e *Enforcer) takeDirty() map[dirtyKey]news {
	e.events.Lock()
	defer e.events.Unlock()
	taken := e.dirty
	e.dirty = map[dirtyKey]news{}
	return taken
}

// take puts one object into the state. e.mu is held.
func (e *Enforcer) take(key dirtyKey, n news) {
	switch o := n.obj.(type) {
	case *networkingv1.NetworkPolicy:
		e.takePolicy(key.NamespacedName, o, n.gone)
	case *corev1.Namespace:
		if n.gone {
			o = nil
		}
		e.state.setNamespace(key.Name, labelsOf(o))
	case *corev1.Pod:
		if n.gone {
			o = nil
		}
		e.takePod(key.NamespacedName, o)
	}
}

// takePolicy takes over a policy, or that it is gone. Cover may have read it before its events came: what is older than what is
// known does not count.
func (e *Enforcer) takePolicy(key types.NamespacedName, obj *networkingv1.NetworkPolicy, gone bool) {
	have := e.state.policies[key.Namespace][key.Name]
	switch {
	case have == nil && gone:
		return
	case gone:
		if have.UID == obj.UID { // else it was made again
			e.state.setPolicy(key, nil)
		}
		return
	case have != nil && (have.Version == version(obj) || older(obj, have)):
		return
	}
	plan, err := planPolicy(obj)
	if err != nil {
		e.log.Warn("a network policy cannot be read in full; what cannot be read allows nothing", "error", err)
	}
	e.state.setPolicy(key, plan)
}

// older reports whether the object was before the plan: resource versions of one server count up.
func older(obj *networkingv1.NetworkPolicy, have *policyPlan) bool {
	of, err := strconv.ParseUint(obj.ResourceVersion, 10, 64)
	return err == nil && of < have.Revision
}

// takePod takes over a pod; nil is one that is gone. One that has ended has no addresses, and one on the node's own network
// is the node.
func (e *Enforcer) takePod(key types.NamespacedName, obj *corev1.Pod) {
	if obj == nil || obj.Spec.HostNetwork || obj.Status.Phase == corev1.PodSucceeded || obj.Status.Phase == corev1.PodFailed {
		e.state.setPod(key, nil)
		return
	}
	p := podOf(obj)
	p.Local = obj.Spec.NodeName == e.opts.NodeName
	for _, ip := range obj.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			p.Addrs = append(p.Addrs, addr)
		}
	}
	p.Addrs = wanted(p.Addrs)
	e.state.setPod(key, p)
}

// podOf takes over what does not depend on where the pod is.
func podOf(obj *corev1.Pod) *pod {
	p := &pod{UID: obj.UID, Key: client.ObjectKeyFromObject(obj), Labels: obj.Labels}
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.Name != "" && port.ContainerPort > 0 {
				p.Ports = append(p.Ports, namedPort{portSpec{port.Name, nft.ProtocolNumber(port.Protocol)}, uint16(port.ContainerPort)})
			}
		}
	}
	for i := range obj.Spec.Containers {
		add(&obj.Spec.Containers[i])
	}
	for i := range obj.Spec.InitContainers {
		c := &obj.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return p
}

// wanted leaves the addresses that the table is for.
func wanted(addrs []netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, addr := range addrs {
		if addr = addr.Unmap(); addr.Is4() && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// labelsOf returns a namespace's labels, none but not nil when it has none, and nil when it is gone.
func labelsOf(namespace *corev1.Namespace) labels.Set {
	switch {
	case namespace == nil:
		return nil
	case namespace.Labels == nil:
		return labels.Set{}
	}
	return namespace.Labels
}
