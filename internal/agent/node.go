package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/durable"
	"gantry.dev/gantry/internal/heartbeat"
	"gantry.dev/gantry/internal/lifecycle"
)

// maxNodeImages is how many images a node reports, the largest first.
const maxNodeImages = 50

// nodeRetry is the first wait after the node could not be registered or reported.
const nodeRetry = 200 * time.Millisecond

// nodeChanged learns the node's pod range from the API.
func (a *Agent) nodeChanged(object client.Object) {
	node, ok := object.(*corev1.Node)
	if !ok || node.Name != a.opts.NodeName {
		return
	}
	a.noteFolders(node)
	a.node.Store(node)
	ranges := node.Spec.PodCIDRs
	if len(ranges) == 0 && node.Spec.PodCIDR != "" {
		ranges = []string{node.Spec.PodCIDR}
	}
	if len(ranges) == 0 {
		return
	}
	ranges = slices.Clone(ranges)
	if known := a.podCIDRs.Load(); known == nil || !slices.Equal(*known, ranges) {
		a.keepRanges(ranges)
	}
	a.podCIDRs.Store(&ranges)
	a.cidrs.Do(func() { close(a.cidrSet) })
}

// keepRanges writes the node's pod ranges down, so that static pods can be connected before the
// API is there again.
func (a *Agent) keepRanges(ranges []string) {
	if a.static == nil {
		return
	}
	if err := durable.WriteFile(a.opts.RangeFile, []byte(strings.Join(ranges, "\n")), 0o600); err != nil {
		a.log.Warn("cannot write down the node's pod ranges", "error", err)
	}
}

// recallRanges takes the pod ranges that the node had last.
func (a *Agent) recallRanges() {
	text, err := os.ReadFile(a.opts.RangeFile)
	if ranges := strings.Fields(string(text)); err == nil && len(ranges) > 0 && a.static != nil {
		a.podCIDRs.Store(&ranges)
		a.cidrs.Do(func() { close(a.cidrSet) })
	}
}

// runNode registers the node, then reports its status when it has changed, and at least so
// often that an unchanged one counts as alive.
func (a *Agent) runNode(ctx context.Context) {
	for delay := nodeRetry; ; delay = min(2*delay, 7*time.Second) {
		err := a.register(ctx)
		if err == nil {
			break
		}
		a.log.Warn("cannot register the node", "nodeName", a.opts.NodeName, "error", err)
		if !lifecycle.Pause(ctx, delay) {
			return
		}
	}
	a.events.node(corev1.EventTypeNormal, "Starting", "Starting kubelet.")
	var last time.Time
	rangeSet := a.cidrSet // nil once it was noticed
	ticker := time.NewTicker(a.opts.StatusEvery)
	defer ticker.Stop()
	for {
		wrote, err := a.reportNode(ctx, time.Since(last) >= a.opts.StatusAtLeast)
		if err != nil && ctx.Err() == nil {
			a.log.Warn("cannot report the node's status", "nodeName", a.opts.NodeName, "error", err)
			if apierrors.IsNotFound(err) {
				_ = a.register(ctx) // deleted by somebody; the next turn says if that failed
			}
		}
		if wrote {
			last = time.Now()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-a.nodeNews:
		case <-rangeSet: // with its pod range the node is ready: say so at once
			rangeSet = nil
		}
	}
}

// nodeLabels are those the agent keeps up.
func (a *Agent) nodeLabels() map[string]string {
	labels := map[string]string{
		corev1.LabelHostname:      a.opts.Hostname,
		corev1.LabelOSStable:      runtime.GOOS,
		corev1.LabelArchStable:    runtime.GOARCH,
		"beta.kubernetes.io/os":   runtime.GOOS,
		"beta.kubernetes.io/arch": runtime.GOARCH,
	}
	if a.opts.InstanceType != "" {
		labels[corev1.LabelInstanceTypeStable] = a.opts.InstanceType
		labels[corev1.LabelInstanceType] = a.opts.InstanceType
	}
	return labels
}

// nodeAnnotations are those the agent gives its node.
func (a *Agent) nodeAnnotations() map[string]string {
	annotations := map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"}
	if a.opts.Heartbeats != nil {
		annotations[heartbeat.NodeAnnotation] = heartbeat.Every.String()
	}
	return annotations
}

// register creates the Node, or brings the labels of the one that is there up to date.
func (a *Agent) register(ctx context.Context) error {
	var node corev1.Node
	err := a.client.Get(ctx, client.ObjectKey{Name: a.opts.NodeName}, &node)
	if apierrors.IsNotFound(err) {
		node = corev1.Node{
			ObjectMeta: metav1.ObjectMeta{
				Name: a.opts.NodeName, UID: a.opts.NodeUID, Labels: a.nodeLabels(),
				Annotations: a.nodeAnnotations(),
			},
			Spec: corev1.NodeSpec{Taints: a.opts.NodeTaints},
		}
		for k, v := range a.opts.NodeLabels {
			node.Labels[k] = v
		}
		a.fillStatus(ctx, &node.Status, corev1.NodeStatus{})
		err = a.client.Create(ctx, &node)
		if !apierrors.IsAlreadyExists(err) {
			return err
		}
		err = a.client.Get(ctx, client.ObjectKey{Name: a.opts.NodeName}, &node)
	}
	if err != nil {
		return err
	}
	a.nodeChanged(&node)
	missing := map[string]string{}
	for k, v := range a.nodeLabels() {
		if node.Labels[k] != v {
			missing[k] = v
		}
	}
	changed := map[string]string{}
	for k, v := range a.nodeAnnotations() {
		if _, there := node.Annotations[k]; !there {
			changed[k] = v
		}
	}
	if len(missing)+len(changed) == 0 {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": missing, "annotations": changed}})
	if err != nil {
		return fmt.Errorf("making the label patch: %w", err)
	}
	target := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: a.opts.NodeName}}
	return a.client.Patch(ctx, target, client.RawPatch(types.StrategicMergePatchType, patch))
}

// reportNode writes the node's status if it has changed or force is set.
func (a *Agent) reportNode(ctx context.Context, force bool) (wrote bool, err error) {
	var node corev1.Node
	if err := a.client.Get(ctx, client.ObjectKey{Name: a.opts.NodeName}, &node); err != nil {
		return false, err
	}
	a.nodeChanged(&node)
	status := *node.Status.DeepCopy()
	a.fillStatus(ctx, &status, node.Status)
	if !force && sameStatus(node.Status, status) {
		return false, nil
	}
	before, err := json.Marshal(corev1.Node{Status: node.Status})
	if err != nil {
		return false, fmt.Errorf("encoding the node's status: %w", err)
	}
	after, err := json.Marshal(corev1.Node{Status: status})
	if err != nil {
		return false, fmt.Errorf("encoding the node's status: %w", err)
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Node{})
	if err != nil {
		return false, fmt.Errorf("making the node's status patch: %w", err)
	}
	target := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: a.opts.NodeName}}
	if err := a.client.Status().Patch(ctx, target, client.RawPatch(types.StrategicMergePatchType, patch)); err != nil {
		return false, err
	}
	a.tellReadiness(node.Status, status)
	return true, nil
}

// tellPressure records an event for each pressure condition that has changed.
func (a *Agent) tellPressure(before, now corev1.NodeStatus) {
	holds := func(s corev1.NodeStatus, kind corev1.NodeConditionType) bool {
		return slices.ContainsFunc(s.Conditions, func(c corev1.NodeCondition) bool { return c.Type == kind && c.Status == corev1.ConditionTrue })
	}
	for _, c := range []struct {
		kind      corev1.NodeConditionType
		good, bad string
	}{
		{corev1.NodeMemoryPressure, "NodeHasSufficientMemory", "NodeHasInsufficientMemory"},
		{corev1.NodeDiskPressure, "NodeHasNoDiskPressure", "NodeHasDiskPressure"},
		{corev1.NodePIDPressure, "NodeHasSufficientPID", "NodeHasInsufficientPID"},
	} {
		reason := c.good
		if holds(now, c.kind) {
			reason = c.bad
		}
		if holds(now, c.kind) != holds(before, c.kind) {
			a.events.node(corev1.EventTypeNormal, reason, fmt.Sprintf("Node %s status is now: %s", a.opts.NodeName, reason))
		}
	}
}

func (a *Agent) tellReadiness(before, now corev1.NodeStatus) {
	a.tellPressure(before, now)
	ready := func(s corev1.NodeStatus) bool {
		return slices.ContainsFunc(s.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
	}
	switch {
	case ready(now) && !ready(before):
		a.events.node(corev1.EventTypeNormal, "NodeReady", fmt.Sprintf("Node %s status is now: NodeReady", a.opts.NodeName))
	case !ready(now) && ready(before):
		a.events.node(corev1.EventTypeNormal, "NodeNotReady", fmt.Sprintf("Node %s status is now: NodeNotReady", a.opts.NodeName))
	}
}

// sameStatus compares without heartbeats.
func sameStatus(a, b corev1.NodeStatus) bool {
	strip := func(s corev1.NodeStatus) corev1.NodeStatus {
		s.Conditions = slices.Clone(s.Conditions)
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
		return s
	}
	return equality.Semantic.DeepEqual(strip(a), strip(b))
}

// fillStatus sets what the agent knows; conditions of others stay.
func (a *Agent) fillStatus(ctx context.Context, status *corev1.NodeStatus, old corev1.NodeStatus) {
	status.Capacity = a.capacity.DeepCopy()
	status.Capacity[corev1.ResourcePods] = *resource.NewQuantity(int64(a.opts.MaxPods), resource.DecimalSI)
	status.Allocatable = a.allocatable()
	a.addDeviceCapacity(status, old.Capacity)
	status.Addresses = nil
	for _, ip := range a.opts.NodeIPs {
		status.Addresses = append(status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
	}
	status.Addresses = append(status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: a.opts.Hostname})
	status.DaemonEndpoints.KubeletEndpoint.Port = a.opts.KubeletPort
	status.NodeInfo = a.nodeInfo()
	status.RuntimeHandlers = []corev1.NodeRuntimeHandler{
		{Features: &corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: ptr(true), UserNamespaces: ptr(false)}},
		{Name: handlerGantry, Features: &corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: ptr(true), UserNamespaces: ptr(false)}},
		{Name: "runc", Features: &corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: ptr(true), UserNamespaces: ptr(false)}},
	}
	status.Features = &corev1.NodeFeatures{SupplementalGroupsPolicy: ptr(true)}
	status.DeclaredFeatures = declaredFeatures()
	if images, err := a.images.Images(ctx); err == nil {
		status.Images = nil
		slices.SortFunc(images, func(x, y containerImage) int {
			return cmp.Or(cmp.Compare(y.SizeBytes, x.SizeBytes), cmp.Compare(x.ID, y.ID))
		})
		for _, image := range images[:min(len(images), maxNodeImages)] {
			names := slices.Concat(image.Digests, image.Names)
			status.Images = append(status.Images, corev1.ContainerImage{Names: names[:min(len(names), 5)], SizeBytes: image.SizeBytes})
		}
	}
	status.Conditions = a.nodeConditions(status.Conditions, metav1.Now())
}

// declaredFeatures are what the API asks a node for before it lets pods use them, sorted.
func declaredFeatures() []string {
	return []string{"InPlacePodLevelResourcesVerticalScaling", "InPlacePodVerticalScalingInitContainers"}
}

func ptr[T any](v T) *T { return &v }

// conditionStore of a server's Node says that the cluster's store takes no writes there, as when its disk is full.
const conditionStore corev1.NodeConditionType = "gantry.dev/StoreReadOnly"

// storeCondition tells why the store of this machine refuses writes; nil is that it does not.
func storeCondition(trouble error) corev1.NodeCondition {
	if trouble != nil {
		return corev1.NodeCondition{Type: conditionStore, Status: corev1.ConditionTrue, Reason: "StoreIsFull", Message: trouble.Error()}
	}
	return corev1.NodeCondition{Type: conditionStore, Status: corev1.ConditionFalse, Reason: "StoreTakesWrites", Message: "the cluster's store takes writes"}
}

// nodeConditions returns the conditions with the agent's own brought up to date, Ready last.
func (a *Agent) nodeConditions(old []corev1.NodeCondition, now metav1.Time) []corev1.NodeCondition {
	now = now.Rfc3339Copy()
	held := a.pressure.current()
	pressure := func(kind corev1.NodeConditionType, good, goodText, bad, badText string) corev1.NodeCondition {
		if slices.Contains(held, kind) {
			return corev1.NodeCondition{Type: kind, Status: corev1.ConditionTrue, Reason: "KubeletHas" + bad, Message: "kubelet has " + badText}
		}
		return corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: "KubeletHas" + good, Message: "kubelet has " + goodText}
	}
	own := []corev1.NodeCondition{
		pressure(corev1.NodeMemoryPressure, "SufficientMemory", "sufficient memory available", "InsufficientMemory", "insufficient memory available"),
		pressure(corev1.NodeDiskPressure, "NoDiskPressure", "no disk pressure", "DiskPressure", "disk pressure"),
		pressure(corev1.NodePIDPressure, "SufficientPID", "sufficient PID available", "InsufficientPID", "insufficient PID available"),
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"},
	}
	ready := &own[3]
	if a.opts.StoreTrouble != nil {
		own = slices.Insert(own, 3, storeCondition(a.opts.StoreTrouble()))
		ready = &own[4]
	}
	switch problem := a.readyErr.Load(); {
	case problem != nil:
		ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, "KubeletNotReady", *problem
	case a.shutdown.isStopping():
		ready.Status, ready.Reason, ready.Message = corev1.ConditionFalse, "KubeletNotReady", shutdownStatus
	case a.podCIDRs.Load() == nil:
		ready.Status, ready.Reason = corev1.ConditionFalse, "KubeletNotReady"
		ready.Message = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:the node has no pod range yet"
	}
	var list []corev1.NodeCondition
	for _, c := range old {
		if !slices.ContainsFunc(own, func(o corev1.NodeCondition) bool { return o.Type == c.Type }) {
			list = append(list, c)
		}
	}
	for _, c := range own {
		c.LastHeartbeatTime, c.LastTransitionTime = now, now
		i := slices.IndexFunc(old, func(o corev1.NodeCondition) bool { return o.Type == c.Type })
		if i >= 0 && old[i].Status == c.Status {
			c.LastTransitionTime = old[i].LastTransitionTime
		}
		list = append(list, c)
	}
	return list
}

// runLease keeps the node's Lease fresh: that is its heartbeat.
func (a *Agent) runLease(ctx context.Context) {
	delay := nodeRetry
	for {
		err := a.renewLease(ctx)
		wait := a.opts.LeaseRenew
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			a.log.Debug("cannot renew the node's lease", "nodeName", a.opts.NodeName, "error", err)
			wait, delay = delay, min(2*delay, 7*time.Second)
		} else {
			delay = nodeRetry
		}
		if !lifecycle.Pause(ctx, wait) {
			return
		}
	}
}

func (a *Agent) renewLease(ctx context.Context) error {
	now := metav1.NowMicro()
	var lease coordinationv1.Lease
	err := a.client.Get(ctx, client.ObjectKey{Namespace: corev1.NamespaceNodeLease, Name: a.opts.NodeName}, &lease)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return err
	}
	next := lease.DeepCopy()
	next.Namespace, next.Name = corev1.NamespaceNodeLease, a.opts.NodeName
	next.Spec = coordinationv1.LeaseSpec{HolderIdentity: &a.opts.NodeName, LeaseDurationSeconds: &a.opts.LeaseSeconds, RenewTime: &now}
	if len(next.OwnerReferences) == 0 {
		var node corev1.Node
		if err := a.client.Get(ctx, client.ObjectKey{Name: a.opts.NodeName}, &node); err == nil {
			next.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
		} else if missing {
			return err // registered in a moment: a lease without owner would outlive its node
		}
	}
	if missing {
		return a.client.Create(ctx, next)
	}
	return a.client.Update(ctx, next)
}
