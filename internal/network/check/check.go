package check

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/network/probe"
)

const (
	servicePort = 80
	// targetsAtOnce keeps a plan below the 128 KiB that an argument can have.
	targetsAtOnce = 100
	pollEvery     = 100 * time.Millisecond
	cleanupWait   = 20 * time.Second
)

// roleLabel tells the pods that answer from those that ask; placeLabel one that answers from
// the others.
const (
	roleLabel  = "gantry.dev/network-check"
	placeLabel = "gantry.dev/network-check-place"
)

// Options says what a check works with. Client, Image and Logs are required.
type Options struct {
	Client client.Client
	// Image puts the probe's image where nodes find it, for pods of the project, and returns its name.
	Image func(ctx context.Context, project string) (string, error)
	Logs  func(ctx context.Context, namespace, pod string) ([]byte, error)
	Say   func(text string) // gets the steps; may be nil
	Wait  time.Duration     // for pods to start and to end; default 1m
}

// run is one check.
type run struct {
	Options
	namespace, image string
	places           []place
	report           Report
}

// Run checks all nodes that are ready. The report has what is wrong with the network; an error
// says that it could not be checked.
func Run(ctx context.Context, opts Options) (Report, error) {
	if opts.Client == nil || opts.Image == nil || opts.Logs == nil {
		return Report{}, errors.New("check: Client, Image and Logs are required")
	}
	opts.Wait = cmp.Or(opts.Wait, time.Minute)
	if opts.Say == nil {
		opts.Say = func(string) {}
	}
	r := &run{Options: opts, namespace: "gantry-network-check-" + strings.ToLower(rand.Text()[:6])}
	nodes, err := r.nodes(ctx)
	if err != nil {
		return Report{}, err
	}
	if len(nodes) == 0 {
		return r.report, nil
	}
	defer r.remove(context.WithoutCancel(ctx))
	if err := r.prepare(ctx, nodes); err != nil {
		return Report{}, err
	}
	r.Say(fmt.Sprintf("asking from %d nodes", len(r.places)))
	plain, err := r.ask(ctx, "plain", questions)
	if err != nil {
		return Report{}, err
	}
	if err := r.closePort(ctx); err != nil {
		return Report{}, err
	}
	policy, err := r.ask(ctx, "policy", policyQuestions)
	if err != nil {
		return Report{}, err
	}
	for i, from := range r.places {
		for j, to := range r.places {
			pair, problems := judge(from, to, plain[i][j], policy[i][j])
			r.report.Pairs = append(r.report.Pairs, pair)
			r.report.Problems = append(r.report.Problems, problems...)
		}
	}
	return r.report, nil
}

func (r *run) problem(cure, format string, args ...any) {
	r.report.Problems = append(r.report.Problems, Problem{fmt.Sprintf(format, args...), cure})
}

// nodes lists those that can be checked; the others are problems.
func (r *run) nodes(ctx context.Context) ([]corev1.Node, error) {
	var list corev1.NodeList
	if err := r.Client.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	var out []corev1.Node
	for _, n := range list.Items {
		ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		switch arch := n.Status.NodeInfo.Architecture; {
		case !ready:
			r.problem("kubectl describe node "+n.Name, "node %s is not ready and was not checked", n.Name)
		case arch != "" && arch != runtime.GOARCH:
			r.problem("run the check on a machine of that kind too", "node %s is of %s and was not checked", n.Name, arch)
		default:
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b corev1.Node) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// prepare starts what answers, and waits for it. Nodes where it does not start are problems.
func (r *run) prepare(ctx context.Context, nodes []corev1.Node) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: r.namespace}}
	if err := r.Client.Create(ctx, namespace); err != nil {
		return fmt.Errorf("making a namespace for the check: %w", err)
	}
	var err error
	if r.image, err = r.Image(ctx, r.namespace); err != nil {
		return fmt.Errorf("giving the nodes the probe's image: %w", err)
	}
	r.Say(fmt.Sprintf("starting pods on %d nodes", len(nodes)))
	for i, n := range nodes {
		pod := r.pod(fmt.Sprintf("answer-%d", i), n.Name, "serve", n.Name)
		pod.Labels = map[string]string{roleLabel: "answer", placeLabel: fmt.Sprint(i)}
		if err := r.create(ctx, pod); err != nil {
			return err
		}
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: r.namespace}, Spec: corev1.ServiceSpec{
			Selector: map[string]string{placeLabel: fmt.Sprint(i)},
			Ports: []corev1.ServicePort{
				{Name: "tcp", Port: servicePort, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(probe.Port)},
				{Name: "udp", Port: servicePort, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(probe.Port)},
			}}}
		if err := r.create(ctx, svc); err != nil {
			return err
		}
		p := place{Node: n.Name, Link: n.Annotations["gantry.dev/link"], Service: svc.Spec.ClusterIP, DNSName: svc.Name + "." + r.namespace + ".svc"}
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeInternalIP {
				p.Addr = a.Address
			}
		}
		r.places = append(r.places, p)
	}
	return r.awaitAnswerers(ctx)
}

// awaitAnswerers learns the addresses of the pods that answer.
func (r *run) awaitAnswerers(ctx context.Context) error {
	started := func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning && p.Status.PodIP != "" }
	var there []place
	for i, p := range r.places {
		pod, err := r.await(ctx, fmt.Sprintf("answer-%d", i), started)
		if err != nil {
			return err
		}
		if !started(pod) {
			r.problem("kubectl describe node "+p.Node, "no pod starts on node %s: %s", p.Node, whyNot(pod))
			continue
		}
		p.PodIP = pod.Status.PodIP
		there = append(there, p)
	}
	r.places = there
	return nil
}

// pod is one of the check's; it goes to the node whatever its taints are, and is not ended
// where the node runs short: that is when somebody wants to know about the network.
func (r *run) pod(name, node string, args ...string) *corev1.Pod {
	no, yes := false, true
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: r.namespace}, Spec: corev1.PodSpec{
		NodeName: node, PriorityClassName: "system-node-critical", RestartPolicy: corev1.RestartPolicyNever, AutomountServiceAccountToken: &no,
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		Containers: []corev1.Container{{Name: "probe", Image: r.image, Args: args, SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: &no, RunAsNonRoot: &yes, ReadOnlyRootFilesystem: &yes,
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}}},
	}}
}

// create makes an object; a new namespace has no service account for a moment.
func (r *run) create(ctx context.Context, obj client.Object) error {
	deadline := time.Now().Add(r.Wait)
	for {
		err := r.Client.Create(ctx, obj)
		if err == nil {
			return nil
		}
		if !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err) || time.Now().After(deadline) || !lifecycle.Pause(ctx, pollEvery) {
			return fmt.Errorf("making %s: %w", obj.GetName(), err)
		}
	}
}

// await reads a pod until done is true of it, it has ended, or the wait is over.
func (r *run) await(ctx context.Context, name string, done func(*corev1.Pod) bool) (*corev1.Pod, error) {
	deadline := time.Now().Add(r.Wait)
	for {
		pod := &corev1.Pod{}
		if err := r.Client.Get(ctx, client.ObjectKey{Namespace: r.namespace, Name: name}, pod); err != nil {
			return nil, fmt.Errorf("reading pod %s: %w", name, err)
		}
		if done(pod) || pod.Status.Phase == corev1.PodFailed || time.Now().After(deadline) {
			return pod, nil
		}
		if !lifecycle.Pause(ctx, pollEvery) {
			return nil, ctx.Err()
		}
	}
}

// whyNot is why a pod is not what it should be, in its own words.
func whyNot(pod *corev1.Pod) string {
	if pod.Status.Reason != "" {
		return strings.TrimSpace(pod.Status.Reason + ": " + pod.Status.Message)
	}
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil {
			return strings.TrimSpace(w.Reason + ": " + w.Message)
		}
		if t := c.State.Terminated; t != nil && t.ExitCode != 0 {
			return fmt.Sprintf("it ended with code %d: %s", t.ExitCode, t.Message)
		}
	}
	return cmp.Or(pod.Status.Message, "it is "+string(pod.Status.Phase))
}

// asker is a pod that asks about some of the places.
type asker struct {
	name    string
	from    int
	targets []int
}

// ask lets a pod on each node ask about all places, and returns the answers by node and place.
func (r *run) ask(ctx context.Context, round string, about func(place) []probe.Question) ([][][]probe.Answer, error) {
	out := make([][][]probe.Answer, len(r.places))
	all := make([]int, len(r.places))
	for i := range r.places {
		out[i], all[i] = make([][]probe.Answer, len(r.places)), i
	}
	var askers []asker
	for i, from := range r.places {
		part := 0
		for targets := range slices.Chunk(all, targetsAtOnce) {
			var plan []probe.Question
			for _, j := range targets {
				plan = append(plan, about(r.places[j])...)
			}
			text, err := json.Marshal(plan)
			if err != nil {
				return nil, fmt.Errorf("making a plan: %w", err)
			}
			one := asker{fmt.Sprintf("%s-%d-%d", round, i, part), i, targets}
			pod := r.pod(one.name, from.Node, "ask", string(text))
			pod.Labels = map[string]string{roleLabel: "ask"}
			if err := r.create(ctx, pod); err != nil {
				return nil, err
			}
			askers = append(askers, one)
			part++
		}
	}
	for _, one := range askers {
		if err := r.collect(ctx, one, about, out[one.from]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// collect waits for an asker and puts its answers in their places.
func (r *run) collect(ctx context.Context, one asker, about func(place) []probe.Question, into [][]probe.Answer) error {
	node := r.places[one.from].Node
	pod, err := r.await(ctx, one.name, func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	if err != nil {
		return err
	}
	if pod.Status.Phase != corev1.PodSucceeded {
		r.problem("kubectl describe node "+node, "the pod that asks on node %s did not end: %s", node, whyNot(pod))
		return nil
	}
	text, err := r.Logs(ctx, r.namespace, one.name)
	if err != nil {
		r.problem("open the agent's port (10250) of the node's address to the servers", "the log of a pod on node %s cannot be read: %v", node, err)
		return nil
	}
	var answers []probe.Answer
	if err := json.Unmarshal(text, &answers); err != nil {
		return fmt.Errorf("reading the answers of node %s: %w", node, err)
	}
	for _, j := range one.targets {
		n := len(about(r.places[j]))
		if len(answers) < n {
			return fmt.Errorf("reading the answers of node %s: %d too few", node, n-len(answers))
		}
		into[j], answers = answers[:n], answers[n:]
	}
	return nil
}

// closePort makes a policy that leaves the pods that answer one port only.
func (r *run) closePort(ctx context.Context) error {
	tcp, udp, port := corev1.ProtocolTCP, corev1.ProtocolUDP, intstr.FromInt32(probe.Port)
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "one-port", Namespace: r.namespace}, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{roleLabel: "answer"}},
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &port}, {Protocol: &udp, Port: &port}}}},
	}}
	if err := r.Client.Create(ctx, policy); err != nil {
		return fmt.Errorf("making a policy: %w", err)
	}
	return nil
}

// remove deletes all that was made.
func (r *run) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cleanupWait)
	defer cancel()
	err := r.Client.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: r.namespace}})
	if err != nil && !apierrors.IsNotFound(err) {
		r.Say(fmt.Sprintf("namespace %s is left; delete it with: gantry kubectl delete namespace %s (%v)", r.namespace, r.namespace, err))
	}
}
