package certs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
	"gantry.dev/gantry/internal/network/routes/compile"
)

// Options tunes a Controller. The zero value issues from the cluster's own authority alone.
type Options struct {
	ACME    ACME
	Public  []netip.Addr                                                 // under which the Internet reaches the nodes, besides their own addresses
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error) // default: the system's resolver
	Log     *slog.Logger                                                 // default: discards
}

// Controller fills and renews. Make one with New.
type Controller struct {
	client    client.Client
	informers controller.Informers
	recorder  controller.Recorder
	opts      Options
	log       *slog.Logger
	loop      *controller.Loop

	authorityMu sync.Mutex // held while the authority is read or made

	acmeMu  sync.Mutex // guards the fields below
	acme    *acmez.Client
	account acme.Account
}

// New checks its arguments and returns a Controller; call Run.
func New(c client.Client, informers controller.Informers, recorder controller.Recorder, opts Options) (*Controller, error) {
	if c == nil || informers == nil || recorder == nil {
		return nil, errors.New("certs: client, informers and recorder are required")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if opts.Resolve == nil {
		opts.Resolve = addressesOf
	}
	out := &Controller{client: c, informers: informers, recorder: recorder, opts: opts, log: opts.Log}
	var err error
	out.loop, err = controller.NewLoop(controller.LoopOptions{Name: "certificates", Log: opts.Log, Reconcile: out.reconcile})
	if err != nil {
		return nil, err
	}
	out.loop.Watch(&corev1.Secret{}, func(_, current client.Object) {
		if current != nil && wanted(current) {
			out.loop.Add(controller.KeyOf(current))
		}
	})
	return out, nil
}

func wanted(obj client.Object) bool {
	return obj.GetNamespace() == compile.Namespace && obj.GetLabels()[compile.LabelCertificate] != "" && obj.GetAnnotations()[compile.AnnotationHost] != ""
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.informers) }

// maxWait makes sure that a clock that was set is noticed.
const maxWait = 6 * time.Hour

func (c *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	there := &corev1.Secret{}
	if err := c.client.Get(ctx, key, there); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if !wanted(there) {
		return 0, nil
	}
	host := there.Annotations[compile.AnnotationHost]
	todo := plan(there, host, issuerOf(host, c.opts.ACME.Directory, c.opts.Public), time.Now())
	next := there.DeepCopy()
	if todo.local {
		chain, keyPEM, err := c.issueLocal(ctx, host)
		if err != nil {
			return 0, err
		}
		fill(next, chain, keyPEM, IssuerLocal)
		if err := c.client.Update(ctx, next); err != nil {
			return 0, fmt.Errorf("keeping the certificate of %s: %w", host, err)
		}
		next = next.DeepCopy() // what was written is shared now
		c.log.Info("certificate issued", "host", host, "issuer", IssuerLocal, "expires", next.Annotations[AnnotationExpires])
	}
	if todo.acme {
		return c.byACME(ctx, next, host)
	}
	if todo.after == 0 { // a local one was made: the event of its write leads here again
		return 0, nil
	}
	return min(todo.after, maxWait), nil
}

// byACME checks what can be checked here, and then asks the authority.
func (c *Controller) byACME(ctx context.Context, secret *corev1.Secret, host string) (time.Duration, error) {
	problem, err := c.misdirected(ctx, host)
	if err != nil {
		return 0, err
	}
	if problem != "" {
		return dnsRetry, c.fail(ctx, secret, host, problem, failuresOf(secret), dnsRetry)
	}
	chain, keyPEM, err := c.issueACME(ctx, host)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		failures := failuresOf(secret) + 1
		wait := backoff(failures)
		if limited(err) {
			wait = max(wait, limitedWait)
		}
		return wait, c.fail(ctx, secret, host, err.Error(), failures, wait)
	}
	fill(secret, chain, keyPEM, c.opts.ACME.Directory)
	if err := c.client.Update(ctx, secret); err != nil {
		return 0, fmt.Errorf("keeping the certificate of %s: %w", host, err)
	}
	c.log.Info("certificate issued", "host", host, "issuer", c.opts.ACME.Directory, "expires", secret.Annotations[AnnotationExpires])
	c.recorder.Event(secret, corev1.EventTypeNormal, "Issued", "certificate for "+host+" until "+secret.Annotations[AnnotationExpires])
	return 0, nil
}

// misdirected says why a name does not lead here, "" if it does.
func (c *Controller) misdirected(ctx context.Context, host string) (string, error) {
	ours, err := c.addresses(ctx)
	if err != nil {
		return "", err
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "", nil
	}
	found, err := c.opts.Resolve(ctx, host)
	if err != nil {
		return fmt.Sprintf("looking %s up: %v", host, err), nil //nolint:nilerr // told to people, tried again
	}
	return pointsHere(host, found, ours), nil
}

// addresses are those of the nodes, and those that a setting names.
func (c *Controller) addresses(ctx context.Context) ([]netip.Addr, error) {
	out := append([]netip.Addr(nil), c.opts.Public...)
	var nodes corev1.NodeList
	if err := c.client.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	for i := range nodes.Items {
		for _, a := range nodes.Items[i].Status.Addresses {
			if addr, err := netip.ParseAddr(a.Address); err == nil {
				out = append(out, addr)
			}
		}
	}
	return out, nil
}

// fail notes why there is no certificate of the wanted issuer, and when it is tried again.
func (c *Controller) fail(ctx context.Context, secret *corev1.Secret, host, problem string, failures int, wait time.Duration) error {
	if secret.Annotations[AnnotationProblem] != problem {
		c.log.Warn("no certificate yet", "host", host, "problem", problem, "retryIn", wait)
		c.recorder.Event(secret, corev1.EventTypeWarning, "NotIssued", problem)
	}
	secret.Annotations[AnnotationProblem] = problem
	secret.Annotations[AnnotationRetryAt] = time.Now().Add(wait).UTC().Format(time.RFC3339)
	secret.Annotations[AnnotationFailures] = strconv.Itoa(failures)
	if err := c.client.Update(ctx, secret); err != nil {
		return fmt.Errorf("saying why %s has no certificate: %w", host, err)
	}
	return nil
}

// fill puts a certificate into a Secret.
func fill(secret *corev1.Secret, chain, keyPEM []byte, issuer string) {
	secret.Data = map[string][]byte{corev1.TLSCertKey: chain, corev1.TLSPrivateKeyKey: keyPEM}
	if secret.Annotations == nil {
		secret.Annotations = map[string]string{}
	}
	secret.Annotations[AnnotationIssuer] = issuer
	if leaf := leafOf(secret); leaf != nil {
		secret.Annotations[AnnotationExpires] = leaf.NotAfter.UTC().Format(time.RFC3339)
	}
	if issuer != IssuerLocal {
		for _, name := range []string{AnnotationProblem, AnnotationFailures, AnnotationRetryAt} {
			delete(secret.Annotations, name)
		}
	}
}
