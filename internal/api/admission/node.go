package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/kubernetes/pkg/apis/coordination"
	api "k8s.io/kubernetes/pkg/apis/core"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

// taintNodesByCondition keeps pods off a new node until its controller has seen it ready
// (upstream: TaintNodesByCondition).
type taintNodesByCondition struct{ mutatesOnly }

// Admit implements Plugin.
func (taintNodesByCondition) Admit(_ context.Context, a admission.Attributes) error {
	if a.GetOperation() != admission.Create || a.GetSubresource() != "" || a.GetResource().GroupResource() != api.Resource("nodes") {
		return nil
	}
	node, ok := a.GetObject().(*api.Node)
	if !ok {
		return nil
	}
	has := slices.ContainsFunc(node.Spec.Taints, func(t api.Taint) bool {
		return t.Key == corev1.TaintNodeNotReady && t.Effect == api.TaintEffectNoSchedule
	})
	if !has {
		node.Spec.Taints = append(node.Spec.Taints, api.Taint{Key: corev1.TaintNodeNotReady, Effect: api.TaintEffectNoSchedule})
	}
	return nil
}

// nodeRestriction lets an agent change only its own node, its lease and the pods on it
// (upstream: NodeRestriction).
type nodeRestriction struct{ reader Reader }

// nodeOf is the name of the node that the user is; ok is false for users that are none.
func nodeOf(u user.Info) (name string, ok bool) {
	if u == nil || !slices.Contains(u.GetGroups(), user.NodesGroup) {
		return "", false
	}
	name, ok = strings.CutPrefix(u.GetName(), "system:node:")
	return name, ok
}

// Admit implements Plugin.
func (p nodeRestriction) Admit(ctx context.Context, a admission.Attributes) error {
	name, ok := nodeOf(a.GetUserInfo())
	if !ok {
		return nil
	}
	switch a.GetResource().GroupResource() {
	case api.Resource("pods"):
		return p.pod(ctx, name, a)
	case api.Resource("nodes"):
		return restrictNode(name, a)
	case coordination.Resource("leases"):
		return restrictLease(name, a)
	}
	return nil
}

// Validate implements Plugin.
func (p nodeRestriction) Validate(ctx context.Context, a admission.Attributes) error {
	return p.Admit(ctx, a)
}

func (p nodeRestriction) pod(ctx context.Context, node string, a admission.Attributes) error {
	switch {
	case a.GetSubresource() == "" && a.GetOperation() == admission.Create:
		return restrictMirror(node, a)
	case a.GetSubresource() == "" && a.GetOperation() == admission.Delete,
		a.GetSubresource() == "status" && a.GetOperation() == admission.Update,
		a.GetSubresource() == "eviction" && a.GetOperation() == admission.Create:
	default:
		return admission.NewForbidden(a, fmt.Errorf("unexpected operation %q on pods %q, node %q can only create and delete mirror pods", a.GetOperation(), a.GetSubresource(), node))
	}
	var pod corev1.Pod
	if err := p.reader.Get(ctx, ctrlclient.ObjectKey{Namespace: a.GetNamespace(), Name: a.GetName()}, &pod); err != nil {
		return err
	}
	if pod.Spec.NodeName != node {
		return admission.NewForbidden(a, fmt.Errorf("node %q can only touch pods with spec.nodeName set to itself", node))
	}
	if a.GetSubresource() != "status" {
		return nil
	}
	changed, old := a.GetObject().(*api.Pod), a.GetOldObject().(*api.Pod)
	if !mapsEqual(changed.Labels, old.Labels) {
		return admission.NewForbidden(a, fmt.Errorf("node %q cannot update labels through pod status", node))
	}
	return nil
}

func mapsEqual(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

func restrictMirror(node string, a admission.Attributes) error {
	pod, ok := a.GetObject().(*api.Pod)
	switch {
	case !ok:
		return admission.NewForbidden(a, fmt.Errorf("unexpected type %T", a.GetObject()))
	case !isMirror(pod):
		return admission.NewForbidden(a, fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", api.MirrorPodAnnotationKey, node))
	case pod.Spec.NodeName != node:
		return admission.NewForbidden(a, fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", node))
	case len(pod.OwnerReferences) != 1 || pod.OwnerReferences[0].Kind != "Node" || pod.OwnerReferences[0].Name != node:
		return admission.NewForbidden(a, fmt.Errorf("node %q can only create pods with an owner reference set to itself", node))
	}
	return nil
}

func restrictNode(name string, a admission.Attributes) error {
	target := a.GetName()
	node, isNode := a.GetObject().(*api.Node)
	if target == "" && isNode {
		target = node.Name
	}
	if target != name {
		return admission.NewForbidden(a, fmt.Errorf("node %q is not allowed to modify node %q", name, target))
	}
	switch a.GetOperation() {
	case admission.Delete:
		return admission.NewForbidden(a, fmt.Errorf("node %q is not allowed to delete itself", name))
	case admission.Update:
		old, ok := a.GetOldObject().(*api.Node)
		if !ok || !isNode || a.GetSubresource() != "" {
			return nil
		}
		if !sameTaints(node.Spec.Taints, old.Spec.Taints) {
			return admission.NewForbidden(a, fmt.Errorf("node %q is not allowed to modify taints", name))
		}
		for key, value := range node.Labels {
			if restrictedLabel(key) && old.Labels[key] != value {
				return admission.NewForbidden(a, fmt.Errorf("is not allowed to modify labels: %s", key))
			}
		}
	}
	return nil
}

func restrictedLabel(key string) bool {
	domain, _, found := strings.Cut(key, "/")
	return found && (domain == corev1.LabelNamespaceNodeRestriction || strings.HasSuffix(domain, "."+corev1.LabelNamespaceNodeRestriction))
}

func sameTaints(a, b []api.Taint) bool {
	return slices.EqualFunc(a, b, func(x, y api.Taint) bool {
		return x.Key == y.Key && x.Value == y.Value && x.Effect == y.Effect
	})
}

func restrictLease(name string, a admission.Attributes) error {
	switch {
	case a.GetNamespace() != api.NamespaceNodeLease:
		return admission.NewForbidden(a, fmt.Errorf("can only access leases in the %q system namespace", api.NamespaceNodeLease))
	case a.GetName() != name && a.GetName() != "":
		return admission.NewForbidden(a, fmt.Errorf("can only access node lease with the same name as the requesting node"))
	case a.GetOperation() == admission.Create:
		lease, ok := a.GetObject().(*coordination.Lease)
		if !ok || lease.Name != name {
			return admission.NewForbidden(a, errors.New("can only access node lease with the same name as the requesting node"))
		}
	}
	return nil
}
