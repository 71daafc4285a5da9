//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

const (
	nodeCount    = 100
	leaseEvery   = 10 * time.Second // as a kubelet renews
	leaseSeldom  = 20 * time.Second // with so many nodes that the renewals would be a load of their own
	manyNodes    = 2000
	leaseSeconds = 40
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
	now := metav1.Now()
	err := fill(ctx, 8, count, func(ctx context.Context, i int) error {
		nodes := s.client.CoreV1().Nodes()
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
		return createLease(ctx, s.client, nodeName(i))
	})
	if err != nil {
		return fmt.Errorf("make the nodes of %s: %w", s.name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	s.nodes = &nodes{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.nodes.done)
		s.nodes.failed = renew(ctx, s.client, count)
	}()
	return await(ctx, s.check, func(ctx context.Context) error {
		list, err := s.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: simulated})
		if err != nil {
			return err
		}
		for _, node := range list.Items {
			if len(node.Spec.Taints) > 0 {
				return fmt.Errorf("node %s has the taint %s", node.Name, node.Spec.Taints[0].Key)
			}
		}
		return nil
	})
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

// renew renews all leases at their interval, evenly spread over it, until ctx ends.
func renew(ctx context.Context, client *kubernetes.Clientset, count int) error {
	leases := client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	every := leaseEvery
	if count >= manyNodes {
		every = leaseSeldom
	}
	ticker := time.NewTicker(every / time.Duration(count))
	defer ticker.Stop()
	var once sync.Once
	var failed error
	for i := 0; ; i = (i + 1) % count {
		select {
		case <-ctx.Done():
			return failed
		case <-ticker.C:
		}
		lease, err := leases.Get(ctx, nodeName(i), metav1.GetOptions{})
		if err == nil {
			now := metav1.NowMicro()
			lease.Spec.RenewTime = &now
			_, err = leases.Update(ctx, lease, metav1.UpdateOptions{})
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			once.Do(func() { failed = fmt.Errorf("renew the lease of %s: %w", nodeName(i), err) })
		}
	}
}
