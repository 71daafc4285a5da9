package auth

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/node"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Informers gives events about objects.
type Informers interface {
	GetInformer(ctx context.Context, obj client.Object, opts ...cache.InformerGetOption) (cache.Informer, error)
}

// Authorizer decides what a user may do: members of system:masters everything, nodes what upstream's node
// authorizer lets them, everyone what RBAC grants. It is safe for concurrent use.
type Authorizer struct {
	rbac  RBAC
	graph *node.Graph
	nodes *node.NodeAuthorizer

	mu      sync.Mutex    // guards changed
	changed chan struct{} // closed when the graph next gets a pod
}

// graphLag is how long a node's request waits for a pod that the graph does not know yet. A node
// in this process learns of its pods as fast as the graph does, and may ask first.
const graphLag = 200 * time.Millisecond

// NewAuthorizer returns an Authorizer that knows no roles yet and so allows only system:masters; see Feed.
func NewAuthorizer() *Authorizer {
	graph := node.NewGraph()
	return &Authorizer{
		graph: graph, changed: make(chan struct{}),
		nodes: node.NewAuthorizer(graph, nodeidentifier.NewDefaultNodeIdentifier(), bootstrappolicy.NodeRules()),
	}
}

// RBAC returns the roles and bindings that the Authorizer decides by.
func (a *Authorizer) RBAC() *RBAC { return &a.rbac }

// Authorize implements authorizer.Authorizer.
func (a *Authorizer) Authorize(ctx context.Context, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	info := userOf(attrs)
	if info == nil {
		return authorizer.DecisionNoOpinion, "", errors.New("no user on request")
	}
	groups := info.GetGroups()
	if slices.Contains(groups, user.SystemPrivilegedGroup) {
		return authorizer.DecisionAllow, "", nil
	}
	nodeReason := ""
	if slices.Contains(groups, user.NodesGroup) {
		decision, reason, err := a.authorizeNode(ctx, attrs)
		if decision != authorizer.DecisionNoOpinion || err != nil {
			return decision, reason, err
		}
		nodeReason = reason
	}
	decision, reason, err := a.rbac.Authorize(ctx, attrs)
	if decision == authorizer.DecisionNoOpinion && nodeReason != "" {
		if reason != "" {
			nodeReason += "\n" + reason
		}
		return decision, nodeReason, err
	}
	return decision, reason, err
}

// authorizeNode asks upstream's node authorizer, again while pods come that may change its mind.
func (a *Authorizer) authorizeNode(ctx context.Context, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	var limit <-chan time.Time
	for {
		changed := a.nextChange()
		decision, reason, err := a.nodes.Authorize(ctx, attrs)
		if decision != authorizer.DecisionNoOpinion || err != nil || !dependsOnPods(attrs) {
			return decision, reason, err
		}
		if limit == nil {
			timer := time.NewTimer(graphLag)
			defer timer.Stop()
			limit = timer.C
		}
		select {
		case <-changed:
		case <-limit:
			return decision, reason, err
		case <-ctx.Done():
			return decision, reason, err
		}
	}
}

// dependsOnPods reports whether a node may do this for the sake of its pods only.
func dependsOnPods(attrs authorizer.Attributes) bool {
	if attrs.GetAPIGroup() != "" || attrs.GetName() == "" {
		return false
	}
	switch attrs.GetResource() {
	case "secrets", "configmaps", "persistentvolumeclaims", "persistentvolumes":
		return attrs.GetVerb() == "get"
	case "serviceaccounts":
		return attrs.GetVerb() == "create" && attrs.GetSubresource() == "token"
	}
	return false
}

func (a *Authorizer) nextChange() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}

// RulesFor implements authorizer.RuleResolver.
func (a *Authorizer) RulesFor(ctx context.Context, info user.Info, namespace string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	if slices.Contains(info.GetGroups(), user.SystemPrivilegedGroup) {
		all := []string{"*"}
		return []authorizer.ResourceRuleInfo{&authorizer.DefaultResourceRuleInfo{Verbs: all, APIGroups: all, Resources: all}},
			[]authorizer.NonResourceRuleInfo{&authorizer.DefaultNonResourceRuleInfo{Verbs: all, NonResourceURLs: all}}, false, nil
	}
	resource, nonResource, incomplete, err := a.rbac.RulesFor(ctx, info, namespace)
	if _, _, nodeIncomplete, nodeErr := a.nodes.RulesFor(ctx, info, namespace); nodeIncomplete || nodeErr != nil {
		return resource, nonResource, true, errors.Join(err, nodeErr)
	}
	return resource, nonResource, incomplete, err
}

// Feed follows roles, bindings and pods (for the node graph) through informers and returns when all that existed at
// the call has been taken in. It starts nothing that outlives informers.
func (a *Authorizer) Feed(ctx context.Context, informers Informers) error {
	kinds := []struct {
		object  client.Object
		set     func(object any)
		deleted func(object any)
	}{
		{&rbacv1.ClusterRole{}, a.setRole, a.deleteRole},
		{&rbacv1.Role{}, a.setRole, a.deleteRole},
		{&rbacv1.ClusterRoleBinding{}, a.setBinding, a.deleteBinding},
		{&rbacv1.RoleBinding{}, a.setBinding, a.deleteBinding},
	}
	var synced []toolscache.InformerSynced
	for _, kind := range kinds {
		done, err := follow(ctx, informers, kind.object, toolscache.ResourceEventHandlerFuncs{
			AddFunc:    kind.set,
			UpdateFunc: func(_, object any) { kind.set(object) },
			DeleteFunc: kind.deleted,
		})
		if err != nil {
			return err
		}
		synced = append(synced, done)
	}
	done, err := follow(ctx, informers, &corev1.Pod{}, toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) { a.setPod(nil, object) }, UpdateFunc: a.setPod, DeleteFunc: a.deletePod,
	})
	if err != nil {
		return err
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), append(synced, done)...) {
		return fmt.Errorf("reading roles and bindings: %w", context.Cause(ctx))
	}
	return nil
}

func follow(ctx context.Context, informers Informers, object client.Object, handler toolscache.ResourceEventHandler) (toolscache.InformerSynced, error) {
	informer, err := informers.GetInformer(ctx, object)
	if err != nil {
		return nil, fmt.Errorf("getting the informer of %T: %w", object, err)
	}
	registration, err := informer.AddEventHandler(handler)
	if err != nil {
		return nil, fmt.Errorf("following %T: %w", object, err)
	}
	return registration.HasSynced, nil
}

// last returns the object of a delete event, also of one whose event was missed.
func last(object any) any {
	if unknown, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
		return unknown.Obj
	}
	return object
}

func (a *Authorizer) setRole(object any) {
	switch role := object.(type) {
	case *rbacv1.ClusterRole:
		a.rbac.SetRole("", role.Name, role.Rules)
	case *rbacv1.Role:
		a.rbac.SetRole(role.Namespace, role.Name, role.Rules)
	}
}

func (a *Authorizer) deleteRole(object any) {
	if role, ok := last(object).(client.Object); ok {
		a.rbac.DeleteRole(role.GetNamespace(), role.GetName())
	}
}

func (a *Authorizer) setBinding(object any) {
	switch binding := object.(type) {
	case *rbacv1.ClusterRoleBinding:
		a.rbac.SetBinding("", binding.Name, binding.RoleRef, binding.Subjects)
	case *rbacv1.RoleBinding:
		a.rbac.SetBinding(binding.Namespace, binding.Name, binding.RoleRef, binding.Subjects)
	}
}

func (a *Authorizer) deleteBinding(object any) {
	if binding, ok := last(object).(client.Object); ok {
		a.rbac.DeleteBinding(binding.GetNamespace(), binding.GetName())
	}
}

// setPod keeps the graph that says which secrets, configmaps, claims and accounts a node's pods use. A pod's
// references are fixed once it is bound, but for ephemeral containers and resource claims.
func (a *Authorizer) setPod(old, object any) {
	pod, ok := object.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" {
		return
	}
	if before, ok := old.(*corev1.Pod); ok && before != nil && before.UID == pod.UID && before.Spec.NodeName == pod.Spec.NodeName &&
		len(before.Spec.EphemeralContainers) == len(pod.Spec.EphemeralContainers) &&
		len(before.Status.ResourceClaimStatuses) == len(pod.Status.ResourceClaimStatuses) {
		return
	}
	a.graph.AddPod(pod)
	a.wake()
}

// wake has requests asked about again that the graph did not allow.
func (a *Authorizer) wake() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *Authorizer) deletePod(object any) {
	if pod, ok := last(object).(*corev1.Pod); ok && pod.Spec.NodeName != "" {
		a.graph.DeletePod(pod.Name, pod.Namespace)
	}
}

// FollowVolumes adds persistent volumes to the node graph (a node may read the volumes and secrets of its pods'
// claims) and returns when those that exist are in. Call it where the API serves persistent volumes.
func (a *Authorizer) FollowVolumes(ctx context.Context, informers Informers) error {
	set := func(old, object any) {
		volume, ok := object.(*corev1.PersistentVolume)
		if before, same := old.(*corev1.PersistentVolume); !ok || same && apiequality.Semantic.DeepEqual(before.Spec.ClaimRef, volume.Spec.ClaimRef) {
			return // its source is fixed
		}
		a.graph.AddPV(volume)
		a.wake()
	}
	done, err := follow(ctx, informers, &corev1.PersistentVolume{}, toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) { set(nil, object) }, UpdateFunc: set,
		DeleteFunc: func(object any) {
			if volume, ok := last(object).(*corev1.PersistentVolume); ok {
				a.graph.DeletePV(volume.Name)
			}
		},
	})
	if err != nil {
		return err
	}
	if !toolscache.WaitForCacheSync(ctx.Done(), done) {
		return fmt.Errorf("reading persistent volumes: %w", context.Cause(ctx))
	}
	return nil
}
