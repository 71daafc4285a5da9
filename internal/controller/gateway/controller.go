package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/controller/gateway/definitions"
	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/lifecycle"
	"gantry.dev/gantry/internal/network/routes/compile"
)

// Options tunes a Controller. HTTPPort and HTTPSPort are required.
type Options struct {
	HTTPPort, HTTPSPort uint16        // of the Gateway that every cluster has
	Public              []netip.Addr  // see compile.Options
	Served              func()        // called once, when the Gateway API's kinds are served; may be nil
	Interval            time.Duration // between two looks at everything; default 50ms
	Keep                time.Duration // how long the certificate of a host that nobody needs is kept; default 7 days
	Log                 *slog.Logger  // default: discards
}

// Controller writes status. Make one with New.
type Controller struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	log       *slog.Logger
	wake      chan struct{}

	mu      sync.Mutex // guards the fields below
	objects *compile.Objects
	last    *compile.Result

	told      map[string][]string // what the last events told, by reason; only Run touches it and the next
	installed bool                // definitions were written by this process
}

// New checks opts and returns a Controller; call Run. The client must know the Gateway API's types.
func New(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*Controller, error) {
	if c == nil || informers == nil || recorder == nil || opts.HTTPPort == 0 || opts.HTTPSPort == 0 {
		return nil, errors.New("gateway: client, informers, recorder, HTTPPort and HTTPSPort are required")
	}
	opts.Interval = cmp.Or(opts.Interval, 50*time.Millisecond)
	opts.Keep = cmp.Or(opts.Keep, 7*24*time.Hour)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Controller{client: c, informers: informers, recorder: recorder, opts: opts, log: opts.Log,
		wake: make(chan struct{}, 1), objects: compile.NewObjects(), told: map[string][]string{}}, nil
}

// maxDelay bounds the wait after an error.
const maxDelay = 30 * time.Second

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	if !c.insist(ctx, "preparing the gateway's objects", c.prepare) {
		return nil
	}
	if c.opts.Served != nil {
		c.opts.Served()
	}
	var subs []informer.Subscription
	for _, kind := range compile.Kinds() {
		subs = append(subs, informer.Subscription{Object: kind, OnEvent: c.event})
	}
	stop, err := informer.Subscribe(ctx, c.informers, subs...)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("controller gateway: %w", err)
	}
	defer stop()
	timer := time.NewTicker(time.Hour) // certificates that nobody needs are looked at now and then
	defer timer.Stop()
	for {
		if !c.insist(ctx, "writing the gateway's status", c.reconcile) || !lifecycle.Pause(ctx, c.opts.Interval) {
			return nil
		}
		if c.installed { // reading definitions leaves megabytes behind, once in a cluster's life
			c.installed = false
			debug.FreeOSMemory()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-c.wake:
		case <-timer.C:
		}
	}
}

// insist repeats what fails, less and less often, until ctx ends: then it is false.
func (c *Controller) insist(ctx context.Context, doing string, try func(context.Context) error) bool {
	for delay := 50 * time.Millisecond; ; delay = min(2*delay, maxDelay) {
		err := try(ctx)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		level := slog.LevelWarn
		if apierrors.IsConflict(err) {
			level, delay = slog.LevelDebug, 50*time.Millisecond // the next look sees who was faster
		}
		c.log.Log(ctx, level, "the gateway's objects will be looked at again", "doing", doing, "error", err)
		if !lifecycle.Pause(ctx, delay) {
			return false
		}
	}
}

// prepare makes what every cluster with a gateway has.
func (c *Controller) prepare(ctx context.Context) error {
	wrote, err := definitions.Install(ctx, c.client)
	c.installed = c.installed || wrote
	if err != nil {
		return err
	}
	return c.makeDefaults(ctx)
}

// event notes what changed.
func (c *Controller) event(old, current client.Object) {
	c.mu.Lock()
	c.objects.Put(old, current)
	matters := compile.Matters(c.last, old, current) || edited(old, current)
	c.mu.Unlock()
	if _, slice := either(old, current).(*discoveryv1.EndpointSlice); slice || !matters {
		return // status does not depend on endpoints
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func either(old, current client.Object) client.Object {
	if current != nil {
		return current
	}
	return old
}

// edited reports whether a certificate's Secret changed: it may be needed again.
func edited(old, current client.Object) bool {
	_, secret := either(old, current).(*corev1.Secret)
	return secret && current == nil
}

// reconcile looks at everything once.
func (c *Controller) reconcile(ctx context.Context) error {
	c.mu.Lock()
	result := compile.Compile(c.objects, compile.Options{HTTPPort: c.opts.HTTPPort, HTTPSPort: c.opts.HTTPSPort, Public: c.opts.Public})
	c.last = result
	c.mu.Unlock()
	err := errors.Join(c.writeStatus(ctx, result), c.wantCertificates(ctx, result.Hosts))
	c.tell("PortTaken", result.Trouble)
	c.tell("BadAnnotation", result.Wrong)
	return err
}

// tell makes an event of what a person has to mend, when it changes.
func (c *Controller) tell(reason string, what []string) {
	if slices.Equal(what, c.told[reason]) {
		return
	}
	c.told[reason] = what
	c.mu.Lock()
	gw := c.objects.Gateways[compile.Key{Namespace: compile.Namespace, Name: compile.ClassName}]
	c.mu.Unlock()
	if gw != nil && len(what) > 0 {
		c.recorder.Event(gw, corev1.EventTypeWarning, reason, strings.Join(what, "; "))
	}
}
