package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/api/v1alpha1"
	"gantry.dev/gantry/internal/platform/deploy"
)

// runFlags are those of "run" and "exec".
type runFlags struct {
	appFlags
	process string
	noTTY   bool
}

func (f *runFlags) registerRun(cmd *cobra.Command) *cobra.Command {
	f.register(cmd)
	cmd.Flags().StringVar(&f.process, "process", v1alpha1.WebProcess, "the process whose container it is")
	cmd.Flags().BoolVarP(&f.noTTY, "no-tty", "T", false, "no terminal for the program, even if there is one")
	return cmd
}

// command splits "[APP] -- CMD".
func (f *runFlags) command(cmd *cobra.Command, args []string) (name string, words []string, err error) {
	dash := cmd.ArgsLenAtDash()
	if dash < 0 || dash > 1 || dash == len(args) {
		return "", nil, withCode(exitUsage, fmt.Errorf("say what to run after two dashes: %s -- CMD", cmd.CommandPath()))
	}
	return first(args[:dash]), args[dash:], nil
}

// ours gives errors that are not the program's the code 125, so that no code of a program is mistaken for it.
func ours(err error) error { return withCode(exitRun, err) }

func (a *app) execCommand() *cobra.Command {
	f := &runFlags{}
	return f.registerRun(&cobra.Command{
		Use: "exec [APP] -- CMD...", Short: "Run a command in a container that runs",
		Long: "Run a command in a container that runs. It ends with the command's exit code; 125 means that it could not be run.",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, words, err := f.command(cmd, args)
			if err != nil {
				return ours(err)
			}
			t, err := a.target(cmd, &f.appFlags, name)
			if err != nil {
				return ours(err)
			}
			pods, err := t.pods(cmd.Context(), f.process)
			if err != nil {
				return ours(err)
			}
			for i := range pods {
				if stateOf(&pods[i]) == "running" {
					a.announce(t, pods[i].Name)
					return a.stream(cmd.Context(), t, &pods[i], "exec", words, f.noTTY)
				}
			}
			return ours(fmt.Errorf("no container of %s (process %s) runs; \"gantry run\" starts a new one", t.key.Name, f.process))
		},
	})
}

// stream connects the terminal, or the pipes, with a program in a pod.
func (a *app) stream(ctx context.Context, t *appTarget, pod *corev1.Pod, kind string, words []string, noTTY bool) error {
	stdin, isFile := a.env.Stdin.(*os.File)
	tty := !noTTY && a.env.IsTerminal && isFile && term.IsTerminal(int(stdin.Fd()))
	options := corev1.PodExecOptions{Container: pod.Spec.Containers[0].Name, Command: words, Stdin: true, Stdout: true, Stderr: !tty, TTY: tty}
	target, err := t.cluster.StreamURL(pod, kind, options)
	if err != nil {
		return ours(err)
	}
	socket, err := remotecommand.NewWebSocketExecutor(t.cluster.Config, "GET", target.String())
	if err != nil {
		return ours(fmt.Errorf("prepare to reach the container: %w", err))
	}
	streams := remotecommand.StreamOptions{Stdin: a.env.Stdin, Stdout: a.env.Stdout, Stderr: a.env.Stderr, Tty: tty}
	if tty {
		streams.Stderr = nil
		before, err := term.MakeRaw(int(stdin.Fd()))
		if err != nil {
			return ours(fmt.Errorf("prepare the terminal: %w", err))
		}
		defer func() { _ = term.Restore(int(stdin.Fd()), before) }()
		sizes := &terminalSize{ctx: ctx.Done(), fd: int(stdin.Fd())}
		streams.TerminalSizeQueue = sizes
	}
	err = socket.StreamWithContext(ctx, streams)
	var code utilexec.CodeExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &code):
		return &exitError{code.Code, nil}
	}
	return ours(deploy.Reached("run it in "+pod.Name, err))
}

// terminalSize tells when the terminal's size changes. Looking now and then works on every system.
type terminalSize struct {
	ctx  <-chan struct{}
	fd   int
	last remotecommand.TerminalSize
}

// Next implements remotecommand.TerminalSizeQueue.
func (s *terminalSize) Next() *remotecommand.TerminalSize {
	for {
		if width, height, err := term.GetSize(s.fd); err == nil {
			if now := (remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}); now != s.last {
				s.last = now
				return &now
			}
		}
		select {
		case <-s.ctx:
			return nil
		case <-time.After(250 * time.Millisecond):
		}
	}
}

func (a *app) runCommand() *cobra.Command {
	f := &runFlags{}
	var timeout time.Duration
	cmd := f.registerRun(&cobra.Command{
		Use: "run [APP] -- CMD...", Short: "Run a command in a new container of the application",
		Long: "Run a command in a new container with the image and environment that serve. It ends with the command's exit code;\n" +
			"125 means that it could not be run. The container is removed afterwards.",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, words, err := f.command(cmd, args)
			if err != nil {
				return ours(err)
			}
			t, err := a.target(cmd, &f.appFlags, name)
			if err != nil {
				return ours(err)
			}
			a.announce(t, t.key.Name)
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return a.runPod(ctx, t, f, words, timeout)
		},
	})
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long the container may take to start")
	return cmd
}

// runPod makes a pod, connects to it, and removes it.
func (a *app) runPod(ctx context.Context, t *appTarget, f *runFlags, words []string, timeout time.Duration) error {
	var serving appsv1.Deployment
	key := client.ObjectKey{Namespace: t.key.Namespace, Name: v1alpha1.ObjectName(t.key.Name, f.process)}
	if err := t.cluster.Client.Get(ctx, key, &serving); err != nil {
		if apierrors.IsNotFound(err) {
			err = fmt.Errorf("%s has no process %s that runs; deploy it first, see \"gantry status %s\"", t.key.Name, f.process, t.key.Name)
		}
		return ours(err)
	}
	stdin, isFile := a.env.Stdin.(*os.File)
	interactive := !f.noTTY && a.env.IsTerminal && isFile && term.IsTerminal(int(stdin.Fd()))
	pod := oneOff(&serving, words, interactive)
	if err := t.cluster.Client.Create(ctx, pod, client.FieldOwner(deploy.ManagerDeploy)); err != nil {
		return ours(deploy.Reached("make the container", err))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := t.cluster.Client.Delete(ctx, pod, client.GracePeriodSeconds(1)); err != nil && !apierrors.IsNotFound(err) {
			a.warn("the container %s is still there: %v", pod.Name, err)
		}
	}()
	starting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := t.awaitPod(starting, pod, func() bool { return pod.Status.Phase != corev1.PodPending }); err != nil {
		return ours(fmt.Errorf("the container did not start: %s: %w", cmp.Or(podTrouble(pod), stateOf(pod)), err))
	}
	if interactive && pod.Status.Phase == corev1.PodRunning {
		if err := a.stream(ctx, t, pod, "attach", nil, false); err != nil {
			return err
		}
	} else if err := a.copyLog(ctx, t, pod); err != nil {
		return ours(err)
	}
	done := func() bool { return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed }
	if err := t.awaitPod(ctx, pod, done); err != nil {
		return ours(err)
	}
	for _, status := range pod.Status.ContainerStatuses {
		if ended := status.State.Terminated; ended != nil && ended.ExitCode != 0 {
			return &exitError{int(ended.ExitCode), nil}
		}
	}
	return nil
}

// oneOff is a pod like those of a process, which runs one command and gets no requests.
func oneOff(serving *appsv1.Deployment, words []string, tty bool) *corev1.Pod {
	template := serving.Spec.Template.DeepCopy()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: serving.Namespace, GenerateName: template.Labels[v1alpha1.LabelApp] + "-run-",
		Labels: map[string]string{v1alpha1.LabelApp: template.Labels[v1alpha1.LabelApp], v1alpha1.LabelRelease: template.Labels[v1alpha1.LabelRelease]},
	}, Spec: template.Spec}
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	c := &pod.Spec.Containers[0]
	c.Command, c.Args = words, nil
	c.LivenessProbe, c.ReadinessProbe, c.StartupProbe, c.Lifecycle, c.Ports = nil, nil, nil, nil, nil
	c.Stdin, c.StdinOnce, c.TTY = tty, tty, tty
	return pod
}

// awaitPod reads the pod until it is as wanted.
func (t *appTarget) awaitPod(ctx context.Context, pod *corev1.Pod, wanted func() bool) error {
	return t.cluster.Await(ctx, pod.Namespace, func() (bool, error) {
		if err := t.cluster.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return true, deploy.Reached("ask about the container", err)
		}
		for _, status := range pod.Status.ContainerStatuses {
			if waiting := status.State.Waiting; waiting != nil && strings.HasPrefix(waiting.Reason, "Err") {
				return true, errors.New(waiting.Reason)
			}
		}
		return wanted(), nil
	}, &corev1.PodList{})
}

// copyLog prints what a program says until it ends.
func (a *app) copyLog(ctx context.Context, t *appTarget, pod *corev1.Pod) error {
	body, err := t.cluster.Open(ctx, fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/log?follow=true", pod.Namespace, pod.Name))
	if err != nil {
		return fmt.Errorf("read what %s says: %w", pod.Name, err)
	}
	defer func() { _ = body.Close() }()
	if _, err := io.Copy(a.env.Stdout, body); err != nil {
		return fmt.Errorf("read what %s says: %w", pod.Name, err)
	}
	return nil
}
