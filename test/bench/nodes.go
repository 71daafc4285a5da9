//go:build linux

package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"

	"gantry.dev/gantry/internal/lifecycle"
)

const (
	nodeCount    = 100
	leaseEvery   = 10 * time.Second // as a kubelet renews
	leaseSeldom  = 20 * time.Second // with so many nodes that the renewals would be a load of their own
	manyNodes    = 2000
	leaseSeconds = 40
	leaseHands   = 32
	zones        = 10
)

// nodes keeps simulated nodes Ready by renewing their leases.
type nodes struct {
	cancel context.CancelFunc
	done   chan struct{}
	failed error // read after done
}

func nodeName(i int) string { return fmt.Sprintf("sim-%03d", i) }

// addNodes makes simulated nodes, waits until pods may be placed on them, and keeps them alive
// until s.stopNodes. A second call finds them.
func (s *system) addNodes(ctx context.Context, count int) error {
	if s.nodes != nil {
		return nil
	}
	renewing, cancel := context.WithCancel(ctx)
	s.nodes = &nodes{cancel: cancel, done: make(chan struct{})}
	var made atomic.Int64 // the lease of the first is renewed while the last is made
	go func() {
		defer close(s.nodes.done)
		s.nodes.failed = renew(renewing, s.client, &made, leaseInterval(count))
	}()
	now := metav1.Now()
	err := fill(ctx, 8, count, func(ctx context.Context, i int) error {
		if err := createNode(ctx, s.client, i, now); err != nil {
			return err
		}
		made.Add(1)
		return nil
	})
	if err != nil {
		return fmt.Errorf("make the nodes of %s: %w", s.name, err)
	}
	// Controllers take thousands of new nodes one by one, beside what the leases cost.
	return awaitFor(ctx, startTimeout+time.Duration(count)*60*time.Millisecond, s.check, func(ctx context.Context) error {
		tainted, err := s.tainted(ctx)
		if err == nil && len(tainted) > 0 {
			err = fmt.Errorf("%d nodes have taints, such as %s", len(tainted), tainted[0])
			lifecycle.Pause(ctx, time.Duration(count)*time.Millisecond) // a list of thousands is a load of its own
		}
		return err
	})
}

// createNode makes a simulated node that is ready, and its lease.
func createNode(ctx context.Context, client *kubernetes.Clientset, i int, now metav1.Time) error {
	nodes := client.CoreV1().Nodes()
	if _, err := nodes.Create(ctx, simulatedNode(i), metav1.CreateOptions{}); err != nil {
		return err
	}
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { // controllers write to new nodes too
		node, err := nodes.Get(ctx, nodeName(i), metav1.GetOptions{})
		if err != nil {
			return err
		}
		node.Status.Conditions = nodeConditions(now)
		_, err = nodes.UpdateStatus(ctx, node, metav1.UpdateOptions{})
		return err
	})
	if err != nil {
		return err
	}
	return createLease(ctx, client, nodeName(i))
}

// tainted are the simulated nodes on which no pod may be placed.
func (s *system) tainted(ctx context.Context) ([]string, error) {
	list, err := s.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: simulated})
	if err != nil {
		return nil, err
	}
	var out []string
	for i := range list.Items {
		if node := &list.Items[i]; len(node.Spec.Taints) > 0 {
			out = append(out, node.Name+" ("+node.Spec.Taints[0].Key+")")
		}
	}
	return out, nil
}

// stopNodes ends the renewal and reports whether it has worked so far.
func (s *system) stopNodes() error {
	if s.nodes == nil {
		return nil
	}
	s.nodes.cancel()
	<-s.nodes.done
	return s.nodes.failed
}

func createLease(ctx context.Context, client *kubernetes.Clientset, name string) error {
	now, seconds := metav1.NowMicro(), int32(leaseSeconds)
	_, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Create(ctx, &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &now},
	}, metav1.CreateOptions{})
	return err
}

// leaseInterval is how often each of count leases is renewed.
func leaseInterval(count int) time.Duration {
	if count >= manyNodes {
		return leaseSeldom
	}
	return leaseEvery
}

// renew renews the leases that were made, each at its interval and all evenly spread over it, until ctx ends. Many are under
// way at once, so that a system that answers slowly does not lose its nodes.
func renew(ctx context.Context, client *kubernetes.Clientset, made *atomic.Int64, every time.Duration) error {
	next := make(chan string)
	failed := make(chan error, 1)
	var hands sync.WaitGroup
	for range leaseHands {
		hands.Go(func() {
			for name := range next {
				if err := renewLease(ctx, client, name); err != nil && ctx.Err() == nil && !apierrors.IsNotFound(err) { // it may be just being made
					select {
					case failed <- fmt.Errorf("renew the lease of %s: %w", name, err):
					default:
					}
				}
			}
		})
	}
	const seldom = 200 * time.Millisecond // before the first is made
	for i := int64(0); ctx.Err() == nil; i++ {
		count := made.Load()
		if !lifecycle.Pause(ctx, min(seldom, every/time.Duration(count+1))) || count == 0 {
			continue
		}
		select {
		case <-ctx.Done():
		case next <- nodeName(int(i % count)):
		}
	}
	close(next)
	hands.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

func renewLease(ctx context.Context, client *kubernetes.Clientset, name string) error {
	body := fmt.Appendf(nil, `{"spec":{"renewTime":%q}}`, time.Now().UTC().Format(metav1.RFC3339Micro))
	_, err := client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Patch(ctx, name, types.MergePatchType, body, metav1.PatchOptions{})
	return err
}
