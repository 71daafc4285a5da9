package server

import (
	"context"
	"crypto/tls"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/client"
	"gantry.dev/gantry/internal/config"
	"gantry.dev/gantry/internal/container"
	"gantry.dev/gantry/internal/container/containerd"
	"gantry.dev/gantry/internal/heartbeat"
	"gantry.dev/gantry/internal/informer"
	"gantry.dev/gantry/internal/network/routes"
	"gantry.dev/gantry/internal/pki"
)

// Parts of a node that reach the cluster, by the name that their writes have.
const (
	partProxy  = "kube-proxy"
	partEdge   = "gantry-edge"
	partPolicy = "gantry-policy"
	partNode   = "kubelet" // the node itself
)

// nodeCluster is the cluster as a node's parts reach it: in process on a server, over TLS on a worker. What the clients and
// informers return is shared and read-only in both.
type nodeCluster interface {
	// part gives a part other than the agent its client and events: of all objects, with the rights of that part.
	part(name string) (ctrlclient.Client, informer.Source, error)
	// forAgent gives the agent its own: its node, its pods, and changes of the ConfigMaps and Secrets of those.
	forAgent() (ctrlclient.Client, informer.Source, error)
	// gateway is what the node's gateway is fed from; nil is: it has none.
	gateway(settings *config.Gateway, say func(string)) (*routes.GatewayOptions, error)
	// registry is where images of the cluster are pulled from; nil is nowhere.
	registry() *containerd.Registry
	// mayPull says why a pod may not use an image of that registry.
	mayPull(ctx context.Context, pod *corev1.Pod, ref string, credentials func() ([]container.Credentials, error)) error
	// identify says who sends a request to the node's API; false is: nobody who is believed.
	identify(r *http.Request) (user.Info, bool)
	// allows reports whether somebody may do something.
	allows(ctx context.Context, attributes authorizer.Attributes) bool
	// node is the node's object as it is known; nil is not at all.
	node(ctx context.Context) *corev1.Node
	// heartbeats are the servers that the node says to that it is alive.
	heartbeats() []heartbeat.Server
	// confirmed waits until the pods that the agent was told of are those that the API has now.
	confirmed(ctx context.Context) error
}

// localCluster is nodeCluster on a server.
type localCluster struct {
	cp   *ControlPlane
	name string             // of the node
	tls  func() *tls.Config // towards other servers, as the node
}

var _ nodeCluster = localCluster{}

func (l localCluster) part(name string) (ctrlclient.Client, informer.Source, error) {
	var u user.Info
	switch name {
	case partProxy:
		u = &user.DefaultInfo{Name: user.KubeProxy, Groups: []string{user.AllAuthenticated}}
	case partEdge:
		u = controllerUser("kube-dns")
	case partPolicy:
		u = policyUser()
	default:
		u = l.user()
	}
	return pair(l.cp.As(u, name))
}

// pair forgets the types of a client and its informers.
func pair(c *client.Client, informers *client.Cache, err error) (ctrlclient.Client, informer.Source, error) {
	if err != nil {
		return nil, nil, err
	}
	return c, informers, nil
}

func (l localCluster) user() user.Info {
	return &user.DefaultInfo{Name: pki.NodeUserPrefix + l.name, Groups: []string{user.NodesGroup, user.AllAuthenticated}}
}

func (l localCluster) forAgent() (ctrlclient.Client, informer.Source, error) {
	api, own, err := l.cp.as(client.Options{User: l.user(), Manager: "kubelet"}, map[schema.GroupVersionKind]fields.Selector{
		corev1.SchemeGroupVersion.WithKind("Node"): fields.OneTermEqualSelector("metadata.name", l.name),
		corev1.SchemeGroupVersion.WithKind("Pod"):  fields.OneTermEqualSelector("spec.nodeName", l.name),
	})
	if err != nil {
		return nil, nil, err
	}
	_, all, err := l.cp.As(controllersUser(), "kubelet")
	if err != nil {
		return nil, nil, err
	}
	return api, nodeInformers{own: own, all: all}, nil
}

func (l localCluster) gateway(settings *config.Gateway, say func(string)) (*routes.GatewayOptions, error) {
	return l.cp.feedGateway(settings, l.name, say)
}

func (l localCluster) registry() *containerd.Registry { return l.cp.nodeRegistry(l.name) }

func (l localCluster) mayPull(ctx context.Context, pod *corev1.Pod, ref string, credentials func() ([]container.Credentials, error)) error {
	return podMayPull(ctx, l, pod, ref, credentials)
}

func (l localCluster) identify(r *http.Request) (user.Info, bool) {
	response, ok, err := l.cp.authn.AuthenticateRequest(r)
	if err != nil || !ok {
		return nil, false
	}
	return response.User, true
}

func (l localCluster) allows(ctx context.Context, attributes authorizer.Attributes) bool {
	decision, _, err := l.cp.authorizer.Authorize(ctx, attributes)
	return err == nil && decision == authorizer.DecisionAllow
}

func (l localCluster) whose(ctx context.Context, token string) (user.Info, bool) {
	response, ok, err := l.cp.authn.AuthenticateToken(ctx, token)
	if err != nil || !ok {
		return nil, false
	}
	return response.User, true
}

func (l localCluster) node(ctx context.Context) *corev1.Node {
	obj := new(corev1.Node)
	if l.cp.Admin().Get(ctx, ctrlclient.ObjectKey{Name: l.name}, obj) != nil {
		return nil
	}
	return obj
}

func (l localCluster) heartbeats() []heartbeat.Server {
	return append(l.cp.others(l.tls), heartbeat.Local{Take: l.cp.Heartbeat})
}

func (l localCluster) confirmed(context.Context) error { return nil }
