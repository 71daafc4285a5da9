package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry.dev/gantry/internal/agent/podconfig"
	"gantry.dev/gantry/internal/agent/probe"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/lifecycle"
)

// hookTimeout bounds an HTTP or TCP hook.
const hookTimeout = 30 * time.Second

// runHook runs a postStart or preStop handler; the message of a failure is the kubelet's.
func (w *worker) runHook(ctx context.Context, pod *corev1.Pod, c *corev1.Container, id string, hook *corev1.LifecycleHandler) (string, error) {
	where := fmt.Sprintf("for Container %q in Pod %q failed - error:", c.Name, podconfig.PodRef(pod))
	switch {
	case hook.Exec != nil:
		output := &strings.Builder{}
		code, err := w.agent.runtime.Exec(ctx, id, hook.Exec.Command, container.Streams{Stdout: output, Stderr: output})
		if err == nil && code != 0 {
			err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(hook.Exec.Command, " "), code, output)
		}
		if err != nil {
			return fmt.Sprintf("Exec lifecycle hook (%v) %s %v, message: %q", hook.Exec.Command, where, err, output), err
		}
	case hook.HTTPGet != nil:
		if err := w.httpHook(ctx, pod, c, hook.HTTPGet); err != nil {
			return fmt.Sprintf("HTTP lifecycle hook (%s) %s %v", hook.HTTPGet.Path, where, err), err
		}
	case hook.Sleep != nil:
		if !lifecycle.Pause(ctx, time.Duration(hook.Sleep.Seconds)*time.Second) {
			err := fmt.Errorf("container terminated before sleep hook finished")
			return fmt.Sprintf("Sleep lifecycle hook (%d) %s %v", hook.Sleep.Seconds, where, err), err
		}
	case hook.TCPSocket != nil:
		if err := w.tcpHook(ctx, pod, c, hook.TCPSocket); err != nil {
			return fmt.Sprintf("TCP lifecycle hook %s %v", where, err), err
		}
	default:
		err := fmt.Errorf("invalid handler: %v", hook)
		return fmt.Sprintf("Cannot run handler: %v", err), err
	}
	return "", nil
}

func (w *worker) httpHook(ctx context.Context, pod *corev1.Pod, c *corev1.Container, action *corev1.HTTPGetAction) error {
	request, err := probe.Request(ctx, action, c, w.address(pod), "lifecycle")
	if err != nil {
		return err
	}
	client := probe.Client(w.agent.opts.Dial, hookTimeout)
	response, err := client.Do(request)
	if err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		// Hooks with scheme HTTPS were once sent as HTTP, so the API promises a second try.
		request.URL.Scheme = "http"
		request.Header.Del("Authorization")
		if response, err = client.Do(request); err == nil {
			w.agent.events.pod(pod, corev1.EventTypeWarning, "LifecycleHTTPFallback",
				fmt.Sprintf("request to HTTPS lifecycle hook %s got HTTP response, retry with HTTP succeeded", request.URL.Host))
		}
	}
	return discard(response, err)
}

func discard(response *http.Response, err error) error {
	if err != nil {
		return err
	}
	_, _ = io.CopyN(io.Discard, response.Body, 10*1024)
	return response.Body.Close()
}

func (w *worker) tcpHook(ctx context.Context, pod *corev1.Pod, c *corev1.Container, action *corev1.TCPSocketAction) error {
	port, err := probe.Port(action.Port, c)
	if err != nil {
		return err
	}
	host := action.Host
	if host == "" {
		host = w.address(pod)
	}
	ctx, cancel := context.WithTimeout(ctx, hookTimeout)
	defer cancel()
	conn, err := w.agent.opts.Dial(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return conn.Close()
}

// address is where the pod is reached.
func (w *worker) address(pod *corev1.Pod) string {
	if ips := w.podIPs(pod); len(ips) > 0 {
		return ips[0]
	}
	return ""
}
