//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const (
	deployments       = 20
	podsPerDeployment = 100
)

// deployOutcome is how quickly Deployments became bound pods.
type deployOutcome struct {
	rate   float64 // pods a second
	cpu    float64 // milliseconds of the servers' CPU time a pod
	others float64
}

// measureDeploy creates the Deployments and counts the pods that a watch shows as bound.
func measureDeploy(ctx context.Context, s *system, round int) (deployOutcome, error) {
	if err := s.addNodes(ctx, nodeCount); err != nil {
		return deployOutcome{}, err
	}
	namespace := fmt.Sprintf("bench-deploy-%d", round)
	out, err := measureBound(ctx, s, namespace, deployments*podsPerDeployment, func(ctx context.Context) error {
		return createDeployments(ctx, s, namespace, deployments, func(int) corev1.PodSpec { return podSpec() })
	})
	if err != nil {
		return deployOutcome{}, err
	}
	return out, removeDeployed(ctx, s, namespace)
}

// createDeployments makes Deployments of 100 pods each.
func createDeployments(ctx context.Context, s *system, namespace string, count int, spec func(i int) corev1.PodSpec) error {
	apps := s.loader.AppsV1().Deployments(namespace)
	err := fill(ctx, 4, count, func(ctx context.Context, i int) error {
		made := deployment(fmt.Sprintf("web-%03d", i), podsPerDeployment)
		made.Spec.Template.Spec = spec(i)
		_, err := apps.Create(ctx, made, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("create the Deployments of %s: %w", s.name, err)
	}
	return nil
}

// measureBound makes a namespace, calls create, and counts until a watch has shown want pods of the namespace as bound.
func measureBound(ctx context.Context, s *system, namespace string, want int64, create func(context.Context) error) (deployOutcome, error) {
	if err := s.namespace(ctx, namespace); err != nil {
		return deployOutcome{}, err
	}
	bound, stop, err := countBound(ctx, s, namespace)
	if err != nil {
		return deployOutcome{}, err
	}
	defer stop()
	before, err := account(s)
	if err != nil {
		return deployOutcome{}, err
	}
	begun := time.Now()
	if err := create(ctx); err != nil {
		return deployOutcome{}, err
	}
	for last := int64(-1); bound.Load() < want; { // patient while something is bound within startTimeout
		err := await(ctx, s.check, func(context.Context) error {
			if have := bound.Load(); have < want && have == last {
				return fmt.Errorf("%d of %d pods are bound", have, want)
			}
			return nil
		})
		if err != nil {
			return deployOutcome{}, fmt.Errorf("%s: %w", s.name, err)
		}
		last = bound.Load()
	}
	took := time.Since(begun)
	after, err := account(s)
	if err != nil {
		return deployOutcome{}, err
	}
	sum := after.since(before, make([]time.Duration, want), took)
	return deployOutcome{rate: sum.rate, cpu: sum.cpu / 1000, others: sum.others}, nil
}

// countBound follows the pods of a namespace that have a node. A pod enters such a watch, as ADDED,
// when it is bound.
func countBound(ctx context.Context, s *system, namespace string) (*atomic.Int64, func(), error) {
	client, err := rest.HTTPClientFor(s.user)
	if err != nil {
		return nil, nil, fmt.Errorf("make a client of %s: %w", s.name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	url := s.user.Host + "/api/v1/namespaces/" + namespace + "/pods?watch=1&fieldSelector=spec.nodeName!%3D"
	body, err := open(ctx, client, url, http.Header{"Accept": {"application/json"}})
	if err != nil {
		cancel()
		return nil, nil, err
	}
	var bound atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, _ = io.Copy(&addedCounter{bound: &bound}, body) // until the watch ends, or ctx
			_ = body.Close()
			if ctx.Err() != nil {
				return
			}
			// A server that has just begun ends watches now and then. A new one begins with all that is there.
			bound.Store(0)
			if body, err = open(ctx, client, url, http.Header{"Accept": {"application/json"}}); err != nil {
				return // ctx, or a system that has ended, which the caller sees
			}
		}
	}()
	return &bound, func() {
		cancel()
		<-done
	}, nil
}

// addedCounter counts the ADDED events in the bytes of a watch.
type addedCounter struct {
	bound *atomic.Int64
	rest  []byte // the end of the last write, which may hold the beginning of a mark
}

func (c *addedCounter) Write(p []byte) (int, error) {
	mark := []byte(`{"type":"ADDED"`)
	c.rest = append(c.rest, p...)
	c.bound.Add(int64(bytes.Count(c.rest, mark)))
	if at := bytes.LastIndex(c.rest, mark); at >= 0 {
		c.rest = c.rest[at+len(mark):]
	}
	if keep := len(mark) - 1; len(c.rest) > keep {
		c.rest = c.rest[len(c.rest)-keep:]
	}
	c.rest = bytes.Clone(c.rest)
	return len(p), nil
}

// removeDeployed deletes a round's objects and waits until the pods are gone. The simulated nodes have
// no agent that would end the pods, so they are deleted without grace.
func removeDeployed(ctx context.Context, s *system, namespace string) error {
	err := s.client.AppsV1().Deployments(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("delete the Deployments of %s: %w", s.name, err)
	}
	none := int64(0)
	return await(ctx, s.check, func(ctx context.Context) error {
		sets, err := s.client.AppsV1().ReplicaSets(namespace).List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil {
			return err
		}
		pods := s.client.CoreV1().Pods(namespace)
		if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &none}, metav1.ListOptions{}); err != nil {
			return err
		}
		left, err := pods.List(ctx, metav1.ListOptions{Limit: 1})
		if err != nil {
			return err
		}
		if len(sets.Items)+len(left.Items) > 0 {
			return errors.New("there are still pods")
		}
		return nil
	})
}
