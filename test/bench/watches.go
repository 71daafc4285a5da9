//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
	watchesNamespace = "bench-watches"

	watchedPods     = 1000 // each on a node of its own
	watchClients    = 10   // that share the watches; a client opens one connection for about 100 of them
	watchWriters    = 32
	watchLine       = 64 << 10
	unfiltered      = 100
	unfilteredRate  = 100  // writes a second
	filteredRate    = 1000 // writes a second, each seen by one watcher
	deliveryPatient = 30 * time.Second
)

// watchCase is a number of watches and the writes that they see.
type watchCase struct {
	name     string
	watchers int
	rate     int // writes a second
	seenBy   int // watchers of each write
	url      func(round, watcher int) string
}

func watchCases() []watchCase {
	return []watchCase{
		{
			name: "1,000 WATCHes by node, 1,000 writes/s", watchers: watchedPods, rate: filteredRate, seenBy: 1,
			url: func(round, i int) string {
				return "/api/v1/pods?watch=1&fieldSelector=spec.nodeName%3D" + watchedNode(round, i)
			},
		},
		{
			name: "100 unfiltered WATCHes, 100 writes/s", watchers: unfiltered, rate: unfilteredRate, seenBy: unfiltered,
			url: func(int, int) string { return "/api/v1/pods?watch=1" },
		},
	}
}

// watchedNode is a node that there is only in the pods' spec. Each round has its own: upstream's pod collector removes
// pods of a node that it has missed for 40 seconds.
func watchedNode(round, i int) string { return fmt.Sprintf("watched-%d-%04d", round, i) }

func watchedPod(round, i int) string { return fmt.Sprintf("r%d-%04d", round, i) }

// measureManyWatches measures both cases in rounds that alternate between the systems.
func (b *bench) measureManyWatches(ctx context.Context, systems []*system) error {
	cases := watchCases()
	type rows struct{ rate, cpu, p50, p99, answer50, answer99 row }
	all := make([]rows, len(cases))
	for i, c := range cases {
		all[i] = rows{
			// The delays count only if the writes keep their rate; a tenth is left for the wait for the last events.
			rate:     row{Name: c.name + ": deliveries", Unit: "/s", Target: target{valueLeast, 0.9 * float64(c.rate*c.seenBy), ""}},
			cpu:      row{Name: c.name + ": server CPU a delivery", Unit: "µs"},
			p50:      row{Name: c.name + ": from sending the write, p50", Unit: "ms"},
			p99:      row{Name: c.name + ": from sending the write, p99", Unit: "ms"},
			answer50: row{Name: c.name + ": from the write's answer, p50", Unit: "ms"},
			answer99: row{Name: c.name + ": from the write's answer, p99", Unit: "ms", Target: target{valueMost, 50, ""}},
		}
	}
	for round := range b.opts.rounds {
		for _, s := range systems {
			b.say("round %d: many watches on %s", round+1, s.name)
			if err := s.fillWatched(ctx, round); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			for i, c := range cases {
				out, err := measureMany(ctx, s, c, round, b.opts.round)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", s.name, c.name, err)
				}
				all[i].rate.put(s, out.rate)
				all[i].cpu.put(s, out.cpu)
				all[i].p50.put(s, quantile(out.sinceSent, 0.5))
				all[i].p99.put(s, quantile(out.sinceSent, 0.99))
				all[i].answer50.put(s, quantile(out.sinceAnswer, 0.5))
				all[i].answer99.put(s, quantile(out.sinceAnswer, 0.99))
				b.noteOthers(c.name, out.others)
			}
			if err := s.removeWatched(ctx); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	for _, r := range all {
		b.add(r.rate, r.cpu, r.p50, r.p99, r.answer50, r.answer99)
	}
	return nil
}

// fillWatched makes a round's pods, one on each node.
func (s *system) fillWatched(ctx context.Context, round int) error {
	if err := s.once(watchesNamespace, func() error { return s.namespace(ctx, watchesNamespace) }); err != nil {
		return err
	}
	pods := s.loader.CoreV1().Pods(watchesNamespace)
	return fill(ctx, watchWriters, watchedPods, func(ctx context.Context, i int) error {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: watchedPod(round, i), Labels: map[string]string{"app": "bench"}}, Spec: podSpec()}
		pod.Spec.NodeName = watchedNode(round, i)
		_, err := pods.Create(ctx, pod, metav1.CreateOptions{})
		return err
	})
}

func (s *system) removeWatched(ctx context.Context) error {
	none := int64(0)
	err := s.loader.CoreV1().Pods(watchesNamespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &none}, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("remove the watched pods: %w", err)
	}
	return nil
}

// manyOutcome is what one round of a case showed.
type manyOutcome struct {
	delays
	rate   float64 // deliveries a second
	cpu    float64 // microseconds of the servers' CPU time a delivery, with the write
	others float64
}

// measureMany opens the watches, writes at the case's rate for length, and waits for each event.
func measureMany(ctx context.Context, s *system, c watchCase, round int, length time.Duration) (manyOutcome, error) {
	seen, err := openMany(ctx, s, c, round)
	if err != nil {
		return manyOutcome{}, err
	}
	defer seen.close()
	before, err := account(s)
	if err != nil {
		return manyOutcome{}, err
	}
	begun := time.Now()
	writes, err := writeAtRate(ctx, s, c.rate, round, length)
	if err != nil {
		return manyOutcome{}, err
	}
	want := int64(len(writes) * c.seenBy)
	waiting, cancel := context.WithTimeout(ctx, deliveryPatient)
	defer cancel()
	lost := await(waiting, s.check, func(context.Context) error {
		if have := seen.count.Load(); have < want {
			return fmt.Errorf("%d of %d events came", have, want)
		}
		return nil
	})
	elapsed := time.Since(begun)
	after, err := account(s)
	if err := errors.Join(lost, err); err != nil {
		return manyOutcome{}, err
	}
	seen.close()
	took, err := deliveries(writes, seen.arrivals, c.seenBy)
	sum := after.since(before, make([]time.Duration, max(1, want)), elapsed)
	return manyOutcome{delays: took, rate: sum.rate, cpu: sum.cpu, others: sum.others}, err
}

// openWatches are watches that are being read.
type openWatches struct {
	arrivals [][]arrival // by watcher, read after close
	count    atomic.Int64
	group    sync.WaitGroup
	cancel   context.CancelFunc
	clients  []*http.Client
}

// close ends the watches and waits for their readers. It may be called twice.
func (o *openWatches) close() {
	o.cancel()
	o.group.Wait()
	for _, client := range o.clients {
		client.CloseIdleConnections()
	}
}

// openMany opens the watches of a case over a few connections.
func openMany(ctx context.Context, s *system, c watchCase, round int) (*openWatches, error) {
	list, err := s.loader.CoreV1().Pods(watchesNamespace).List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return nil, fmt.Errorf("list the watched pods: %w", err)
	}
	watching, cancel := context.WithCancel(ctx)
	open := &openWatches{arrivals: make([][]arrival, c.watchers), cancel: cancel}
	for range watchClients {
		config := rest.CopyConfig(s.user)
		config.Dial = (&net.Dialer{}).DialContext // of its own, so that client-go shares no connection with others
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			open.close()
			return nil, fmt.Errorf("make a client of %s: %w", s.name, err)
		}
		open.clients = append(open.clients, client)
	}
	err = fill(ctx, watchWriters, c.watchers, func(_ context.Context, i int) error {
		url := s.user.Host + c.url(round, i) + "&resourceVersion=" + list.ResourceVersion
		body, err := openBody(watching, open.clients[i%watchClients], url)
		if err != nil {
			return err
		}
		open.group.Go(func() {
			defer func() { _ = body.Close() }()
			open.arrivals[i] = readArrivals(body, func() { open.count.Add(1) })
		})
		return nil
	})
	if err != nil {
		open.close()
		return nil, fmt.Errorf("open the watches: %w", err)
	}
	return open, nil
}

func openBody(ctx context.Context, client *http.Client, url string) (io.ReadCloser, error) {
	return open(ctx, client, url, http.Header{"Accept": {"application/json"}})
}

// readArrivals reads a watch to its end and returns the marked events; seen is called after each.
func readArrivals(body io.Reader, seen func()) []arrival {
	var arrivals []arrival
	reader := bufio.NewScanner(body)
	reader.Buffer(make([]byte, 8<<10), watchLine)
	for reader.Scan() {
		if write, ok := markOf(reader.Bytes()); ok {
			arrivals = append(arrivals, arrival{write, time.Now()})
			seen()
		}
	}
	return arrivals // ends with the watch's context
}

// writeAtRate patches the round's pods, one after the other, at a rate of so many a second; slower if the system
// is. It returns the writes by their number.
func writeAtRate(ctx context.Context, s *system, rate, round int, length time.Duration) ([]written, error) {
	total := int(length.Seconds() * float64(rate))
	writes := make([]written, total)
	pods := s.loader.CoreV1().Pods(watchesNamespace)
	begun := time.Now()
	var made atomic.Int64
	err := fill(ctx, watchWriters, total, func(ctx context.Context, i int) error {
		due := begun.Add(time.Duration(i) * time.Second / time.Duration(rate))
		if time.Since(begun) > 3*length {
			return nil // too slow for the rate; the rest is left out
		}
		select {
		case <-time.After(time.Until(due)):
		case <-ctx.Done():
			return ctx.Err()
		}
		body := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"%d"}}}`, writeMark, i)
		sent := time.Now()
		_, err := pods.Patch(ctx, watchedPod(round, i%watchedPods), types.MergePatchType, body, metav1.PatchOptions{})
		writes[i] = written{sent, time.Now()}
		made.Add(1)
		return err
	})
	for len(writes) > 0 && writes[len(writes)-1].sent.IsZero() {
		writes = writes[:len(writes)-1]
	}
	if err == nil && int(made.Load()) != len(writes) {
		err = fmt.Errorf("%d writes were made and %d numbered", made.Load(), len(writes))
	}
	return writes, err
}
