//go:build linux

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// seedEnv repeats the moments of an earlier run.
const seedEnv = "GANTRY_E2E_SEED"

// TestWritesSurviveKill kills the main process while many write. Each write that was acknowledged is
// there afterwards.
func TestWritesSurviveKill(t *testing.T) {
	seed, err := strconv.ParseUint(cmp.Or(os.Getenv(seedEnv), strconv.Itoa(os.Getpid())), 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", seedEnv, err)
	}
	random := rand.New(rand.NewPCG(seed, 1))
	c := newCluster(t)
	c.up(t)
	created := make(map[string]bool)
	counters := make(map[string]int)
	for round := range 3 {
		w := startWriters(c.client(t), round)
		time.Sleep(300*time.Millisecond + time.Duration(random.IntN(1200))*time.Millisecond) // the moment is the test
		c.kill(t, syscall.SIGKILL)
		w.stop()
		for _, name := range w.created {
			created[name] = true
		}
		for name, value := range w.counters {
			counters[name] = max(counters[name], value)
		}
		c.up(t)
		c.checkWrites(t, created, counters)
	}
	if len(created) < 100 {
		t.Errorf("only %d writes were acknowledged", len(created))
	}
	if t.Failed() {
		t.Logf("repeat with %s=%d", seedEnv, seed)
	}
}

// checkWrites compares what is there with what was acknowledged.
func (c *cluster) checkWrites(t *testing.T, created map[string]bool, counters map[string]int) {
	t.Helper()
	list, err := c.client(t).CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]*corev1.ConfigMap, len(list.Items))
	for i := range list.Items {
		there[list.Items[i].Name] = &list.Items[i]
	}
	missing := 0
	for name := range created {
		if there[name] == nil {
			missing++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d acknowledged objects are missing", missing, len(created))
	}
	for name, want := range counters {
		if there[name] == nil {
			t.Errorf("%s is missing", name)
		} else if got, err := strconv.Atoi(there[name].Data["count"]); err != nil || got < want {
			t.Errorf("%s is %d, and %d was acknowledged (%v)", name, got, want, err)
		}
	}
}

// writers create objects and count in others until the API is gone.
type writers struct {
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	created  []string
	counters map[string]int
}

func startWriters(client kubernetes.Interface, round int) *writers {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writers{cancel: cancel, counters: make(map[string]int)}
	maps := client.CoreV1().ConfigMaps("default")
	for i := range 6 {
		w.group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("write-%d-%d-%d", round, i, n)
				_, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
				if err != nil {
					return
				}
				w.mu.Lock()
				w.created = append(w.created, name)
				w.mu.Unlock()
			}
		})
	}
	for i := range 2 {
		w.group.Go(func() {
			name := fmt.Sprintf("counter-%d-%d", round, i)
			counter, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			for n := 1; err == nil && ctx.Err() == nil; n++ {
				counter.Data = map[string]string{"count": strconv.Itoa(n)}
				if counter, err = maps.Update(ctx, counter, metav1.UpdateOptions{}); err == nil {
					w.mu.Lock()
					w.counters[name] = n
					w.mu.Unlock()
				}
			}
		})
	}
	return w
}

func (w *writers) stop() {
	w.cancel()
	w.group.Wait()
}
