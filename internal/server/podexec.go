package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"gantry.dev/gantry/internal/platform/deploy"
)

// runInPod runs a program in the first container of a pod to its end, through the API as the holder of a kubeconfig does.
func runInPod(ctx context.Context, kubeconfig string, pod *corev1.Pod, command []string, in io.Reader, out io.Writer) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("reading %s: %w", kubeconfig, err)
	}
	cluster, err := deploy.Connect(config)
	if err != nil {
		return err
	}
	target, err := cluster.StreamURL(pod, "exec", corev1.PodExecOptions{
		Container: pod.Spec.Containers[0].Name, Command: command, Stdin: in != nil, Stdout: true, Stderr: true,
	})
	if err != nil {
		return fmt.Errorf("reaching %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	socket, err := remotecommand.NewWebSocketExecutor(config, "GET", target.String())
	if err != nil {
		return fmt.Errorf("reaching %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	complaints := &firstBytes{max: 2 << 10}
	err = socket.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: complaints})
	if code, ended := errors.AsType[utilexec.CodeExitError](err); ended {
		return fmt.Errorf("the program in %s/%s ended with %d: %s", pod.Namespace, pod.Name, code.Code, strings.TrimSpace(complaints.buffer.String()))
	}
	if err != nil {
		return fmt.Errorf("running a program in %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// firstBytes keeps the begin of what is written.
type firstBytes struct {
	max    int
	buffer bytes.Buffer
}

// Write implements io.Writer.
func (f *firstBytes) Write(p []byte) (int, error) {
	f.buffer.Write(p[:min(len(p), f.max-f.buffer.Len())])
	return len(p), nil
}
