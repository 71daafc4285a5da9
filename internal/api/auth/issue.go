package auth

import (
	"context"
	"fmt"
	"slices"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/apis/authentication"
	authenticationconv "k8s.io/kubernetes/pkg/apis/authentication/v1"
	"k8s.io/kubernetes/pkg/apis/authentication/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/serviceaccount"
)

// tokenRequestKind is the kind that serviceaccounts/token takes.
func tokenRequestKind() schema.GroupKind {
	return schema.GroupKind{Group: authenticationv1.GroupName, Kind: "TokenRequest"}
}

// tokenIssuer signs tokens for service accounts.
type tokenIssuer struct {
	generator serviceaccount.TokenGenerator
	reader    tokenGetter
	audiences []string
}

func newTokenIssuer(opts Options) (*tokenIssuer, error) {
	generator, err := serviceaccount.JWTTokenGenerator(opts.Issuers[0], opts.SigningKey)
	if err != nil {
		return nil, fmt.Errorf("auth: making the token signer: %w", err)
	}
	return &tokenIssuer{generator: generator, reader: tokenGetter{opts.Reader}, audiences: opts.Audiences}, nil
}

// boundObjects is what a token's life hangs on; at most one of pod, secret and node decides.
type boundObjects struct {
	pod    *core.Pod
	secret *core.Secret
	node   *core.Node
}

// IssueToken answers a create of serviceaccounts/token: a signed token for account, bound as request asks. Neither is
// changed. Errors are API errors as upstream words them.
func (a *Authenticator) IssueToken(ctx context.Context, account *corev1.ServiceAccount, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return a.issuer.issue(ctx, account, request)
}

func (i *tokenIssuer) issue(ctx context.Context, account *corev1.ServiceAccount, request *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	out := request.DeepCopy()
	authenticationconv.SetObjectDefaults_TokenRequest(out)
	if err := checkIdentity(out, account); err != nil {
		return nil, err
	}
	if len(out.Spec.Audiences) == 0 {
		out.Spec.Audiences = slices.Clone(i.audiences)
	}
	// The clock is read before the token is made, so that status never promises more than the token's own exp.
	now := time.Now()
	out.Name, out.Namespace, out.UID = account.Name, account.Namespace, account.UID
	out.CreationTimestamp = metav1.NewTime(now)
	out.Status = authenticationv1.TokenRequestStatus{}
	var internal authentication.TokenRequest
	if err := authenticationconv.Convert_v1_TokenRequest_To_authentication_TokenRequest(out, &internal, nil); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if errs := validation.ValidateTokenRequest(&internal); len(errs) != 0 {
		return nil, apierrors.NewInvalid(tokenRequestKind(), "", errs)
	}
	bound, err := i.bind(ctx, account, internal.Spec.BoundObjectRef)
	if err != nil {
		return nil, err
	}
	token, err := i.sign(ctx, account, bound, internal.Spec)
	if err != nil {
		return nil, err
	}
	out.Status.Token = token
	out.Status.ExpirationTimestamp = metav1.NewTime(now.Add(time.Duration(internal.Spec.ExpirationSeconds) * time.Second))
	return out, nil
}

// checkIdentity refuses a body whose name, namespace or UID differs from the account's.
func checkIdentity(request *authenticationv1.TokenRequest, account *corev1.ServiceAccount) error {
	path := field.NewPath("metadata")
	var errs field.ErrorList
	if request.Name != "" && request.Name != account.Name {
		errs = append(errs, field.Invalid(path.Child("name"), request.Name, "must match the service account name if specified"))
	} else if request.Namespace != "" && request.Namespace != account.Namespace {
		errs = append(errs, field.Invalid(path.Child("namespace"), request.Namespace, "must match the service account namespace if specified"))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(tokenRequestKind(), account.Name, errs)
	}
	if request.UID != "" && request.UID != account.UID {
		return apierrors.NewConflict(schema.GroupResource{Group: tokenRequestKind().Group, Resource: tokenRequestKind().Kind}, account.Name,
			fmt.Errorf("the UID in the token request (%s) does not match the UID of the service account (%s)", request.UID, account.UID))
	}
	return nil
}

// bind looks up the object that ref names and checks that it is the one meant.
func (i *tokenIssuer) bind(ctx context.Context, account *corev1.ServiceAccount, ref *authentication.BoundObjectReference) (boundObjects, error) {
	var bound boundObjects
	if ref == nil {
		return bound, nil
	}
	var uid types.UID
	gvk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	switch {
	case gvk.Group == "" && gvk.Kind == "Pod":
		pod, err := i.reader.GetPod(ctx, account.Namespace, ref.Name)
		if err != nil {
			return bound, err
		}
		if pod.Spec.ServiceAccountName != account.Name {
			return bound, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", account.Name))
		}
		uid, bound.pod = pod.UID, &core.Pod{ObjectMeta: identity(pod.Name, pod.UID)}
		if bound.node, err = i.nodeOf(ctx, pod); err != nil {
			return bound, err
		}
	case gvk.Group == "" && gvk.Kind == "Node":
		node, err := i.reader.GetNode(ctx, ref.Name)
		if err != nil {
			return bound, err
		}
		uid, bound.node = node.UID, &core.Node{ObjectMeta: identity(node.Name, node.UID)}
	case gvk.Group == "" && gvk.Kind == "Secret":
		secret, err := i.reader.GetSecret(ctx, account.Namespace, ref.Name)
		if err != nil {
			return bound, err
		}
		uid, bound.secret = secret.UID, &core.Secret{ObjectMeta: identity(secret.Name, secret.UID)}
	default:
		return bound, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", gvk.String()))
	}
	if ref.UID != "" && ref.UID != uid {
		return bound, apierrors.NewConflict(schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}, ref.Name,
			fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	return bound, nil
}

// nodeOf returns the node of pod for the token's claims; a node that is gone is named without a UID.
func (i *tokenIssuer) nodeOf(ctx context.Context, pod *corev1.Pod) (*core.Node, error) {
	if pod.Spec.NodeName == "" {
		return nil, nil
	}
	node, err := i.reader.GetNode(ctx, pod.Spec.NodeName)
	if apierrors.IsNotFound(err) {
		return &core.Node{ObjectMeta: metav1.ObjectMeta{Name: pod.Spec.NodeName}}, nil
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return &core.Node{ObjectMeta: identity(node.Name, node.UID)}, nil
}

func identity(name string, uid types.UID) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, UID: uid}
}

// sign makes the token. A pod's token with the well-known lifetime that the projected volume asks for lives a year
// and warns after that lifetime, as upstream's --service-account-extend-token-expiration (on by default) does.
func (i *tokenIssuer) sign(ctx context.Context, account *corev1.ServiceAccount, bound boundObjects, spec authentication.TokenRequestSpec) (string, error) {
	expiration, warnAfter := spec.ExpirationSeconds, int64(0)
	ours := !slices.ContainsFunc(spec.Audiences, func(audience string) bool { return !slices.Contains(i.audiences, audience) })
	if bound.pod != nil && expiration == serviceaccount.WarnOnlyBoundTokenExpirationSeconds && ours {
		expiration, warnAfter = serviceaccount.ExpirationExtensionSeconds, expiration
	}
	subject := core.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: account.Namespace, Name: account.Name, UID: account.UID}}
	public, private, err := serviceaccount.Claims(subject, bound.pod, bound.secret, bound.node, expiration, warnAfter, spec.Audiences)
	if err != nil {
		return "", apierrors.NewInternalError(err)
	}
	token, err := i.generator.GenerateToken(ctx, public, private)
	if err != nil {
		return "", apierrors.NewInternalError(fmt.Errorf("failed to generate token: %w", err))
	}
	return token, nil
}
