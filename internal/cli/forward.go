package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/portforward"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
)

// conditionRouted is False on an App that requests cannot reach by name.
const conditionRouted = "Routed"

// unrouted says why an application has no address; "" is: it has, or does not need one.
func unrouted(one *v1alpha1.App) string {
	if c := meta.FindStatusCondition(one.Status.Conditions, conditionRouted); c != nil && c.Status == metav1.ConditionFalse && len(one.Status.URLs) == 0 {
		return c.Message
	}
	return ""
}

// hintUnrouted tells how to reach an application that was deployed and has no address.
func (a *app) hintUnrouted(ctx context.Context, t *appTarget, result deploy.Result) {
	if len(result.URLs) > 0 || result.Phase != v1alpha1.ReleaseLive || a.json {
		return
	}
	key := t.key
	key.Namespace, key.Name = result.Project, result.App
	one, err := t.cluster.App(ctx, key)
	if err != nil || unrouted(one) == "" {
		return // the deploy is done all the same
	}
	_, _ = fmt.Fprintf(a.env.Stderr, "→ in the cluster it is http://%s.%s; from here: gantry open --forward\n", v1alpha1.ObjectName(one.Name, v1alpha1.WebProcess), one.Namespace)
}

// forwardApp leads a port of this machine to a container of the web process until it is interrupted.
func (a *app) forwardApp(ctx context.Context, t *appTarget, one *v1alpha1.App, port int) error {
	pods, err := t.pods(ctx, v1alpha1.WebProcess)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(pods, func(pod corev1.Pod) bool { return stateOf(&pod) == "running" })
	if i < 0 {
		return fmt.Errorf("no container of %s (process %s) runs", one.Name, v1alpha1.WebProcess)
	}
	target := one.Status.Processes[v1alpha1.WebProcess].Port
	if target == 0 {
		return fmt.Errorf("%s listens nowhere yet: %s", one.Name, one.Status.Message)
	}
	address, err := t.cluster.StreamURL(&pods[i], "portforward", corev1.PodExecOptions{})
	if err != nil {
		return err
	}
	address.RawQuery = ""
	dialer, err := portforward.NewSPDYOverWebsocketDialer(address, t.cluster.Config)
	if err != nil {
		return fmt.Errorf("prepare to reach the container: %w", err)
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	ready := make(chan struct{})
	forwarder, err := portforward.New(dialer, []string{strconv.Itoa(port) + ":" + strconv.Itoa(int(target))}, ctx.Done(), ready, io.Discard, a.env.Stderr)
	if err != nil {
		return fmt.Errorf("prepare to forward: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case err := <-ended:
		return deploy.Reached("forward to "+pods[i].Name, err)
	case <-ready:
	}
	ports, err := forwarder.GetPorts()
	if err == nil && len(ports) == 1 {
		err = a.printf("http://localhost:%d\n", ports[0].Local)
	}
	if err != nil {
		stop()
		<-ended
		return err
	}
	err = <-ended
	if ctx.Err() != nil {
		return nil // asked to end
	}
	return deploy.Reached("forward to "+pods[i].Name, err)
}
