package gantrytest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/agent"
	"gantry.dev/gantry/internal/agent/agenttest"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/heartbeat"
	"gantry.dev/gantry/internal/remote"
)

// link leads from a worker to the server that there is at a time. It implements http.RoundTripper and heartbeat.Server.
type link struct {
	mu     sync.Mutex
	server *Cluster // nil: there is none
	cert   *x509.Certificate
}

var errNoServer = errors.New("connection refused")

func (l *link) set(server *Cluster) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.server = server
}

func (l *link) get() *Cluster {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.server
}

func (l *link) Name() string { return "server" }
func (l *link) Close()       {}

func (l *link) Beat(_ context.Context, beat heartbeat.Beat, _ time.Duration) (heartbeat.Answer, error) {
	server := l.get()
	if server == nil {
		return heartbeat.Answer{}, errNoServer
	}
	return server.ControlPlane.Heartbeat(beat), nil
}

// RoundTrip passes an answer on while it is being written, as watches need it.
func (l *link) RoundTrip(r *http.Request) (*http.Response, error) {
	server := l.get()
	if server == nil {
		return nil, errNoServer
	}
	in := r.Clone(r.Context())
	in.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{l.cert}}
	in.RequestURI = r.URL.RequestURI()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	reader, writer := io.Pipe()
	w := &piped{header: http.Header{}, body: writer, begun: make(chan struct{})}
	go func() {
		server.Handler.ServeHTTP(w, in)
		w.WriteHeader(http.StatusOK)
		_ = writer.Close()
	}()
	context.AfterFunc(r.Context(), func() { _ = reader.CloseWithError(r.Context().Err()) })
	select {
	case <-w.begun:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return &http.Response{
		StatusCode: w.code, Status: fmt.Sprint(w.code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: reader, ContentLength: -1, Request: r,
	}, nil
}

// piped is an answer that is read while it is written.
type piped struct {
	header, sent http.Header
	body         *io.PipeWriter
	once         sync.Once
	begun        chan struct{}
	code         int
}

func (p *piped) Header() http.Header { return p.header }
func (p *piped) Flush()              { p.WriteHeader(http.StatusOK) }

func (p *piped) WriteHeader(code int) {
	p.once.Do(func() {
		p.code, p.sent = code, p.header.Clone()
		close(p.begun)
	})
}

func (p *piped) Write(text []byte) (int, error) {
	p.WriteHeader(http.StatusOK)
	return p.body.Write(text)
}

// worker is a node's own code over a runtime in memory.
type worker struct {
	t       *testing.T
	link    *link
	dir     string
	runtime *agenttest.Runtime
	network *agenttest.Network
	stop    func()
}

func (w *worker) start() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	cluster, err := remote.New(remote.Options{Transport: w.link, NodeName: "worker", Agent: "test", Dir: filepath.Join(w.dir, "known"), Logger: log})
	if err != nil {
		w.t.Fatal(err)
	}
	node, err := agent.New(agent.Parts{
		Client: cluster.Client(), Informers: cluster.Own(), Runtime: w.runtime, Images: &agenttest.Images{}, Network: w.network, Volumes: agenttest.Volumes{},
	}, agent.Options{
		NodeName: "worker", NodeUID: "worker-uid", NodeIPs: []string{"192.0.2.9"}, PodsDir: filepath.Join(w.dir, "pods"), LogDir: filepath.Join(w.dir, "log"),
		Capacity:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi")},
		DiskUsage:  func(string) (int64, int64, error) { return 50, 100, nil },
		Heartbeats: func() []heartbeat.Server { return []heartbeat.Server{w.link} },
		Clock:      w.runtime.SinceStart, Confirmed: cluster.Confirmed, DisableCollection: true, Logger: log,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	// As a node's proxy does, of which the agent takes what containers are told of Services.
	if _, err := cluster.All().GetInformer(w.t.Context(), &corev1.Service{}); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = cluster.Run(ctx) }) // it ends with its context only
	running.Go(func() {
		if err := node.Run(ctx); err != nil {
			w.t.Errorf("the agent ended: %v", err)
		}
	})
	w.stop = func() {
		cancel()
		running.Wait()
	}
}

// containers are the running containers of pods whose name begins with a prefix: pod, attempt and id.
func (w *worker) containers(prefix string) (out []string) {
	w.t.Helper()
	list, err := w.runtime.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range list {
		for _, c := range s.Containers {
			if c.State == container.StateRunning && strings.HasPrefix(s.Sandbox.Name, prefix) {
				out = append(out, fmt.Sprint(s.Sandbox.Name, " ", c.Attempt, " ", c.ID))
			}
		}
	}
	return out
}

// A worker is without a server for a day, and is itself started anew in the middle of it: its pod of a Deployment runs on
// and is restarted when it ends, its fenced one ends at its deadline and does not start. When the server is back nothing but the fenced
// pod has changed: the other is the same, in the same container.
func TestADayWithoutServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start(t, Options{Nodes: 1})
		w := &worker{t: t, link: &link{}, dir: t.TempDir(), runtime: agenttest.NewRuntime(), network: &agenttest.Network{}}
		w.link.cert = c.Config("system:node:worker", "system:nodes").Transport.(direct).cert
		w.link.set(c)
		// Another node is there all the time: it could take over.
		var beating sync.WaitGroup
		ctx, cancel := context.WithCancel(t.Context())
		defer beating.Wait()
		defer cancel()
		c.changeNode("node-0", func(node *corev1.Node) error {
			node.Annotations = map[string]string{heartbeat.NodeAnnotation: "300ms"}
			return c.Client.Update(t.Context(), node)
		})
		beating.Go(func() {
			for ctx.Err() == nil {
				_, _ = w.link.Beat(ctx, heartbeat.Beat{Name: "node-0"}, 0)
				select {
				case <-ctx.Done():
				case <-time.After(heartbeat.Every):
				}
			}
		})
		w.start()
		defer func() { w.stop() }()
		there := map[string]string{corev1.LabelHostname: "worker"}
		web := spreadDeployment("web", 1)
		web.Spec.Template.Spec.NodeSelector = there
		labels := map[string]string{"app": "db"}
		db := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"}, Spec: appsv1.StatefulSetSpec{
			Replicas: new(int32(1)), Selector: &metav1.LabelSelector{MatchLabels: labels}, ServiceName: "db",
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: web.Spec.Template.Spec},
		}}
		mustCreate(t, c, web, db)
		c.Eventually("both pods run", func() error {
			if len(w.containers("web")) != 1 || len(w.containers("db")) != 1 {
				return fmt.Errorf("%v %v", w.containers("web"), w.containers("db"))
			}
			return nil
		})
		time.Sleep(time.Minute)
		before := webPod(t, c)

		w.link.set(nil)
		c.Stop()
		time.Sleep(heartbeat.DefaultDeadline + 2*time.Second)
		if len(w.containers("web")) != 1 || len(w.containers("db")) != 0 {
			t.Fatalf("after the deadline %v and %v run; want the first alone", w.containers("web"), w.containers("db"))
		}
		end := func() { w.runtime.Exit(strings.Fields(w.containers("web")[0])[2], 1) }
		time.Sleep(6 * time.Hour)
		end()
		time.Sleep(6 * time.Hour)
		kept := w.containers("web")
		w.stop()
		time.Sleep(time.Minute)
		w.start()
		time.Sleep(time.Hour)
		if now := w.containers("web"); fmt.Sprint(now) != fmt.Sprint(kept) || len(now) != 1 {
			t.Fatalf("after the agent's restart %v runs; want %v", now, kept)
		}
		end()
		time.Sleep(11 * time.Hour)
		last := w.containers("web")
		if len(last) != 1 || last[0] == kept[0] || len(w.containers("db")) != 0 {
			t.Fatalf("after a day %v and %v run; want the first alone, in a new container", last, w.containers("db"))
		}

		c = Start(t, Options{Dir: c.Dir, With: c})
		defer c.Stop()
		w.link.set(c)
		c.Eventually("the fenced pod runs anew", func() error {
			if len(w.containers("db")) != 1 {
				return fmt.Errorf("%v", w.containers("db"))
			}
			return nil
		})
		time.Sleep(2 * time.Minute)
		if now := w.containers("web"); fmt.Sprint(now) != fmt.Sprint(last) {
			t.Errorf("back at the server %v runs, %v did", now, last)
		}
		if after := webPod(t, c); after.UID != before.UID || after.Status.Phase != corev1.PodRunning || after.Status.ContainerStatuses[0].RestartCount != 2 {
			t.Errorf("the pod is %s, %s, restarted %d times; want %s, Running, twice", after.UID, after.Status.Phase, after.Status.ContainerStatuses[0].RestartCount, before.UID)
		}
	})
}

// webPod is the one pod of the Deployment.
func webPod(t *testing.T, c *Cluster) *corev1.Pod {
	t.Helper()
	var list corev1.PodList
	if err := c.Client.List(t.Context(), &list, ctrlclient.InNamespace("default"), ctrlclient.MatchingLabels{"app": "web"}); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 {
		t.Fatalf("there are %d pods", len(list.Items))
	}
	return list.Items[0].DeepCopy()
}
