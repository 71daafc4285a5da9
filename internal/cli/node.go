package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/platform/appfile"
	"gantry.dev/gantry/internal/platform/deploy"
)

func (a *app) nodeCommand() *cobra.Command {
	cmd := parent("node", "List, drain, promote, demote and remove the machines of the cluster", a.nodeListCommand(), a.nodeDrainCommand(), a.nodeRemoveCommand(),
		a.nodePromoteCommand(), a.nodeDemoteCommand())
	cmd.GroupID = groupCluster
	return cmd
}

// nodeRow is one machine.
type nodeRow struct {
	Name    string    `json:"name"`
	Role    join.Role `json:"role"`
	State   string    `json:"state"` // ready, not ready; drained after it where no pods are placed
	Address string    `json:"address"`
	Pods    int       `json:"pods"`
	Version string    `json:"version"`
	Age     string    `json:"age"`
}

func (a *app) nodeListCommand() *cobra.Command {
	t := &appTarget{}
	return contextFlag(&cobra.Command{
		Use: "ls", Short: "List the machines of the cluster", Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.machineClient(cmd, t)
			if err != nil {
				return err
			}
			list, err := listNodes(cmd.Context(), c)
			if err != nil {
				return deploy.Reached("list the nodes", err)
			}
			if a.json {
				return a.printJSON(append([]nodeRow{}, list...))
			}
			rows := [][]string{{"NODE", "ROLE", "STATE", "ADDRESS", "PODS", "VERSION", "AGE"}}
			for _, n := range list {
				rows = append(rows, []string{n.Name, string(n.Role), n.State, n.Address, fmt.Sprint(n.Pods), n.Version, n.Age})
			}
			return a.printTable(rows)
		},
	}, t)
}

func listNodes(ctx context.Context, c client.Client) ([]nodeRow, error) {
	var nodes corev1.NodeList
	var pods corev1.PodList
	if err := errors.Join(c.List(ctx, &nodes), c.List(ctx, &pods)); err != nil {
		return nil, err
	}
	servers, err := serverAddresses(ctx, c)
	if err != nil {
		return nil, err
	}
	count := map[string]int{}
	for i := range pods.Items {
		if phase := pods.Items[i].Status.Phase; phase != corev1.PodSucceeded && phase != corev1.PodFailed {
			count[pods.Items[i].Spec.NodeName]++
		}
	}
	var out []nodeRow
	for i := range nodes.Items {
		n := &nodes.Items[i]
		row := nodeRow{
			Name: n.Name, Role: join.Worker, State: "not ready", Address: addressOf(n), Pods: count[n.Name],
			Version: n.Status.NodeInfo.KubeletVersion, Age: age(time.Since(n.CreationTimestamp.Time)),
		}
		if slices.Contains(servers, row.Address) {
			row.Role = join.Server
		}
		if isReady(n) {
			row.State = "ready"
		}
		row.State += pressureOf(n)
		if n.Spec.Unschedulable {
			row.State += ", takes no pods"
		}
		out = append(out, row)
	}
	return out, nil
}

// pressureOf says what a node is short of: it takes no pods then.
func pressureOf(n *corev1.Node) string {
	words := ""
	for _, c := range n.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case corev1.NodeDiskPressure:
			words += ", disk nearly full"
		case corev1.NodeMemoryPressure:
			words += ", memory short"
		case corev1.NodePIDPressure:
			words += ", processes short"
		}
	}
	return words
}

func isReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

// addressOf is where the cluster reaches a node.
func addressOf(n *corev1.Node) string {
	for _, addr := range n.Status.Addresses {
		if addr.Type == corev1.NodeInternalIP {
			return addr.Address
		}
	}
	return ""
}

// serverAddresses are those of the servers.
func serverAddresses(ctx context.Context, c client.Client) ([]string, error) {
	var slice discoveryv1.EndpointSlice
	if err := c.Get(ctx, client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}, &slice); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	var out []string
	for _, endpoint := range slice.Endpoints {
		out = append(out, endpoint.Addresses...)
	}
	return out, nil
}

// getNode reads a node by the name that somebody typed.
func getNode(ctx context.Context, c client.Client, name string) (*corev1.Node, error) {
	var node corev1.Node
	err := c.Get(ctx, client.ObjectKey{Name: name}, &node)
	if apierrors.IsNotFound(err) {
		return nil, usage("there is no node %s; see \"gantry node ls\"", name)
	}
	if err != nil {
		return nil, deploy.Reached("read the node", err)
	}
	return &node, nil
}

// drainer moves the pods of a node away.
type drainer struct {
	app     *app
	client  client.Client
	force   bool // pods without a controller too, for good
	scratch bool // pods with emptyDir volumes too
}

func (a *app) nodeDrainCommand() *cobra.Command {
	t := &appTarget{}
	d := &drainer{app: a}
	var timeout string
	cmd := &cobra.Command{
		Use: "drain NAME", Short: "Move the pods of a node to others, within their disruption budgets", Args: exactArgs("the node's NAME"),
		Long: "Move the pods of a node to others, within their disruption budgets. The node takes no pods any more; \"gantry kubectl uncordon\"\n" +
			"undoes that. Pods of DaemonSets and static pods stay.",
		RunE: func(cmd *cobra.Command, args []string) error {
			limit, err := appfile.ParseDuration(timeout)
			if err != nil || limit <= 0 {
				return usage("--timeout %q is not a duration such as 10m", timeout)
			}
			if d.client, err = a.machineClient(cmd, t); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), limit)
			defer cancel()
			return d.drain(ctx, args[0])
		},
	}
	cmd.Flags().StringVar(&timeout, "timeout", "10m", "how long it may take")
	cmd.Flags().BoolVar(&d.force, "force", false, "also end pods that nothing starts elsewhere")
	cmd.Flags().BoolVar(&d.scratch, "delete-emptydir-data", false, "also move pods whose emptyDir volumes are lost by that")
	return contextFlag(cmd, t)
}

func (d *drainer) drain(ctx context.Context, name string) error {
	node, err := getNode(ctx, d.client, name)
	if err != nil {
		return err
	}
	pods, err := d.pods(ctx, name)
	if err != nil {
		return err
	}
	if err := d.refuse(pods); err != nil {
		return err
	}
	if !node.Spec.Unschedulable {
		patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"unschedulable":true}}`))
		if err := d.client.Patch(ctx, node, patch); err != nil {
			return deploy.Reached("keep pods off the node", err)
		}
	}
	d.say("%s takes no pods any more; %d are to move", name, len(pods))
	for {
		for _, pod := range pods {
			if err := d.evict(ctx, pod); err != nil {
				return err
			}
		}
		if len(pods) == 0 {
			d.say("%s is drained", name)
			return nil
		}
		if !lifecycle.Pause(ctx, 500*time.Millisecond) {
			return withCode(exitTimeout, fmt.Errorf("%d pods are still on %s: %s", len(pods), name, strings.Join(names(pods), ", ")))
		}
		before := names(pods)
		if pods, err = d.pods(ctx, name); err != nil {
			return err
		}
		for _, gone := range before {
			if !slices.Contains(names(pods), gone) {
				d.say("%s is gone from it, %d left", gone, len(pods))
			}
		}
	}
}

func (d *drainer) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.app.env.Stderr, format+"\n", args...)
}

// pods are those that a drain moves.
func (d *drainer) pods(ctx context.Context, node string) ([]*corev1.Pod, error) {
	var list corev1.PodList
	if err := d.client.List(ctx, &list, client.MatchingFields{"spec.nodeName": node}); err != nil {
		if ctx.Err() != nil {
			return nil, withCode(exitTimeout, fmt.Errorf("the pods of %s could not be read in time", node))
		}
		return nil, deploy.Reached("list the node's pods", err)
	}
	var out []*corev1.Pod
	for i := range list.Items {
		pod := &list.Items[i]
		owner := metav1.GetControllerOf(pod)
		_, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
		if !mirror && (owner == nil || owner.Kind != "DaemonSet") {
			out = append(out, pod)
		}
	}
	return out, nil
}

func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// refuse names pods that would be lost, or lose data.
func (d *drainer) refuse(pods []*corev1.Pod) error {
	var lost, scratch []string
	for _, pod := range pods {
		if ended(pod) {
			continue
		}
		if metav1.GetControllerOf(pod) == nil {
			lost = append(lost, pod.Namespace+"/"+pod.Name)
		}
		if slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.EmptyDir != nil }) {
			scratch = append(scratch, pod.Namespace+"/"+pod.Name)
		}
	}
	if len(lost) > 0 && !d.force {
		return usage("nothing would start these pods elsewhere: %s; --force ends them for good", strings.Join(lost, ", "))
	}
	if len(scratch) > 0 && !d.scratch {
		return usage("the emptyDir volumes of these pods would be lost: %s; --delete-emptydir-data agrees to that", strings.Join(scratch, ", "))
	}
	return nil
}

// evict asks for one pod to be moved. What a budget forbids now is asked again.
func (d *drainer) evict(ctx context.Context, pod *corev1.Pod) error {
	if pod.DeletionTimestamp != nil {
		return nil
	}
	eviction := &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}},
	}
	err := d.client.SubResource("eviction").Create(ctx, pod, eviction)
	switch {
	case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err), apierrors.IsTooManyRequests(err), ctx.Err() != nil:
		return nil
	}
	return deploy.Reached("move "+pod.Namespace+"/"+pod.Name, err)
}

func names(pods []*corev1.Pod) []string {
	var out []string
	for _, pod := range pods {
		out = append(out, pod.Namespace+"/"+pod.Name)
	}
	return out
}

func (a *app) nodeRemoveCommand() *cobra.Command {
	t := &appTarget{}
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME", Short: "Remove a worker from the cluster; its certificates are refused from then on", Args: exactArgs("the node's NAME"),
		Long: "Remove a worker from the cluster. Its certificates are refused from then on, and its pods run elsewhere. Drain it first; on the\n" +
			"machine, \"gantry down --purge\" removes what is left. A machine of that name may join again with a token.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.machineClient(cmd, t)
			if err != nil {
				return err
			}
			return a.nodeRemove(cmd.Context(), c, args[0], force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "even if it is ready and takes pods")
	return contextFlag(cmd, t)
}

func (a *app) nodeRemove(ctx context.Context, c client.Client, name string, force bool) error {
	node, err := getNode(ctx, c, name)
	if err != nil {
		return err
	}
	servers, err := serverAddresses(ctx, c)
	if err != nil {
		return deploy.Reached("read where the servers are", err)
	}
	if slices.Contains(servers, addressOf(node)) {
		return usage("%s is a server: its data is part of the cluster's; \"gantry node demote %s\" first", name, name)
	}
	if isReady(node) && !node.Spec.Unschedulable && !force {
		return usage("%s is ready and takes pods: \"gantry node drain %s\" first, or say --force", name, name)
	}
	if err := a.confirm("Remove node " + name + " from the cluster"); err != nil {
		return err
	}
	// Its certificates end first: else it would register again.
	at, err := serverTime(ctx, c)
	if err != nil {
		return deploy.Reached("ask for the time", err)
	}
	if err := noteRemoved(ctx, c, name, at); err != nil {
		return deploy.Reached("end the node's certificates", err)
	}
	if err := c.Delete(ctx, node, client.Preconditions{UID: &node.UID}); err != nil && !apierrors.IsNotFound(err) {
		return deploy.Reached("remove the node", err)
	}
	// Certificates count in seconds: one that the machine gets from now on must be of a later one.
	lifecycle.Pause(ctx, time.Second)
	return a.printf("%s is removed; \"gantry down --purge\" on the machine removes what is left there\n", name)
}

// serverTime is the cluster's time in whole seconds: this machine's clock may be wrong. It is that of an object which is not
// made.
func serverTime(ctx context.Context, c client.Client) (time.Time, error) {
	probe := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: join.SettingsNamespace, GenerateName: "gantry-time-"}}
	if err := c.Create(ctx, probe, client.DryRunAll); err != nil {
		return time.Time{}, err
	}
	return probe.CreationTimestamp.Time, nil
}

// noteRemoved writes down when a node was removed.
func noteRemoved(ctx context.Context, c client.Client, name string, at time.Time) error {
	data := map[string]string{name: at.UTC().Format(time.RFC3339)}
	removed := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: join.SettingsNamespace, Name: join.RemovedName}}
	patch, err := json.Marshal(map[string]any{"data": data})
	if err != nil {
		return fmt.Errorf("encode the removal: %w", err)
	}
	err = c.Patch(ctx, removed, client.RawPatch(types.MergePatchType, patch))
	if !apierrors.IsNotFound(err) {
		return err
	}
	removed.Data = data
	return c.Create(ctx, removed)
}
