package fairness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	"k8s.io/apiserver/pkg/authentication/user"
)

func someone(name string, groups ...string) *user.DefaultInfo {
	return &user.DefaultInfo{Name: name, Groups: append(groups, user.AllAuthenticated)}
}

func mustNew(t testing.TB, opts Options) *Dispatcher {
	t.Helper()
	d, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestSchemas: the schemas of a new cluster match as upstream says in their descriptions.
func TestSchemas(t *testing.T) {
	d := mustNew(t, Options{})
	account := func(namespace, name string) *user.DefaultInfo {
		return someone("system:serviceaccount:"+namespace+":"+name, "system:serviceaccounts", "system:serviceaccounts:"+namespace)
	}
	node := someone("system:node:n1", "system:nodes")
	for name, tc := range map[string]struct {
		request       Request
		schema, level string
	}{
		"administrator":  {Request{User: someone("root", "system:masters"), Verb: "list", IsResource: true, Resource: "pods"}, "exempt", "exempt"},
		"health":         {Request{User: &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}, Verb: "get", Path: "/healthz"}, "probes", "exempt"},
		"someone":        {Request{User: someone("ann"), Verb: "get", IsResource: true, Resource: "pods", Namespace: "default"}, "global-default", "global-default"},
		"account":        {Request{User: account("shop", "web"), Verb: "get", IsResource: true, Resource: "pods", Namespace: "shop"}, "service-accounts", "workload-low"},
		"system account": {Request{User: account("kube-system", "gc"), Verb: "get", IsResource: true, Resource: "pods", Namespace: "shop"}, "kube-system-service-accounts", "workload-high"},
		"node":           {Request{User: node, Verb: "get", IsResource: true, Resource: "pods", Namespace: "shop"}, "system-nodes", "system"},
		"node's status":  {Request{User: node, Verb: "patch", IsResource: true, Resource: "nodes", Subresource: "status"}, "system-node-high", "node-high"},
		"node's lease":   {Request{User: node, Verb: "update", IsResource: true, Group: "coordination.k8s.io", Resource: "leases", Namespace: "kube-node-lease"}, "system-node-high", "node-high"},
		"scheduler":      {Request{User: someone("system:kube-scheduler"), Verb: "create", IsResource: true, Resource: "pods", Subresource: "binding", Namespace: "shop"}, "kube-scheduler", "workload-high"},
		"leader":         {Request{User: someone("system:kube-scheduler"), Verb: "update", IsResource: true, Group: "coordination.k8s.io", Resource: "leases", Namespace: "kube-system"}, "system-leader-election", "leader-election"},
		"anonymous":      {Request{User: &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}, Verb: "get", Path: "/api"}, "global-default", "global-default"},
	} {
		t.Run(name, func(t *testing.T) {
			ticket, err := d.Acquire(t.Context(), &tc.request)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Release(&ticket)
			if schema, level := ticket.Schema(); schema != tc.schema || level != tc.level {
				t.Errorf("%s of %s, want %s of %s", schema, level, tc.schema, tc.level)
			}
		})
	}
}

// load sends requests of a user, each as soon as one before it ends, and counts what happens to them.
type load struct {
	user     *user.DefaultInfo
	parallel int
	each     time.Duration
	width    int

	mu              sync.Mutex // guards the fields below
	served, refused int
	worst           time.Duration
}

func (l *load) run(ctx context.Context, d *Dispatcher, group *sync.WaitGroup) {
	for range l.parallel {
		group.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				ticket, err := d.Acquire(ctx, &Request{User: l.user, Verb: "list", IsResource: true, Resource: "pods", Namespace: "default", Width: l.width})
				waited := time.Since(start)
				if err == nil {
					time.Sleep(l.each)
					d.Release(&ticket)
				} else if ctx.Err() == nil {
					time.Sleep(time.Second) // as Retry-After says
				}
				l.mu.Lock()
				switch {
				case err == nil:
					l.served++
					l.worst = max(l.worst, waited)
				case ctx.Err() == nil:
					l.refused++
				}
				l.mu.Unlock()
			}
		})
	}
}

// TestNoisyClient: one client with a thousand requests at once does not keep others of its own level from being served
// soon, nor nodes and the administrator from being served at once.
func TestNoisyClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustNew(t, Options{Seats: 60})
		noisy := &load{user: someone("noisy"), parallel: 1000, each: 50 * time.Millisecond, width: 2}
		quiet := &load{user: someone("quiet"), parallel: 1, each: 10 * time.Millisecond}
		other := &load{user: someone("other"), parallel: 2, each: 10 * time.Millisecond}
		nodes := &load{user: someone("system:node:n1", "system:nodes"), parallel: 5, each: 10 * time.Millisecond}
		root := &load{user: someone("root", "system:masters"), parallel: 5, each: 10 * time.Millisecond}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var group sync.WaitGroup
		noisy.run(ctx, d, &group)
		time.Sleep(5 * time.Second)
		for _, l := range []*load{quiet, other, nodes, root} {
			l.run(ctx, d, &group)
		}
		group.Wait()
		t.Logf("noisy %d served %d refused; quiet %d, worst wait %v; other %d, %v; nodes %d, %v; root %d, %v",
			noisy.served, noisy.refused, quiet.served, quiet.worst, other.served, other.worst, nodes.served, nodes.worst, root.served, root.worst)
		if quiet.refused+other.refused+nodes.refused+root.refused > 0 {
			t.Errorf("refused: quiet %d, other %d, nodes %d, root %d", quiet.refused, other.refused, nodes.refused, root.refused)
		}
		if limit := 500 * time.Millisecond; quiet.worst > limit || other.worst > limit {
			t.Errorf("a quiet client waited %v, another %v; want at most %v", quiet.worst, other.worst, limit)
		}
		if nodes.worst > 10*time.Millisecond || root.worst > 0 {
			t.Errorf("a node waited %v, the administrator %v", nodes.worst, root.worst)
		}
		if noisy.served < 1000 {
			t.Errorf("the noisy client was served %d times: what nobody else needs should be its own", noisy.served)
		}
		if d.executing != 0 || d.waiting != 0 {
			t.Errorf("%d seats are taken and %d wait at the end", d.executing, d.waiting)
		}
	})
}

// TestFairShares: two busy clients of one level get about as much service, whatever their requests take.
func TestFairShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustNew(t, Options{Seats: 60})
		short := &load{user: someone("short"), parallel: 60, each: 10 * time.Millisecond}
		long := &load{user: someone("long"), parallel: 60, each: 100 * time.Millisecond}
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var group sync.WaitGroup
		short.run(ctx, d, &group)
		long.run(ctx, d, &group)
		group.Wait()
		a, b := float64(short.served)*0.01, float64(long.served)*0.1
		t.Logf("seconds of service: %.0f and %.0f", a, b)
		if a < b/2 || b < a/2 {
			t.Errorf("one client got %.0f s of service, the other %.0f s", a, b)
		}
	})
}

// TestBorrowing: a level uses what others have to lend, and they get their own back at once.
func TestBorrowing(t *testing.T) {
	d := mustNew(t, Options{Seats: 245}) // seats are shares
	var tickets []Ticket
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // who would have to wait is refused
	for {
		ticket, err := d.Acquire(ctx, &Request{User: someone("ann"), Verb: "get", IsResource: true, Resource: "pods"})
		if err != nil {
			break
		}
		tickets = append(tickets, ticket)
	}
	// Nominal are 20; lendable: system 10, node-high 10, leader-election 0, workload-high 20, workload-low 90, catch-all 0.
	if want := 20 + 10 + 10 + 20 + 90; len(tickets) != want {
		t.Errorf("global-default got %d seats, want %d", len(tickets), want)
	}
	node := &Request{User: someone("system:node:n1", "system:nodes"), Verb: "get", IsResource: true, Resource: "pods"}
	for i := range 30 {
		if _, err := d.Acquire(ctx, node); err != nil {
			t.Fatalf("a node got %d of its level's 30 seats: %v", i, err)
		}
	}
	if _, err := d.Acquire(ctx, node); err == nil {
		t.Error("there was one more to borrow")
	}
	for i := range tickets {
		d.Release(&tickets[i])
		d.Release(&tickets[i]) // twice is once
	}
	if d.executing != 30 {
		t.Errorf("%d seats are taken, want 30", d.executing)
	}
}

// TestLimits: a full queue and a long wait are refused, and leave nothing behind.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := mustNew(t, Options{Seats: 1, MaxWait: 3 * time.Second})
		level := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "one"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
			Type: flowcontrolv1.PriorityLevelEnablementLimited, Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{LimitResponse: flowcontrolv1.LimitResponse{
				Type: flowcontrolv1.LimitResponseTypeQueue, Queuing: &flowcontrolv1.QueuingConfiguration{Queues: 1, HandSize: 1, QueueLengthLimit: 2}}}}}
		schema := bootstrap.MandatoryFlowSchemaCatchAll.DeepCopy()
		schema.Name, schema.UID, schema.Spec.PriorityLevelConfiguration.Name, schema.Spec.MatchingPrecedence = "mine", "u1", "one", 1
		d.Configure([]*flowcontrolv1.FlowSchema{schema}, []*flowcontrolv1.PriorityLevelConfiguration{level})
		request := &Request{User: someone("ann"), Verb: "get", IsResource: true, Resource: "pods"}
		first, err := d.Acquire(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		if flow, _ := first.UIDs(); len(flow) != 1 || flow[0] != "u1" {
			t.Errorf("UIDs = %v", flow)
		}
		results := make(chan error, 2)
		for range 2 {
			go func() {
				_, err := d.Acquire(t.Context(), request)
				results <- err
			}()
		}
		synctest.Wait()
		if _, err := d.Acquire(t.Context(), request); !errors.Is(err, ErrQueueFull) {
			t.Errorf("the third that waits: %v", err)
		}
		for range 2 {
			if err := <-results; !errors.Is(err, ErrTimeout) {
				t.Errorf("after 3 s: %v", err)
			}
		}
		if d.waiting != 0 || d.levels["one"].waiting != 0 {
			t.Errorf("%d wait", d.waiting)
		}
		go func() {
			ticket, err := d.Acquire(t.Context(), request)
			d.Release(&ticket)
			results <- err
		}()
		synctest.Wait()
		// The level goes while somebody waits in it: he is served all the same.
		d.Configure(nil, nil)
		d.Release(&first)
		if err := <-results; err != nil {
			t.Errorf("who waited in a level that is gone: %v", err)
		}
	})
}

// TestRandom: whatever happens, seats and queues add up, and everybody gets an answer.
func TestRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test's
		d := mustNew(t, Options{Seats: 20, MaxWait: 2 * time.Second})
		var group sync.WaitGroup
		for i := range 3000 {
			who, width, takes, gives := someone(fmt.Sprintf("u%d", random.IntN(20))), 1+random.IntN(10), time.Duration(random.IntN(100))*time.Millisecond, random.IntN(10) == 0
			if i%100 == 50 {
				d.Configure(bootstrap.SuggestedFlowSchemas, bootstrap.SuggestedPriorityLevelConfigurations[random.IntN(3):])
			}
			group.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if gives {
					time.AfterFunc(takes, cancel)
				}
				ticket, err := d.Acquire(ctx, &Request{User: who, Verb: "list", IsResource: true, Resource: "pods", Width: width})
				if err == nil {
					time.Sleep(takes)
					d.Release(&ticket)
				}
			})
			time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond)
		}
		group.Wait()
		if d.executing != 0 || d.waiting != 0 {
			t.Errorf("%d seats are taken, %d wait", d.executing, d.waiting)
		}
		for _, l := range d.limited {
			if l.executing != 0 || l.waiting != 0 {
				t.Errorf("level %s: %d seats are taken, %d wait", l.name, l.executing, l.waiting)
			}
		}
	})
}

func BenchmarkAcquire(b *testing.B) {
	for name, who := range map[string]*user.DefaultInfo{"user": someone("ann"), "admin": someone("root", "system:masters"), "account": someone("system:serviceaccount:shop:web", "system:serviceaccounts", "system:serviceaccounts:shop")} {
		b.Run(name, func(b *testing.B) {
			d := mustNew(b, Options{})
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					ticket, err := d.Acquire(context.Background(), &Request{User: who, Verb: "get", IsResource: true, Resource: "configmaps", Namespace: "shop"})
					if err != nil {
						b.Error(err)
					}
					d.Release(&ticket)
				}
			})
		})
	}
}
