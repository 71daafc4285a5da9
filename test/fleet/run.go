//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/test/hosts"
)

const (
	namespace   = "fleet"
	deployments = 10
	joinHands   = 4
	podRange    = "10.128.0.0/11" // a part for each of 5,000 nodes
	pollEvery   = 200 * time.Millisecond
)

// cluster is the servers.
type cluster struct {
	hosts    []*hosts.Gantry
	clients  []*kubernetes.Clientset // one a server
	servers  []string                // addresses
	token    join.Token
	believed *join.Cluster
}

// fleet is one run.
type fleet struct {
	opts     options
	dir      string
	cluster  cluster
	machines []*machine
	checks   *checks
	log      *slog.Logger
	say      func(format string, args ...any)
}

// run runs the fleet and prints what was found.
func run(ctx context.Context, opts options, out, progress io.Writer) (err error) {
	dir, err := os.MkdirTemp("/tmp", "gfl") // short: a socket's path has 108 bytes at most
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	f := &fleet{opts: opts, dir: dir, log: slog.New(slog.NewTextHandler(io.Discard, nil)), say: func(format string, args ...any) {
		_, _ = fmt.Fprintf(progress, "fleet: "+format+"\n", args...)
	}}
	agents := filepath.Join(dir, "agents")
	if err := errors.Join(os.Mkdir(agents, 0o700), syscall.Mount("tmpfs", agents, "tmpfs", 0, "mode=700")); err != nil {
		return fmt.Errorf("make a place for the machines' files: %w", err) // the disk is the servers'
	}
	logs, err := os.Create(filepath.Join(dir, "agents.log"))
	if err != nil {
		return fmt.Errorf("make a log: %w", err)
	}
	f.log = slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelWarn}))
	living, end := context.WithCancel(ctx)
	defer func() {
		end()
		for _, m := range f.machines {
			m.wait()
		}
		err = errors.Join(err, f.stopServers(), logs.Close(), syscall.Unmount(agents, syscall.MNT_DETACH))
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			f.say("the logs are in %s", dir)
		}
	}()
	if err := f.startServers(ctx); err != nil {
		return err
	}
	if err := f.startMachines(ctx, living, agents); err != nil {
		return err
	}
	if err := f.deploy(ctx); err != nil {
		return err
	}
	result, err := f.measure(ctx, living)
	if err != nil {
		return err
	}
	if err := result.print(out, opts); err != nil {
		return err
	}
	return result.verdict()
}

func (f *fleet) startServers(ctx context.Context) error {
	all, err := hosts.New(ctx)
	if err != nil {
		return err
	}
	for i := range f.opts.servers {
		f.say("starting server %d of %d", i+1, f.opts.servers)
		m, err := all.AddGantry(ctx, filepath.Join(f.opts.bin, "gantry"), f.dir, fmt.Sprintf("s%d", i), "--pod-cidr", podRange)
		if err != nil {
			return err
		}
		f.cluster.hosts = append(f.cluster.hosts, m)
		if i == 0 {
			err = m.Up(ctx)
		} else {
			err = f.cluster.hosts[0].Join(ctx, m, "--server")
		}
		if err != nil {
			return err
		}
		config, err := m.Admin()
		if err != nil {
			return err
		}
		config.QPS = -1
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return fmt.Errorf("make a client: %w", err)
		}
		f.cluster.clients = append(f.cluster.clients, client)
		f.cluster.servers = append(f.cluster.servers, m.Address.String()+":6443")
	}
	command, err := f.cluster.hosts[0].Run(ctx, "token", "create")
	if err != nil {
		return err
	}
	words := strings.Fields(command)
	for i := range len(words) - 1 {
		if words[i] == "--token" {
			if f.cluster.token, err = join.ParseToken(words[i+1]); err != nil {
				return err
			}
		}
	}
	f.cluster.believed, err = join.Discover(ctx, f.cluster.servers[0], f.cluster.token.Pin)
	return err
}

func (f *fleet) stopServers() error {
	var failed error
	for _, m := range f.cluster.hosts {
		failed = errors.Join(failed, m.Purge())
	}
	return failed
}

// startMachines lets all machines join and waits until their nodes take pods.
func (f *fleet) startMachines(ctx, living context.Context, dir string) error {
	f.say("%d machines join", f.opts.nodes)
	begun := time.Now()
	f.machines = make([]*machine, f.opts.nodes)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(joinHands)
	for i := range f.machines {
		group.Go(func() error {
			m, err := joinMachine(groupCtx, i, dir, f.cluster, f.log)
			if err != nil {
				return err
			}
			f.machines[i] = m
			return m.on(living)
		})
	}
	err := group.Wait()
	f.machines = compact(f.machines)
	if err != nil {
		return err
	}
	f.say("%d machines have joined after %s", f.opts.nodes, time.Since(begun).Round(time.Millisecond))
	err = f.await(ctx, "all nodes take pods", func() error {
		good, err := f.ready(ctx)
		if err == nil && good < f.opts.nodes {
			err = fmt.Errorf("%d of %d do", good, f.opts.nodes)
		}
		return err
	})
	f.say("all take pods after %s", time.Since(begun).Round(time.Millisecond))
	return err
}

// compact leaves out machines that were not made.
func compact(machines []*machine) []*machine {
	var out []*machine
	for _, m := range machines {
		if m != nil {
			out = append(out, m)
		}
	}
	return out
}

// ready is how many simulated nodes take pods.
func (f *fleet) ready(ctx context.Context) (int, error) {
	list, err := f.cluster.clients[0].CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: labelFleet})
	if err != nil {
		return 0, err
	}
	good := 0
	for i := range list.Items {
		if len(list.Items[i].Spec.Taints) == 0 && isReady(&list.Items[i]) {
			good++
		}
	}
	return good, nil
}

func isReady(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// await polls until probe succeeds; patience grows with the fleet.
func (f *fleet) await(ctx context.Context, what string, probe func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute+time.Duration(f.opts.nodes)*200*time.Millisecond)
	defer cancel()
	for {
		err := probe()
		if err == nil {
			return nil
		}
		if !lifecycle.Pause(ctx, pollEvery+time.Duration(f.opts.nodes)*time.Millisecond) {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
	}
}

// deploy makes the Deployments and waits until all their pods run.
func (f *fleet) deploy(ctx context.Context) error {
	client := f.cluster.clients[0]
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("make the namespace: %w", err)
	}
	begun, replicas := time.Now(), f.opts.nodes*f.opts.pods/deployments
	f.checks = newChecks(f.machines, f.opts.bound)
	for i := range deployments {
		name := fmt.Sprintf("app%d", i)
		f.checks.want[name] = replicas
		if _, err := client.AppsV1().Deployments(namespace).Create(ctx, deployment(name, int32(replicas)), metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("make a Deployment: %w", err)
		}
	}
	err := f.await(ctx, "all pods run", func() error {
		if missing := f.checks.missing(); missing > 0 {
			return fmt.Errorf("%d do not", missing)
		}
		return nil
	})
	f.say("%d pods run after %s", deployments*replicas, time.Since(begun).Round(time.Millisecond))
	return err
}

func deployment(name string, replicas int32) *appsv1.Deployment {
	labels, grace := map[string]string{"app": name}, int64(1)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
				NodeSelector: map[string]string{labelFleet: "true"}, TerminationGracePeriodSeconds: &grace,
				AutomountServiceAccountToken: new(bool),
				Containers:                   []corev1.Container{{Name: "main", Image: "fleet.invalid/main:1"}},
			}},
		},
	}
}

// measure kills machines, or loads the servers, while everything is checked, and then waits until all is well again.
func (f *fleet) measure(ctx, living context.Context) (*result, error) {
	checking, stop := context.WithCancel(ctx)
	defer stop()
	var group sync.WaitGroup
	usage := &usage{hosts: f.cluster.hosts}
	counter := &counter{clients: f.cluster.clients}
	watcher := &nodeWatcher{client: f.cluster.clients[len(f.cluster.clients)-1], machines: f.machines}
	if err := counter.prepare(ctx); err != nil {
		return nil, err
	}
	watching, err := watcher.start(checking, &group)
	if err != nil {
		return nil, err
	}
	group.Go(func() { f.checks.run(checking) })
	group.Go(func() { usage.run(checking) })
	group.Go(func() { counter.run(checking) })
	r := &result{fleet: f, began: time.Now()}
	timed, end := context.WithTimeout(ctx, f.opts.duration)
	defer end()
	if f.opts.load {
		f.say("loading the servers for %s", f.opts.duration)
		r.requests, r.failed = f.load(timed)
	} else {
		f.say("killing a machine every %s for %s", f.opts.every, f.opts.duration)
		r.kills = f.killMachines(timed, living)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	r.usage = usage.summary()
	for _, m := range f.machines {
		if err := m.on(living); err != nil {
			return nil, err
		}
	}
	err = f.await(ctx, "all pods run again", func() error {
		if missing := f.checks.missing(); missing > 0 {
			return fmt.Errorf("%d do not", missing)
		}
		return nil
	})
	stop()
	group.Wait()
	r.pods, r.unready, r.flaps = f.checks.summary(), watcher.wrong, watching()
	r.counter, r.counterErr = counter.verdict(ctx)
	r.settled = err
	return r, nil
}

// killMachines kills a random machine again and again, and switches it on again some time later.
func (f *fleet) killMachines(ctx, living context.Context) int {
	random := rand.New(rand.NewPCG(f.opts.seed, f.opts.seed))
	var group sync.WaitGroup
	defer group.Wait()
	ticker := time.NewTicker(f.opts.every)
	defer ticker.Stop()
	kills := 0
	for {
		select {
		case <-ctx.Done():
			return kills
		case <-ticker.C:
		}
		m := f.machines[random.IntN(len(f.machines))]
		away := f.opts.away/10 + time.Duration(random.Int64N(int64(f.opts.away*9/10)))
		if !f.checks.kill(m) {
			continue
		}
		kills++
		group.Go(func() {
			m.wait()
			lifecycle.Pause(ctx, away)
			if err := m.on(living); err != nil {
				f.log.Error("a machine does not come back", "machine", m.name, "error", err)
			}
		})
	}
}
