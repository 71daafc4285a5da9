//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

const (
	getNamespace    = "bench-get"
	createNamespace = "bench-create"
	patchNamespace  = "bench-patch"
	podNamespace    = "bench-pods"
	manyNamespace   = "bench-pods-10k"
	watchNamespace  = "bench-watch"

	getObjects   = 10_000
	patchObjects = 1_000
	podObjects   = 2_000
	manyPods     = 10_000
	listWorkers  = 4
	manyWorkers  = 2 // of lists of manyPods
	watchers     = 32
)

// request is a kind of request whose rate and cost are measured.
type request struct {
	part    string
	name    string
	workers int // 0: as the command line says
	rate    target
	cpu     target
	// prepare makes what op needs and returns it, with what undoes a round (or nil).
	prepare func(ctx context.Context, s *system) (op operation, undo func(context.Context) error, err error)
}

func requests() []request {
	write := target{ratioLeast, 3, ""}
	writeCPU := target{ratioMost, 0.25, "1/4"}
	listRate, listCPU := target{ratioLeast, 5, ""}, target{ratioMost, 0.1, "1/10"}
	manyRate := target{ratioLeast, 8, ""}
	return []request{
		{"get", "GET a ConfigMap", 0, target{ratioLeast, 4, ""}, target{ratioMost, 1.0 / 6, "1/6"}, prepareGet},
		{"create", "CREATE a ConfigMap", 0, write, writeCPU, prepareCreate},
		{"patch", "merge PATCH of a ConfigMap", 0, write, writeCPU, preparePatch},
		{"status", "status update of a pod", 0, write, writeCPU, prepareStatus},
		{"list", "LIST 2,000 pods", listWorkers, listRate, listCPU, prepareList(podNamespace, podObjects, true)},
		{"list", "LIST 2,000 pods, gzip", listWorkers, target{}, target{}, prepareList(podNamespace, podObjects, false)},
		{"list10k", "LIST 10,000 pods", manyWorkers, manyRate, target{}, prepareList(manyNamespace, manyPods, true)},
		{"list10k", "LIST 10,000 pods, gzip", manyWorkers, manyRate, target{}, prepareList(manyNamespace, manyPods, false)},
		{"apply", "server-side apply of a ConfigMap", 0, write, target{}, prepareApply(appliedConfigMap())},
		{"apply", "server-side apply of a Deployment", 0, write, target{}, prepareApply(appliedDeployment())},
	}
}

// once runs make for a system the first time that it is asked for.
func (s *system) once(key string, make func() error) error {
	if s.has[key] {
		return nil
	}
	if err := make(); err != nil {
		return fmt.Errorf("prepare %s of %s: %w", key, s.name, err)
	}
	s.has[key] = true
	return nil
}

func objectName(i int) string { return fmt.Sprintf("object-%05d", i) }

// fillConfigMaps makes count ConfigMaps in a namespace.
func (s *system) fillConfigMaps(ctx context.Context, namespace string, count int) error {
	return s.once(namespace, func() error {
		if err := s.namespace(ctx, namespace); err != nil {
			return err
		}
		return fill(ctx, 32, count, func(ctx context.Context, i int) error {
			_, err := s.loader.CoreV1().ConfigMaps(namespace).Create(ctx, configMap(objectName(i), 0), metav1.CreateOptions{})
			return err
		})
	})
}

func prepareGet(ctx context.Context, s *system) (operation, func(context.Context) error, error) {
	if err := s.fillConfigMaps(ctx, getNamespace, getObjects); err != nil {
		return nil, nil, err
	}
	configMaps := s.loader.CoreV1().ConfigMaps(getNamespace)
	return func(ctx context.Context, _, _ int) error {
		_, err := configMaps.Get(ctx, objectName(rand.IntN(getObjects)), metav1.GetOptions{})
		return err
	}, nil, nil
}

func prepareCreate(ctx context.Context, s *system) (operation, func(context.Context) error, error) {
	if err := s.once(createNamespace, func() error { return s.namespace(ctx, createNamespace) }); err != nil {
		return nil, nil, err
	}
	configMaps := s.loader.CoreV1().ConfigMaps(createNamespace)
	var round atomic.Int64
	create := func(ctx context.Context, worker, i int) error {
		name := fmt.Sprintf("r%d-w%02d-%06d", round.Load(), worker, i)
		_, err := configMaps.Create(ctx, configMap(name, i), metav1.CreateOptions{})
		return err
	}
	undo := func(ctx context.Context) error {
		round.Add(1)
		return configMaps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app=bench"})
	}
	return create, undo, nil
}

func preparePatch(ctx context.Context, s *system) (operation, func(context.Context) error, error) {
	if err := s.fillConfigMaps(ctx, patchNamespace, patchObjects); err != nil {
		return nil, nil, err
	}
	configMaps := s.loader.CoreV1().ConfigMaps(patchNamespace)
	var revision atomic.Int64
	return func(ctx context.Context, _, _ int) error {
		body := fmt.Appendf(nil, `{"data":{"revision":"%d"}}`, revision.Add(1))
		_, err := configMaps.Patch(ctx, objectName(rand.IntN(patchObjects)), types.MergePatchType, body, metav1.PatchOptions{})
		return err
	}, nil, nil
}

// fillPods makes pods that run on the simulated nodes, as far as the API shows.
func (s *system) fillPods(ctx context.Context, namespace string, count int) error {
	return s.once(namespace, func() error {
		if err := s.addNodes(ctx, nodeCount); err != nil {
			return err
		}
		if err := s.namespace(ctx, namespace); err != nil {
			return err
		}
		pods, now := s.loader.CoreV1().Pods(namespace), metav1.Now()
		return fill(ctx, 32, count, func(ctx context.Context, i int) error {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: objectName(i), Labels: map[string]string{"app": "bench"}}, Spec: podSpec()}
			pod.Spec.NodeName = nodeName(i % nodeCount)
			made, err := pods.Create(ctx, pod, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			made.Status = runningStatus(now, 0)
			_, err = pods.UpdateStatus(ctx, made, metav1.UpdateOptions{})
			return err
		})
	})
}

// prepareStatus gives each worker pods of its own, so that no update meets a conflict.
func prepareStatus(ctx context.Context, s *system) (operation, func(context.Context) error, error) {
	if err := s.fillPods(ctx, podNamespace, podObjects); err != nil {
		return nil, nil, err
	}
	pods := s.loader.CoreV1().Pods(podNamespace)
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("list the pods of %s: %w", s.name, err)
	}
	items := list.Items
	each := len(items) / maxWorkers
	return func(ctx context.Context, worker, i int) error {
		mine := &items[worker*each+i%each]
		mine.Status.ContainerStatuses[0].RestartCount++
		mine.Status.Conditions[2].Message = fmt.Sprint("change ", i)
		updated, err := pods.UpdateStatus(ctx, mine, metav1.UpdateOptions{})
		if err == nil {
			*mine = *updated
		}
		return err
	}, nil, nil
}

// prepareList reads the list as bytes. A plain list is one that the client does not want compressed.
func prepareList(namespace string, count int, plain bool) func(context.Context, *system) (operation, func(context.Context) error, error) {
	return func(ctx context.Context, s *system) (operation, func(context.Context) error, error) {
		if err := s.fillPods(ctx, namespace, count); err != nil {
			return nil, nil, err
		}
		config := rest.CopyConfig(s.user)
		config.DisableCompression = plain
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			return nil, nil, fmt.Errorf("make a client of %s: %w", s.name, err)
		}
		url := config.Host + "/api/v1/namespaces/" + namespace + "/pods"
		header := http.Header{"Accept": {"application/json"}}
		if !plain { // set by hand, so that the transport hands the bytes on as they are
			header.Set("Accept-Encoding", "gzip")
		}
		return func(ctx context.Context, _, _ int) error {
			body, err := open(ctx, client, url, header)
			if err != nil {
				return err
			}
			defer func() { _ = body.Close() }()
			read, err := io.Copy(io.Discard, body)
			if err == nil && read < 10_000 {
				err = fmt.Errorf("a list of %d bytes cannot hold %d pods", read, count)
			}
			return err
		}, nil, nil
	}
}

// open sends a GET and returns the body of the answer.
func open(ctx context.Context, client *http.Client, url string, header http.Header) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("make a request: %w", err)
	}
	request.Header = header
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		_ = response.Body.Close()
		return nil, fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return response.Body, nil
}

// lines counts the lines of a watch until it ends; each is one event.
func lines(body io.Reader, seen func()) error {
	reader := bufio.NewReaderSize(body, 64<<10)
	for {
		_, err := reader.ReadSlice('\n')
		switch {
		case err == nil:
			seen()
		case errors.Is(err, bufio.ErrBufferFull): // the rest of the line follows
		default:
			return err
		}
	}
}

// watchOutcome is what a round of watching showed.
type watchOutcome struct {
	delivered float64 // events a second, of all watchers together
	cpu       float64 // microseconds of the servers' CPU time a delivery
	latencies []float64
	others    float64
}

// measureWatch lets watchers follow a namespace in which workers patch ConfigMaps for the round's
// length, then measures how long single patches take to reach one watcher.
func measureWatch(ctx context.Context, s *system, opts options) (watchOutcome, error) {
	if err := s.fillConfigMaps(ctx, watchNamespace, patchObjects); err != nil {
		return watchOutcome{}, err
	}
	client, err := rest.HTTPClientFor(s.user)
	if err != nil {
		return watchOutcome{}, fmt.Errorf("make a client of %s: %w", s.name, err)
	}
	list, err := s.loader.CoreV1().ConfigMaps(watchNamespace).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return watchOutcome{}, fmt.Errorf("list the ConfigMaps of %s: %w", s.name, err)
	}
	url := s.user.Host + "/api/v1/namespaces/" + watchNamespace + "/configmaps?watch=1&resourceVersion=" + list.ResourceVersion
	var (
		events atomic.Int64
		group  sync.WaitGroup
		result watchOutcome
	)
	watchCtx, cancel := context.WithCancel(ctx)
	defer group.Wait()
	defer cancel()
	for range watchers {
		body, err := open(watchCtx, client, url, http.Header{"Accept": {"application/json"}})
		if err != nil {
			return watchOutcome{}, err
		}
		group.Go(func() {
			defer func() { _ = body.Close() }()
			_ = lines(body, func() { events.Add(1) }) // ends with watchCtx
		})
	}
	out, err := measure(ctx, s, load{4, opts.round, maxOperations / 10}, watchedPatch(s))
	if err != nil {
		return watchOutcome{}, err
	}
	want := int64(out.count * watchers)
	behind := time.Now()
	if err := await(ctx, s.check, func(context.Context) error {
		if have := events.Load(); have < want {
			return fmt.Errorf("%d of %d events came", have, want)
		}
		return nil
	}); err != nil {
		return watchOutcome{}, err
	}
	result.delivered = float64(want) / (out.elapsed + time.Since(behind)).Seconds()
	result.cpu = float64(out.serverCPU.Microseconds()) / float64(want)
	result.others = out.others
	cancel()
	group.Wait()
	result.latencies, err = watchLatency(ctx, s)
	return result, err
}

// watchedPatch patches random ConfigMaps of the watched namespace.
func watchedPatch(s *system) operation {
	configMaps := s.loader.CoreV1().ConfigMaps(watchNamespace)
	var revision atomic.Int64
	revision.Store(time.Now().UnixNano())
	return func(ctx context.Context, _, _ int) error {
		body := fmt.Appendf(nil, `{"data":{"revision":"%d"}}`, revision.Add(1))
		_, err := configMaps.Patch(ctx, objectName(rand.IntN(patchObjects)), types.MergePatchType, body, metav1.PatchOptions{})
		return err
	}
}

// watchLatency is the time in ms from sending a patch until a typed watcher has its event, one by one.
func watchLatency(ctx context.Context, s *system) ([]float64, error) {
	configMaps := s.loader.CoreV1().ConfigMaps(watchNamespace)
	list, err := configMaps.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return nil, fmt.Errorf("list the ConfigMaps of %s: %w", s.name, err)
	}
	watch, err := configMaps.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		return nil, fmt.Errorf("watch the ConfigMaps of %s: %w", s.name, err)
	}
	defer watch.Stop()
	patch := watchedPatch(s)
	var latencies []time.Duration
	for i := range 200 {
		begun := time.Now()
		done := make(chan error, 1)
		go func() { done <- patch(ctx, 0, i) }()
		select {
		case _, ok := <-watch.ResultChan():
			if !ok {
				return nil, fmt.Errorf("the watch of %s ended", s.name)
			}
		case <-time.After(startTimeout):
			return nil, fmt.Errorf("no event came from %s", s.name)
		}
		latencies = append(latencies, time.Since(begun))
		if err := <-done; err != nil {
			return nil, err
		}
	}
	return milliseconds(latencies), nil
}
