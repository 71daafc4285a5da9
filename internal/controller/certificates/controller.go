package certificates

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/controller"
)

// Options tunes a Controller. Authority and Review are required.
type Options struct {
	// Authority is who signs, as it is now.
	Authority func() (*x509.Certificate, crypto.Signer)
	// Review says whether a subject may do something, as a SubjectAccessReview does.
	Review func(ctx context.Context, spec authorizationv1.SubjectAccessReviewSpec) (bool, error)
	// Reserved is the certificate of the API server: no node may be called, or serve, what is in it. nil: nothing is.
	Reserved func() *x509.Certificate
	TTL      time.Duration // longest life of a certificate, default 365 days
	Log      *slog.Logger  // default: discard
}

// Controller approves, signs and removes requests.
type Controller struct {
	client    client.Client
	informers controller.Informers
	opts      Options
	loop      *controller.Loop
}

// New checks opts and returns a controller that has started nothing; call Run.
func New(c client.Client, informers controller.Informers, opts Options) (*Controller, error) {
	if opts.Authority == nil || opts.Review == nil {
		return nil, errors.New("certificates: Options need Authority and Review")
	}
	opts.TTL = cmp.Or(opts.TTL, 365*24*time.Hour)
	cc := &Controller{client: c, informers: informers, opts: opts}
	loop, err := controller.NewLoop(controller.LoopOptions{
		Name: "certificates", Workers: 1, BaseDelay: 200 * time.Millisecond, Log: opts.Log, Reconcile: cc.reconcile,
	})
	if err != nil {
		return nil, err
	}
	loop.Watch(&certificatesv1.CertificateSigningRequest{}, func(_, current client.Object) {
		if current != nil {
			loop.Add(controller.KeyOf(current))
		}
	})
	cc.loop = loop
	return cc, nil
}

// Run reconciles until ctx ends.
func (cc *Controller) Run(ctx context.Context) error { return cc.loop.Run(ctx, cc.informers) }

// reconcile takes one request one step further; its own change brings it here again.
func (cc *Controller) reconcile(ctx context.Context, key controller.Key) (time.Duration, error) {
	var csr certificatesv1.CertificateSigningRequest
	if err := cc.client.Get(ctx, key, &csr); err != nil {
		return 0, client.IgnoreNotFound(err)
	}
	if csr.DeletionTimestamp != nil {
		return 0, nil
	}
	at, ends := removeAt(&csr)
	if left := time.Until(at); ends && left <= 0 {
		err := cc.client.Delete(ctx, &csr, client.Preconditions{UID: &csr.UID, ResourceVersion: &csr.ResourceVersion})
		if apierrors.IsConflict(err) {
			return 0, nil // it changed, so it comes again
		}
		return 0, client.IgnoreNotFound(err)
	}
	changed, err := cc.step(ctx, csr.DeepCopy())
	if err != nil || changed || !ends {
		return 0, err
	}
	if awaitsNode(&csr, time.Now()) {
		return nodeRetry, nil
	}
	return max(time.Until(at), time.Second), nil
}

// step approves or signs csr, which it may change, and reports whether it wrote.
func (cc *Controller) step(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) (bool, error) {
	approved := condition(csr, certificatesv1.CertificateApproved) != nil
	if len(csr.Status.Certificate) > 0 || condition(csr, certificatesv1.CertificateDenied) != nil || condition(csr, certificatesv1.CertificateFailed) != nil {
		return false, nil
	}
	request, err := parse(csr.Spec.Request)
	if err != nil {
		return false, fmt.Errorf("reading the request of %s: %w", csr.Name, err)
	}
	if approved {
		return cc.sign(ctx, csr, request)
	}
	return cc.approve(ctx, csr, request)
}

// approve approves a kubelet's client certificate if its user may have it: for itself, or for any node.
func (cc *Controller) approve(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, request *x509.CertificateRequest) (bool, error) {
	if csr.Spec.SignerName == certificatesv1.KubeletServingSignerName {
		return cc.approveServing(ctx, csr, request)
	}
	if csr.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName || checkKubeletClient(request, csr.Spec.Usages) != nil {
		return false, nil
	}
	for _, way := range []struct {
		applies              bool
		subresource, message string
	}{
		{isSelfService(csr.Spec.Username, request), "selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview."},
		{true, "nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview."},
	} {
		if !way.applies {
			continue
		}
		allowed, err := cc.opts.Review(ctx, reviewOf(csr, way.subresource))
		if err != nil {
			return false, fmt.Errorf("asking whether %s may have its certificate: %w", csr.Name, err)
		}
		if !allowed {
			continue
		}
		if !isSelfService(csr.Spec.Username, request) {
			if refused, err := cc.refuseTaken(ctx, csr, request); refused || err != nil {
				return refused, err
			}
		}
		csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "AutoApproved", Message: way.message,
			LastUpdateTime: metav1.Now(),
		})
		if err := cc.client.SubResource("approval").Update(ctx, csr); err != nil {
			return false, fmt.Errorf("approving %s: %w", csr.Name, err)
		}
		return true, nil
	}
	return false, nil
}

// reviewOf asks whether the one who made csr may have it approved by itself.
func reviewOf(csr *certificatesv1.CertificateSigningRequest, subresource string) authorizationv1.SubjectAccessReviewSpec {
	extra := make(map[string]authorizationv1.ExtraValue, len(csr.Spec.Extra))
	for key, values := range csr.Spec.Extra {
		extra[key] = authorizationv1.ExtraValue(values)
	}
	return authorizationv1.SubjectAccessReviewSpec{
		User: csr.Spec.Username, UID: csr.Spec.UID, Groups: csr.Spec.Groups, Extra: extra,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Group: certificatesv1.GroupName, Version: "*", Resource: "certificatesigningrequests", Verb: "create", Subresource: subresource,
		},
	}
}

// sign writes the certificate, or why there cannot be one.
func (cc *Controller) sign(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, request *x509.CertificateRequest) (bool, error) {
	ours, refused := checkSigner(csr, request)
	if !ours {
		return false, nil
	}
	if refused != nil {
		csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure",
			Message: refused.Error(), LastUpdateTime: metav1.Now(),
		})
	} else {
		ca, key := cc.opts.Authority()
		made, err := sign(request, csr.Spec.Usages, lifetime(csr.Spec.ExpirationSeconds, cc.opts.TTL), time.Now(), ca, key)
		if err != nil {
			return false, fmt.Errorf("signing %s: %w", csr.Name, err)
		}
		csr.Status.Certificate = made
	}
	if err := cc.client.Status().Update(ctx, csr); err != nil {
		return false, fmt.Errorf("writing the certificate of %s: %w", csr.Name, err)
	}
	return true, nil
}
