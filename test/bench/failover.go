//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/test/hosts"
	"gantry.dev/gantry/test/upstream"
)

// partFailover kills machines and servers. It runs when it alone is named: its clusters have machines of their own.
const partFailover = "failover"

const (
	failoverNamespace = "bench-failover"
	failoverTimeout   = 10 * time.Minute // upstream's defaults take six
	askEvery          = 20 * time.Millisecond
	askTimeout        = 300 * time.Millisecond
	serverCount       = 3
)

// failoverBench is one run of the part.
type failoverBench struct {
	opts     options
	dir      string
	image    string
	runc     string
	hosts    *hosts.Hosts
	programs upstream.NodePrograms
	say      func(format string, args ...any)
}

// measureFailover kills machines that run a pod, then servers that lead, then measures what three servers write.
func measureFailover(ctx context.Context, opts options, out, progress io.Writer) (err error) {
	dir, err := os.MkdirTemp("/tmp", "gfo") // short: a socket's path has 108 bytes at most
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	b := &failoverBench{opts: opts, dir: dir, image: filepath.Join(dir, "image.tar"), say: func(format string, args ...any) {
		_, _ = fmt.Fprintf(progress, "bench: "+format+"\n", args...)
	}}
	defer func() {
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			b.say("what was left is in %s", dir)
		}
	}()
	if err := b.prepare(ctx, progress); err != nil {
		return err
	}
	machines := row{Name: "machine killed -> its pod's replacement serves", Unit: "s", Target: target{valueMost, 5, ""}}
	defaults := row{Name: "the same, upstream with its defaults", Unit: "s", Target: target{valueMost, 5, ""}}
	if machines.Gantry, err = b.machinesKilled(ctx, b.gantryMachines, opts.rounds); err != nil {
		return err
	}
	if !opts.gantryOnly {
		if machines.Upstream, err = b.machinesKilled(ctx, b.upstreamMachines(true), opts.rounds); err != nil {
			return err
		}
	}
	if opts.defaults {
		defaults.Gantry = machines.Gantry
		if defaults.Upstream, err = b.machinesKilled(ctx, b.upstreamMachines(false), 1); err != nil {
			return err
		}
	}
	rows, others, err := b.servers(ctx)
	if err != nil {
		return err
	}
	rows = append([]row{machines}, rows...)
	if len(defaults.Upstream) > 0 {
		rows = append(rows[:1], append([]row{defaults}, rows[1:]...)...)
	}
	all := &bench{opts: opts, report: report{Machine: describeMachine(), Rows: rows, Others: others, Settings: map[string]string{
		"rounds": fmt.Sprint(opts.rounds), "round": opts.round.String(), "workers": fmt.Sprint(opts.workers),
	}}}
	return all.print(out)
}

func (b *failoverBench) prepare(ctx context.Context, progress io.Writer) (err error) {
	if err := writeImage(b.image); err != nil {
		return err
	}
	if b.hosts, err = hosts.New(ctx); err != nil || b.opts.gantryOnly {
		return err
	}
	found, err := filepath.Glob(filepath.Join(b.opts.cache, "../programs/*/runc"))
	if err != nil || len(found) == 0 {
		return fmt.Errorf("there is no runc beside %s (%w): run `make programs`", b.opts.cache, err)
	}
	if b.runc, err = filepath.Abs(found[0]); err != nil {
		return fmt.Errorf("find runc: %w", err)
	}
	b.programs, err = upstream.BuildNode(ctx, filepath.Dir(filepath.Clean(b.opts.module)), b.opts.cache, progress)
	return err
}

// failing is a cluster whose machines are killed.
type failing struct {
	name   string
	client *kubernetes.Clientset
	from   *hosts.Host // a machine that stays, from which the pod is asked
	keep   []string
	kill   func(ctx context.Context, node string) error
	check  func() error
	stop   func() error
}

// machinesKilled kills the machine that runs the pod, again and again, and returns how many seconds its replacement took each time.
func (b *failoverBench) machinesKilled(ctx context.Context, start func(context.Context, int) (*failing, error), rounds int) (took series, err error) {
	f, err := start(ctx, rounds+1)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.stop()) }()
	address, err := f.deploy(ctx)
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: askTimeout, Transport: &http.Transport{DialContext: f.from.Dial, DisableKeepAlives: true}}
	ask := func(ctx context.Context) (string, error) { return askFor(ctx, client, "http://"+address+"/") }
	old := ""
	err = f.until(ctx, startTimeout, func(ctx context.Context) (err error) {
		old, err = ask(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: wait for the first answer: %w", f.name, err)
	}
	for round := range rounds {
		lifecycle.Pause(ctx, 5*time.Second) // whoever came last is known to all
		pod, err := f.client.CoreV1().Pods(failoverNamespace).Get(ctx, old, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("%s: find the pod that answers: %w", f.name, err)
		}
		b.say("%s, round %d: killing %s", f.name, round+1, pod.Spec.NodeName)
		killed := time.Now()
		if err := f.kill(ctx, pod.Spec.NodeName); err != nil {
			return nil, err
		}
		err = f.until(ctx, failoverTimeout, func(ctx context.Context) error {
			now, err := ask(ctx)
			if err == nil && now == old {
				err = errors.New("the old pod answers")
			}
			if err == nil {
				old = now
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("%s: wait for the replacement: %w", f.name, err)
		}
		took = append(took, time.Since(killed).Seconds())
		b.say("%s, round %d: the replacement serves after %.2f s", f.name, round+1, took[len(took)-1])
		if err := f.client.CoreV1().Nodes().Delete(ctx, pod.Spec.NodeName, metav1.DeleteOptions{}); err != nil {
			return nil, fmt.Errorf("%s: delete the dead node: %w", f.name, err)
		}
	}
	return took, nil
}

// until polls as often as the benchmark asks the pod.
func (f *failing) until(ctx context.Context, patience time.Duration, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		if failed := f.check(); failed != nil {
			return failed
		}
		if !lifecycle.Pause(ctx, askEvery) {
			return fmt.Errorf("%w; the last answer: %w", ctx.Err(), err)
		}
	}
}

func askFor(ctx context.Context, client *http.Client, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", fmt.Errorf("make a request: %w", err)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", fmt.Errorf("ask the pod: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err == nil && (response.StatusCode != http.StatusOK || len(body) == 0) {
		err = fmt.Errorf("the pod answers %s", response.Status)
	}
	return strings.TrimSpace(string(body)), err
}

// deploy makes a Deployment of one pod, which answers with its name, and its Service, and returns the Service's address.
func (f *failing) deploy(ctx context.Context) (string, error) {
	client, none, one := f.client, int64(0), int32(1)
	labels := map[string]string{"app": "failover"}
	if _, err := client.CoreV1().Namespaces().Create(ctx, namespaceObject(failoverNamespace), metav1.CreateOptions{}); ignoreExists(err) != nil {
		return "", fmt.Errorf("%s: make the namespace: %w", f.name, err)
	}
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "failover"}, Spec: appsv1.DeploymentSpec{
		Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: &none,
			Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
					{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpNotIn, Values: f.keep},
				}}},
			}}},
			Containers: []corev1.Container{{
				Name: "main", Image: imageName, ImagePullPolicy: corev1.PullNever,
				Command: []string{"/bin/sh", "-c", "busybox mkdir -p /www && busybox hostname >/www/index.html && exec busybox httpd -f -p 8080 -h /www"},
			}},
		}},
	}}
	if _, err := client.AppsV1().Deployments(failoverNamespace).Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		return "", fmt.Errorf("%s: make the Deployment: %w", f.name, err)
	}
	service, err := client.CoreV1().Services(failoverNamespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "failover"},
		Spec:       corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("%s: make the Service: %w", f.name, err)
	}
	return net.JoinHostPort(service.Spec.ClusterIP, "80"), nil
}

// readyNodes waits until so many nodes take pods.
func (f *failing) readyNodes(ctx context.Context, count int) error {
	err := f.until(ctx, startTimeout, func(ctx context.Context) error {
		list, err := f.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		good := 0
		for i := range list.Items {
			if len(list.Items[i].Spec.Taints) == 0 {
				good++
			}
		}
		if good < count {
			return fmt.Errorf("%d of %d nodes take pods", good, count)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: wait for the nodes: %w", f.name, err)
	}
	return nil
}

// serverGroup is a cluster of several servers.
type serverGroup struct {
	name    string
	hosts   []*hosts.Host
	configs []*rest.Config
	clients []*kubernetes.Clientset
	pids    func() ([]int, error)
	leader  func(ctx context.Context) (int, error)
	kill    func(ctx context.Context, i int) error
	back    func(ctx context.Context, i int) error
	stop    func() error
}

// servers runs the parts for which there are three servers.
func (b *failoverBench) servers(ctx context.Context) (rows []row, others map[string]float64, err error) {
	starts := []func(context.Context) (*serverGroup, error){b.gantryServers}
	if !b.opts.gantryOnly {
		starts = append(starts, b.upstreamServers)
	}
	var groups []*serverGroup
	defer func() {
		for _, g := range groups {
			err = errors.Join(err, g.stop())
		}
	}()
	for _, start := range starts {
		g, err := start(ctx)
		if err != nil {
			return nil, nil, err
		}
		groups = append(groups, g)
		if err := g.ready(ctx); err != nil {
			return nil, nil, err
		}
	}
	rate := row{Name: "CREATE a ConfigMap at three servers", Unit: "1/s", Target: target{ratioLeast, 2, ""}}
	cpu := row{Name: "CREATE a ConfigMap at three servers", Unit: "CPU µs"}
	kill := row{Name: "leading server killed -> both others take writes", Unit: "s", Target: target{valueMost, 3, ""}}
	others = map[string]float64{}
	for round := range b.opts.rounds {
		for _, g := range groups {
			b.say("%s, round %d: writing at three servers", g.name, round+1)
			out, err := g.write(ctx, b.opts, round)
			if err != nil {
				return nil, nil, err
			}
			others[rate.Name] = max(others[rate.Name], out.others)
			put(g.name, &rate, out.rate)
			put(g.name, &cpu, out.cpu)
		}
	}
	for round := range b.opts.rounds {
		for _, g := range groups {
			took, err := g.killLeader(ctx, round)
			if err != nil {
				return nil, nil, err
			}
			b.say("%s, round %d: both other servers take writes after %.2f s", g.name, round+1, took.Seconds())
			put(g.name, &kill, took.Seconds())
		}
	}
	return []row{kill, rate, cpu}, others, nil
}

func put(name string, r *row, value float64) {
	if name == gantryName {
		r.Gantry = append(r.Gantry, value)
	} else {
		r.Upstream = append(r.Upstream, value)
	}
}

// ready makes the clients and waits until each server takes a write.
func (g *serverGroup) ready(ctx context.Context) error {
	for i, config := range g.configs {
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			return fmt.Errorf("make a client of %s: %w", g.name, err)
		}
		g.clients = append(g.clients, client)
		if err := g.takesWrites(ctx, i, "ready"); err != nil {
			return err
		}
	}
	return nil
}

func (g *serverGroup) takesWrites(ctx context.Context, i int, name string) error {
	err := await(ctx, func() error { return nil }, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := g.clients[i].CoreV1().ConfigMaps("default").Create(ctx, configMap(fmt.Sprintf("%s-%d", name, i), 0), metav1.CreateOptions{})
		return ignoreExists(err)
	})
	if err != nil {
		return fmt.Errorf("%s: wait for server %d to take a write: %w", g.name, i, err)
	}
	return nil
}

// write is one round of ConfigMaps, an equal part of the workers at each server.
func (g *serverGroup) write(ctx context.Context, opts options, round int) (outcome, error) {
	s := &system{name: g.name, pids: g.pids}
	return measure(ctx, s, load{workers: opts.workers, length: opts.round, max: maxOperations}, func(ctx context.Context, worker, i int) error {
		name := fmt.Sprintf("w-%d-%d-%d", round, worker, i)
		_, err := g.clients[worker%len(g.clients)].CoreV1().ConfigMaps("default").Create(ctx, configMap(name, i), metav1.CreateOptions{})
		return err
	})
}

// killLeader kills the leading server and returns how long it took until both others had taken a write. The server is brought back.
func (g *serverGroup) killLeader(ctx context.Context, round int) (time.Duration, error) {
	lifecycle.Pause(ctx, 3*time.Second)
	leader, err := g.leader(ctx)
	if err != nil {
		return 0, err
	}
	killed := time.Now()
	if err := g.kill(ctx, leader); err != nil {
		return 0, err
	}
	var slowest time.Duration
	results := make(chan error, len(g.clients))
	var took [serverCount]time.Duration
	for i := range g.clients {
		if i == leader {
			results <- nil
			continue
		}
		go func() {
			var err error
			took[i], err = g.firstWrite(ctx, i, killed, fmt.Sprintf("after-%d-%d", round, i))
			results <- err
		}()
	}
	for range g.clients {
		err = cmp.Or(err, <-results)
	}
	if err != nil {
		return 0, err
	}
	for _, d := range took {
		slowest = max(slowest, d)
	}
	if err := g.back(ctx, leader); err != nil {
		return 0, err
	}
	return slowest, g.takesWrites(ctx, leader, fmt.Sprintf("back-%d", round))
}

// firstWrite sends a write every 50 ms, without waiting for those before, and returns when the first was accepted.
func (g *serverGroup) firstWrite(ctx context.Context, i int, since time.Time, prefix string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var first atomic.Int64
	var last atomic.Pointer[string]
	for n := 0; first.Load() == 0; n++ {
		go func() {
			_, err := g.clients[i].CoreV1().ConfigMaps("default").Create(ctx, configMap(fmt.Sprintf("%s-%d", prefix, n), 0), metav1.CreateOptions{})
			if err == nil || apierrors.IsAlreadyExists(err) {
				first.CompareAndSwap(0, int64(time.Since(since)))
				return
			}
			text := err.Error()
			last.Store(&text)
		}()
		if !lifecycle.Pause(ctx, 50*time.Millisecond) {
			return 0, fmt.Errorf("%s: server %d takes no writes: %s", g.name, i, *cmp.Or(last.Load(), new(string)))
		}
	}
	return time.Duration(first.Load()), nil
}
