//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"text/tabwriter"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// The steps from a request for a sleeping application to its answer, in their order. Each is seen by a watch, but for
// those that the client, the feeder and the program see.
const (
	stepSent       = iota // the request is sent
	stepTold              // the node's feeder heard of it, by its own clock
	stepWake              // the Service says that a request waits
	stepScaled            // the Deployment wants a pod
	stepPod               // the pod is there
	stepBound             // it has a node
	stepBegan             // its program began, by its own clock
	stepRunning           // the pod's status says so
	stepReady             // its status says that it is ready
	stepEndpoint          // the Service's slice has it
	stepAnswered          // the answer has come
	stepsOfWakeUps        // how many there are
)

// stepNames say what each step waited for.
func stepNames() []string {
	return []string{"", "the gateway tells that a request waits", "the Service says so", "the application's controller asks for a pod", "the Deployment's pod is made",
		"the scheduler gives it a node", "the node starts its program", "the node says that it runs",
		"the program listens, and the node says that it is ready", "the Service has its endpoint", "the gateway has the answer"}
}

// wakeTrace is when each step of one wake-up was seen first. A later step may be seen before an earlier one: they come
// by watches of their own.
type wakeTrace [stepsOfWakeUps]time.Time

// wakeWatch notes the steps of wake-ups.
type wakeWatch struct {
	mu    sync.Mutex
	trace wakeTrace
}

// note notes a step if it is the first time since begin.
func (w *wakeWatch) note(step int, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.trace[step].IsZero() && !w.trace[stepSent].IsZero() {
		w.trace[step] = at
	}
}

// begin starts a new trace.
func (w *wakeWatch) begin(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.trace = wakeTrace{stepSent: at}
}

// end returns the trace.
func (w *wakeWatch) end(at time.Time) wakeTrace {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.trace
	out[stepAnswered] = at
	w.trace = wakeTrace{}
	return out
}

// see reads the steps from an event.
func (w *wakeWatch) see(event watch.Event, now time.Time) {
	switch obj := event.Object.(type) {
	case *corev1.Service:
		if at, err := time.Parse(time.RFC3339Nano, obj.Annotations["gateway.gantry.dev/wake"]); err == nil && now.Sub(at) < time.Second {
			w.note(stepTold, at)
			w.note(stepWake, now)
		}
	case *appsv1.Deployment:
		if obj.Spec.Replicas != nil && *obj.Spec.Replicas > 0 {
			w.note(stepScaled, now)
		}
	case *corev1.Pod:
		if obj.DeletionTimestamp != nil || event.Type == watch.Deleted {
			return
		}
		w.note(stepPod, now)
		if obj.Spec.NodeName != "" {
			w.note(stepBound, now)
		}
		if obj.Status.Phase == corev1.PodRunning {
			w.note(stepRunning, now)
		}
		if slices.ContainsFunc(obj.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}) {
			w.note(stepReady, now)
		}
	case *discoveryv1.EndpointSlice:
		if slices.ContainsFunc(obj.Endpoints, func(e discoveryv1.Endpoint) bool { return e.Conditions.Ready != nil && *e.Conditions.Ready }) {
			w.note(stepEndpoint, now)
		}
	}
}

// follow watches what a wake-up changes until stop is called.
func (w *wakeWatch) follow(ctx context.Context, dir string) (stop func(), err error) {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "data", "admin.kubeconfig"))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's kubeconfig: %w", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	var watches []watch.Interface
	var running sync.WaitGroup
	stop = func() {
		for _, one := range watches {
			one.Stop()
		}
		running.Wait()
	}
	now := metav1.ListOptions{}
	for _, open := range []func() (watch.Interface, error){
		func() (watch.Interface, error) {
			return client.CoreV1().Services(metav1.NamespaceDefault).Watch(ctx, now)
		},
		func() (watch.Interface, error) {
			return client.AppsV1().Deployments(metav1.NamespaceDefault).Watch(ctx, now)
		},
		func() (watch.Interface, error) { return client.CoreV1().Pods(metav1.NamespaceDefault).Watch(ctx, now) },
		func() (watch.Interface, error) {
			return client.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Watch(ctx, now)
		},
	} {
		one, err := open()
		if err != nil {
			stop()
			return nil, fmt.Errorf("watch the wake-up: %w", err)
		}
		watches = append(watches, one)
		running.Go(func() {
			for event := range one.ResultChan() {
				w.see(event, time.Now())
			}
		})
	}
	return stop, nil
}

// began is when the program began, by the header that it answers with.
func began(text string) (time.Time, error) {
	nanos, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read when the program began: %w", err)
	}
	return time.Unix(0, nanos), nil
}

// writeSplit prints what each step took, as the median over all wake-ups.
func writeSplit(out io.Writer, traces []wakeTrace) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "\nfrom zero to the first answer\tsince the request (median)\tsince the step before")
	for step, name := range stepNames() {
		if name == "" {
			continue
		}
		var total, last []time.Duration
		for i := range traces {
			t := &traces[i]
			if t[step].IsZero() {
				continue
			}
			total = append(total, t[step].Sub(t[stepSent]))
			before := t[stepSent]
			for _, at := range t[:step] {
				if at.After(before) {
					before = at
				}
			}
			last = append(last, max(t[step].Sub(before), 0))
		}
		if len(total) == 0 {
			_, _ = fmt.Fprintf(w, "%s\tnot seen\t\n", name)
			continue
		}
		slices.Sort(total)
		slices.Sort(last)
		_, _ = fmt.Fprintf(w, "%s\t%.0f ms\t%.0f ms\n", name, total[len(total)/2].Seconds()*1000, last[len(last)/2].Seconds()*1000)
	}
	if err := w.Flush(); err != nil {
		return errors.Join(errors.New("write the split"), err)
	}
	return nil
}
