package server

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/containerd"
	"gantry.dev/gantry/internal/heartbeat"
	"gantry.dev/gantry/internal/images"
	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/network/routes"
	"gantry.dev/gantry/internal/remote"
)

// How long answers about who somebody is and what they may do are believed (Kubernetes documentation, "Kubelet
// authentication/authorization": the webhook mode's defaults).
const (
	believeToken   = 2 * time.Minute
	believeAllowed = 5 * time.Minute
	believeDenied  = 30 * time.Second
	reviewsKept    = 1000
)

// remoteCluster is nodeCluster on a worker.
type remoteCluster struct {
	cluster   *remote.Cluster
	transport http.RoundTripper // to the servers, as this node
	servers   *join.Servers
	tls       func() *tls.Config // towards each of them, as this node

	tokens reviews[user.Info]
	rights reviews[bool]
}

var _ nodeCluster = (*remoteCluster)(nil)

func (c *remoteCluster) part(string) (ctrlclient.Client, informer.Source, error) {
	return c.cluster.Follower(), c.cluster.All(), nil
}

func (c *remoteCluster) forAgent() (ctrlclient.Client, informer.Source, error) {
	return c.cluster.Client(), c.cluster.Own(), nil
}

// gateway is none: what it serves with is in Secrets, which a node may not read.
func (c *remoteCluster) gateway(*config.Gateway, func(string)) (*routes.GatewayOptions, error) {
	return nil, nil //nolint:nilnil // no gateway is no error
}

func (c *remoteCluster) registry() *containerd.Registry {
	return &containerd.Registry{Host: images.Host, Transport: c.transport}
}

func (c *remoteCluster) mayPull(ctx context.Context, pod *corev1.Pod, ref string, credentials func() ([]container.Credentials, error)) error {
	return podMayPull(ctx, c, pod, ref, credentials)
}

func (c *remoteCluster) node(context.Context) *corev1.Node { return c.cluster.Node() }

func (c *remoteCluster) heartbeats() []heartbeat.Server {
	var out []heartbeat.Server
	for _, address := range c.servers.List() {
		out = append(out, heartbeat.NewRemote(address, c.tls))
	}
	return out
}

func (c *remoteCluster) confirmed(ctx context.Context) error { return c.cluster.Confirmed(ctx) }

// identify believes certificates of the cluster, which TLS has checked, and tokens that a server believes.
func (c *remoteCluster) identify(r *http.Request) (user.Info, bool) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		subject := r.TLS.VerifiedChains[0][0].Subject
		if subject.CommonName == "" {
			return nil, false
		}
		return &user.DefaultInfo{Name: subject.CommonName, Groups: append([]string{user.AllAuthenticated}, subject.Organization...)}, true
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || token == "" {
		return nil, false
	}
	return c.whose(r.Context(), token)
}

// whose asks a server about a token.
func (c *remoteCluster) whose(ctx context.Context, token string) (user.Info, bool) {
	sum := sha256.Sum256([]byte(token))
	key := string(sum[:])
	if u, known := c.tokens.get(key); known {
		return u, u != nil
	}
	review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
	if err := c.cluster.Client().Create(ctx, review); err != nil {
		return nil, false
	}
	if !review.Status.Authenticated {
		return nil, false
	}
	extra := make(map[string][]string, len(review.Status.User.Extra))
	for k, values := range review.Status.User.Extra {
		extra[k] = values
	}
	u := &user.DefaultInfo{Name: review.Status.User.Username, UID: review.Status.User.UID, Groups: review.Status.User.Groups, Extra: extra}
	c.tokens.put(key, u, believeToken)
	return u, true
}

// allows asks a server about a right.
func (c *remoteCluster) allows(ctx context.Context, about authorizer.Attributes) bool {
	u := about.GetUser()
	key := fmt.Sprintf("%q %q %q %q %q %q %q %q", u.GetName(), u.GetGroups(), u.GetExtra(), about.GetVerb(), about.GetAPIGroup()+"/"+about.GetResource(),
		about.GetSubresource(), about.GetNamespace(), about.GetName())
	if allowed, known := c.rights.get(key); known {
		return allowed
	}
	extra := make(map[string]authorizationv1.ExtraValue, len(u.GetExtra()))
	for k, values := range u.GetExtra() {
		extra[k] = values
	}
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups(), Extra: extra,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: about.GetVerb(), Group: about.GetAPIGroup(), Version: about.GetAPIVersion(), Resource: about.GetResource(),
			Subresource: about.GetSubresource(), Namespace: about.GetNamespace(), Name: about.GetName(),
		},
	}}
	if err := c.cluster.Client().Create(ctx, review); err != nil {
		return false
	}
	believe := believeDenied
	if review.Status.Allowed {
		believe = believeAllowed
	}
	c.rights.put(key, review.Status.Allowed, believe)
	return review.Status.Allowed
}

// reviews keeps answers for a while. The zero value is ready.
type reviews[T any] struct {
	mu      sync.Mutex // guards the field below
	answers map[string]review[T]
}

type review[T any] struct {
	answer T
	until  time.Time
}

func (r *reviews[T]) get(key string) (answer T, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, ok := r.answers[key]
	if !ok || time.Now().After(found.until) {
		return answer, false
	}
	return found.answer, true
}

func (r *reviews[T]) put(key string, answer T, believe time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answers == nil || len(r.answers) >= reviewsKept {
		r.answers = map[string]review[T]{} // asked again: rare, and cheap
	}
	r.answers[key] = review[T]{answer, time.Now().Add(believe)}
}
