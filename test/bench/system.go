//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"gantry.dev/gantry/test/upstream"
)

const (
	gantryName   = "gantry"
	upstreamName = "upstream"

	startTimeout = 90 * time.Second
	stopTimeout  = 60 * time.Second
	poll         = 5 * time.Millisecond
	podRange     = "10.128.0.0/11" // a part for each of 5,000 nodes
)

// system is one running cluster under test.
type system struct {
	name    string
	dir     string
	started time.Time
	admin   *rest.Config // as a member of system:masters, or what Gantry's kubeconfig is
	user    *rest.Config // as a user with a role and a certificate of its own
	client  *kubernetes.Clientset
	loader  *kubernetes.Clientset // as user
	pids    func() ([]int, error)
	check   func() error // an error when the system has ended
	stop    func() error

	nodes *nodes // the simulated ones, nil until they are made
	has   map[string]bool
}

// launch starts a fresh system in dir and returns at once.
type launcher func(ctx context.Context, dir string) (*system, error)

// launchUpstream starts upstream's control plane from the built programs.
func launchUpstream(programs string) launcher {
	return func(_ context.Context, dir string) (*system, error) {
		cluster, err := upstream.Start(upstream.Options{Programs: programs, Dir: dir})
		if err != nil {
			return nil, err
		}
		s := &system{
			name: upstreamName, dir: dir, started: cluster.Started, has: map[string]bool{},
			pids:  func() ([]int, error) { return cluster.PIDs(), nil },
			check: cluster.Check, stop: cluster.Stop,
		}
		if s.admin, err = loadConfig(cluster.Kubeconfig); err != nil {
			return nil, errors.Join(err, cluster.Stop())
		}
		return s, nil
	}
}

// launchGantry starts the built program with its node.
func launchGantry(opts options) launcher {
	return func(ctx context.Context, dir string) (*system, error) { return startGantry(ctx, opts, dir) }
}

func startGantry(ctx context.Context, opts options, dir string) (*system, error) {
	program, err := filepath.Abs(opts.gantryBin)
	if err != nil {
		return nil, fmt.Errorf("find gantry: %w", err)
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	data, kubeconfig := filepath.Join(dir, "data"), filepath.Join(dir, "admin.kubeconfig")
	_ = os.Remove(kubeconfig) // of an earlier start, with another port
	log, err := os.OpenFile(filepath.Join(dir, "gantry.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make a log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(program, "up", "--data-dir", data, "--listen", "127.0.0.1:"+port, "--kubeconfig", kubeconfig, "--node-name", "bench-node", "--pod-cidr", podRange)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s := &system{name: gantryName, dir: dir, has: map[string]bool{}, started: time.Now()}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start gantry: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = cmd.Wait() // how it ended is in its log
	}()
	s.check = func() error {
		select {
		case <-exited:
			return fmt.Errorf("gantry ended: %v; its log:\n%s", cmd.ProcessState, tail(log.Name()))
		default:
			return nil
		}
	}
	s.pids = func() ([]int, error) {
		beside, err := programsUnder(data)
		return append([]int{cmd.Process.Pid}, beside...), err
	}
	s.stop = func() error { return stopProcess(cmd, exited) }
	err = await(ctx, s.check, func(context.Context) (err error) {
		s.admin, err = loadConfig(kubeconfig)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wait for gantry's kubeconfig: %w", err), s.stop())
	}
	return s, nil
}

// purge stops what gantry left running and removes its data.
func purge(opts options, dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, opts.gantryBin, "down", "--purge", "--yes", "--data-dir", filepath.Join(dir, "data")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("gantry down: %w\n%s", err, out)
	}
	return nil
}

func stopProcess(cmd *exec.Cmd, exited <-chan struct{}) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", filepath.Base(cmd.Path), err)
	}
	select {
	case <-exited:
		return nil
	case <-time.After(stopTimeout):
		_ = cmd.Process.Kill()
		<-exited
		return fmt.Errorf("%s did not end within %s of SIGTERM", filepath.Base(cmd.Path), stopTimeout)
	}
}

func freePort() (string, error) {
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	_, port, err := net.SplitHostPort(listener.Addr().String())
	return port, errors.Join(err, listener.Close())
}

// tail returns the last lines of a log.
func tail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content[max(0, len(content)-2000):])
}

// loadConfig reads a kubeconfig; the client's own rate limit is off and bodies are JSON.
func loadConfig(path string) (*rest.Config, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read a kubeconfig: %w", err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(content)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	tune(config)
	return config, nil
}

func tune(config *rest.Config) {
	config.QPS = -1
	config.ContentType, config.AcceptContentTypes = "application/json", "application/json"
	config.UserAgent = "gantry-bench"
	config.WarningHandler = rest.NoWarnings{}
}

// await polls until probe succeeds, check fails, ctx ends or startTimeout is over.
func await(ctx context.Context, check func() error, probe func(context.Context) error) error {
	return awaitFor(ctx, startTimeout, check, probe)
}

// awaitFor is await with a patience of its own.
func awaitFor(ctx context.Context, patience time.Duration, check func() error, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		last := probe(ctx)
		if last == nil {
			return nil
		}
		if err := check(); err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%w; the last answer: %w", ctx.Err(), last)
		}
	}
}

// awaitWrite returns once an authenticated write has succeeded: a ConfigMap in namespace default.
func (s *system) awaitWrite(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(s.admin)
	if err != nil {
		return fmt.Errorf("make a client of %s: %w", s.name, err)
	}
	s.client = client
	object := configMap("ready", 0)
	err = await(ctx, s.check, func(ctx context.Context) error {
		_, err := client.CoreV1().ConfigMaps("default").Create(ctx, object, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for the first write to %s: %w", s.name, err)
	}
	return nil
}

const userName = "bench-user"

// addUser makes the user whose requests are measured: its certificate, role and binding.
func (s *system) addUser(ctx context.Context, pki string) error {
	authority, err := upstream.LoadAuthority(pki)
	if err != nil {
		return err
	}
	pair, err := authority.Client(userName, "bench-group")
	if err != nil {
		return err
	}
	s.user = rest.AnonymousClientConfig(s.admin)
	s.user.CertData, s.user.KeyData = pair.Cert, pair.Key
	tune(s.user)
	if s.loader, err = kubernetes.NewForConfig(s.user); err != nil {
		return fmt.Errorf("make a client of %s: %w", s.name, err)
	}
	verbs := []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: userName}, Rules: []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"configmaps", "pods", "pods/status", "pods/log"}, Verbs: verbs},
		{APIGroups: []string{"apps"}, Resources: []string{"deployments", "replicasets"}, Verbs: verbs},
	}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: userName},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: userName},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: userName}},
	}
	_, roleErr := s.client.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{})
	_, bindingErr := s.client.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{})
	if err := errors.Join(ignoreExists(roleErr), ignoreExists(bindingErr)); err != nil {
		return fmt.Errorf("give the user of %s its role: %w", s.name, err)
	}
	return await(ctx, s.check, func(ctx context.Context) error { // authorizers learn roles with a delay
		_, err := s.loader.CoreV1().ConfigMaps("default").Get(ctx, "ready", metav1.GetOptions{})
		return err
	})
}

func ignoreExists(err error) error {
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// pki is the folder of the system's authority.
func (s *system) pki() string {
	if s.name == gantryName {
		return filepath.Join(s.dir, "data", "pki")
	}
	return filepath.Join(s.dir, "pki")
}

// cpu is the CPU time that the system's processes have used so far.
func (s *system) cpu() (time.Duration, error) {
	pids, err := s.pids()
	if err != nil {
		return 0, err
	}
	return cpuOf(pids)
}

// namespace makes a namespace and waits for its default service account, without which no pod is admitted.
func (s *system) namespace(ctx context.Context, name string) error {
	_, err := s.client.CoreV1().Namespaces().Create(ctx, namespaceObject(name), metav1.CreateOptions{})
	if err := ignoreExists(err); err != nil {
		return fmt.Errorf("make namespace %s: %w", name, err)
	}
	return await(ctx, s.check, func(ctx context.Context) error {
		_, saErr := s.client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		_, caErr := s.client.CoreV1().ConfigMaps(name).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return cmp.Or(saErr, caErr)
	})
}
