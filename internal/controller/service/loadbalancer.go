package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// BalancerOptions tunes a Balancer. The zero value suits production.
type BalancerOptions struct {
	Reserved []int32      // ports that nodes need for themselves, beside 22 and 10250: no Service gets them
	Log      *slog.Logger // default: discard
}

// Balancer gives Services of type LoadBalancer the nodes' addresses, unless they name a class: then
// somebody else serves them. Each node's proxy answers there by itself.
type Balancer struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	reserved  map[int32]bool
	loop      *controller.Loop
	local     atomic.Bool // endpoints matter: some Service's external traffic stays on a node
}

// NewBalancer returns a Balancer that has started nothing; call Run.
func NewBalancer(c client.Client, informers controller.Informers, recorder controller.Recorder, opts BalancerOptions) (*Balancer, error) {
	if c == nil || informers == nil || recorder == nil {
		return nil, errors.New("service: a Balancer needs a client, informers and a recorder")
	}
	b := &Balancer{client: c, informers: informers, recorder: recorder, reserved: map[int32]bool{22: true, 10250: true}}
	for _, port := range opts.Reserved {
		b.reserved[port] = true
	}
	// One key: Services share the nodes' ports, so they are looked at together.
	loop, err := controller.NewLoop(controller.LoopOptions{Name: "load balancer", Workers: 1, Log: opts.Log, Reconcile: b.reconcile})
	if err != nil {
		return nil, err
	}
	b.loop = loop
	loop.Watch(&corev1.Service{}, func(old, current client.Object) {
		if isBalanced(old) || isBalanced(current) {
			b.look()
		}
	})
	loop.Watch(&corev1.Node{}, func(old, current client.Object) {
		before, _ := old.(*corev1.Node)
		after, _ := current.(*corev1.Node)
		if before == nil || after == nil || !balancingNode(before).equal(balancingNode(after)) {
			b.look()
		}
	})
	loop.Watch(&discoveryv1.EndpointSlice{}, func(_, _ client.Object) {
		if b.local.Load() {
			b.look()
		}
	})
	return b, nil
}

// Run reconciles until ctx ends.
func (b *Balancer) Run(ctx context.Context) error { return b.loop.Run(ctx, b.informers) }

// look asks for one look for all events of a moment.
func (b *Balancer) look() { b.loop.AddAfter(controller.Key{Name: "services"}, 20*time.Millisecond) }

// isBalanced reports whether obj is a Service that has, or wants, the nodes' addresses.
func isBalanced(obj client.Object) bool {
	svc, ok := obj.(*corev1.Service)
	return ok && (wantsBalancer(svc) || len(svc.Status.LoadBalancer.Ingress) > 0)
}

func (b *Balancer) reconcile(ctx context.Context, _ controller.Key) (time.Duration, error) {
	var services corev1.ServiceList
	if err := b.client.List(ctx, &services); err != nil {
		return 0, fmt.Errorf("listing services: %w", err)
	}
	var wanted []*corev1.Service
	local := false
	for i := range services.Items {
		if svc := &services.Items[i]; isBalanced(svc) {
			wanted = append(wanted, svc)
			local = local || svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
		}
	}
	b.local.Store(local) // before endpoints are read: a later change of them comes as an event
	if len(wanted) == 0 {
		return 0, nil
	}
	var nodes corev1.NodeList
	if err := b.client.List(ctx, &nodes); err != nil {
		return 0, fmt.Errorf("listing nodes: %w", err)
	}
	in := balance{nodes: balancingNodes(nodes.Items), reserved: b.reserved, serving: map[*corev1.Service]map[string]bool{}}
	for _, svc := range wanted {
		if svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
			continue
		}
		serving, err := b.serving(ctx, svc)
		if err != nil {
			return 0, err
		}
		in.serving[svc] = serving
	}
	var errs []error
	for _, decided := range in.plan(wanted) {
		errs = append(errs, b.write(ctx, decided))
	}
	return 0, errors.Join(errs...)
}

// serving names the nodes that have a ready endpoint of a Service.
func (b *Balancer) serving(ctx context.Context, svc *corev1.Service) (map[string]bool, error) {
	var list discoveryv1.EndpointSliceList
	err := b.client.List(ctx, &list, client.InNamespace(svc.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: svc.Name})
	if err != nil {
		return nil, fmt.Errorf("listing endpoint slices: %w", err)
	}
	nodes := map[string]bool{}
	for i := range list.Items {
		for j := range list.Items[i].Endpoints {
			e := &list.Items[i].Endpoints[j]
			if e.NodeName != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				nodes[*e.NodeName] = true
			}
		}
	}
	return nodes, nil
}

// write brings the status of one Service to what was decided, and tells of it.
func (b *Balancer) write(ctx context.Context, d decision) error {
	svc := d.service
	if d.problem != "" {
		b.recorder.Event(svc, corev1.EventTypeWarning, "SyncLoadBalancerFailed", "Error syncing load balancer: "+d.problem)
	}
	if equality.Semantic.DeepEqual(d.ingress, svc.Status.LoadBalancer.Ingress) {
		return nil
	}
	had, wants := len(svc.Status.LoadBalancer.Ingress) > 0, wantsBalancer(svc)
	switch {
	case !wants:
		b.recorder.Event(svc, corev1.EventTypeNormal, "DeletingLoadBalancer", "Deleting load balancer")
	case !had:
		b.recorder.Event(svc, corev1.EventTypeNormal, "EnsuringLoadBalancer", "Ensuring load balancer")
	}
	next := svc.DeepCopy()
	next.Status.LoadBalancer.Ingress = d.ingress
	if err := b.client.Status().Update(ctx, next); err != nil {
		return client.IgnoreNotFound(err)
	}
	switch {
	case !wants:
		b.recorder.Event(svc, corev1.EventTypeNormal, "DeletedLoadBalancer", "Deleted load balancer")
	case len(d.ingress) == 0 && d.problem == "":
		b.recorder.Event(svc, corev1.EventTypeWarning, "UnAvailableLoadBalancer", "There are no available nodes for LoadBalancer")
	case len(d.ingress) > 0 && had:
		b.recorder.Event(svc, corev1.EventTypeNormal, "UpdatedLoadBalancer", "Updated load balancer with new hosts")
	case len(d.ingress) > 0:
		b.recorder.Event(svc, corev1.EventTypeNormal, "EnsuredLoadBalancer", "Ensured load balancer")
	}
	return nil
}
