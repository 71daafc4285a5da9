package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/store"
)

// What servers ask each other, beside the Kubernetes API. Rights are those of paths (nonResourceURLs).
const (
	bundlePath   = "/gantry/v1/server-bundle" // GET: what all servers share
	serversPath  = "/gantry/v1/servers"       // GET lists, POST adds one; DELETE below it takes one out
	learnersPath = "/gantry/v1/learners/"     // DELETE: one that began to join and failed
)

// bundleFile is a file that servers share.
type bundleFile struct {
	Mode uint32 `json:"mode"`
	Data []byte `json:"data"`
}

// serverRequest asks to be a server; the answer is a serverAnswer.
type serverRequest struct {
	Name    string `json:"name"`    // of its node
	PeerURL string `json:"peerURL"` // where its store is reached
	Promote bool   `json:"promote"` // the node of that name is the one that asks
}

type serverAnswer struct {
	ID      string         `json:"id"` // of the new member
	Members []store.Member `json:"members"`
}

// Servers lists the servers that keep the cluster's data, sorted by name.
func (cp *ControlPlane) Servers(ctx context.Context) ([]store.Member, error) {
	return cp.store.Members(ctx)
}

// AddServer lets a further server join, whose store is reached at peerURL: its ControlPlaneOptions.Join is what AddServer
// returns. A server of the same address that began to join and did not come is replaced.
func (cp *ControlPlane) AddServer(ctx context.Context, peerURL string) (added store.Member, all []store.Member, err error) {
	return cp.store.AddLearner(ctx, peerURL)
}

// RemoveServer takes the server of that name, or of that member ID, out of those that keep the data.
func (cp *ControlPlane) RemoveServer(ctx context.Context, name string) error {
	return cp.removeServer(ctx, name, false)
}

func (cp *ControlPlane) removeServer(ctx context.Context, name string, onlyLearner bool) error {
	members, err := cp.store.Members(ctx)
	if err != nil {
		return err
	}
	for _, m := range members {
		if m.ID != name && (m.Name != name || name == "") {
			continue
		}
		if onlyLearner && !m.Learner {
			return fmt.Errorf("%w: %s", store.ErrMember, name)
		}
		return cp.store.Remove(ctx, m.ID)
	}
	return fmt.Errorf("%w: %s", store.ErrNoMember, name)
}

// serverJoiningObjects are the rights of who has a token for a further server.
func serverJoiningObjects() []ctrlclient.Object {
	const name = "gantry:joining-servers"
	return []ctrlclient.Object{
		&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{
			{NonResourceURLs: []string{bundlePath}, Verbs: []string{"get"}},
			{NonResourceURLs: []string{serversPath}, Verbs: []string{"post"}},
			{NonResourceURLs: []string{learnersPath + "*"}, Verbs: []string{"delete"}},
		}},
		&rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: join.Server.Group()}},
		},
	}
}

// withServers serves what servers ask each other, and passes all else on.
func (cp *ControlPlane) withServers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := r.URL.Path
		if !strings.HasPrefix(path, "/gantry/v1/") {
			next.ServeHTTP(w, r)
			return
		}
		if path != bundlePath && path != serversPath && !strings.HasPrefix(path, serversPath+"/") && !strings.HasPrefix(path, learnersPath) {
			next.ServeHTTP(w, r)
			return
		}
		response, known, err := cp.authn.AuthenticateRequest(r)
		if err != nil || !known {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		decision, _, err := cp.authorizer.Authorize(r.Context(), &authorizer.AttributesRecord{
			User: response.User, Verb: strings.ToLower(r.Method), Path: path,
		})
		if err != nil || decision != authorizer.DecisionAllow {
			http.Error(w, fmt.Sprintf("user %q may not %s %s", response.User.GetName(), strings.ToLower(r.Method), path), http.StatusForbidden)
			return
		}
		answer, err := cp.answerServers(r)
		if err != nil {
			http.Error(w, err.Error(), serversCode(err))
			return
		}
		cp.opts.Logger.InfoContext(r.Context(), "servers", "method", r.Method, "path", path, "user", response.User.GetName())
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer) // to one who has gone
	})
}

// errNoSuchPath answers what nobody serves.
var errNoSuchPath = errors.New("there is nothing at this path")

func serversCode(err error) int {
	switch {
	case errors.Is(err, errNoSuchPath), errors.Is(err, store.ErrNoMember):
		return http.StatusNotFound
	case errors.Is(err, store.ErrTimeout), errors.Is(err, store.ErrNoLeader), errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrJoining):
		return http.StatusServiceUnavailable
	}
	return http.StatusConflict
}

func (cp *ControlPlane) answerServers(r *http.Request) (any, error) {
	ctx, path := r.Context(), r.URL.Path
	switch {
	case path == bundlePath && r.Method == http.MethodGet && cp.opts.Bundle != nil:
		return cp.opts.Bundle()
	case path == serversPath && r.Method == http.MethodGet:
		return cp.store.Members(ctx)
	case path == serversPath && r.Method == http.MethodPost:
		var request serverRequest
		if err := json.NewDecoder(http.MaxBytesReader(nil, r.Body, 64<<10)).Decode(&request); err != nil {
			return nil, fmt.Errorf("reading the request: %w", err)
		}
		return cp.admitServer(ctx, request)
	case r.Method == http.MethodDelete && strings.HasPrefix(path, serversPath+"/"):
		return struct{}{}, cp.removeServer(ctx, strings.TrimPrefix(path, serversPath+"/"), false)
	case r.Method == http.MethodDelete && strings.HasPrefix(path, learnersPath):
		return struct{}{}, cp.removeServer(ctx, strings.TrimPrefix(path, learnersPath), true)
	}
	return nil, errNoSuchPath
}

// admitServer lets a server join under a name that no node has.
func (cp *ControlPlane) admitServer(ctx context.Context, request serverRequest) (serverAnswer, error) {
	var node corev1.Node
	err := cp.admin.Get(ctx, ctrlclient.ObjectKey{Name: request.Name}, &node)
	if err == nil && !(request.Promote && isAt(&node, request.PeerURL)) {
		return serverAnswer{}, fmt.Errorf("there is a node %s already: \"gantry node rm %s\" on a server, or --node-name here", request.Name, request.Name)
	}
	if err != nil && !apierrors.IsNotFound(err) {
		return serverAnswer{}, err
	}
	added, all, err := cp.AddServer(ctx, request.PeerURL)
	if errors.Is(err, store.ErrNoPeer) {
		return serverAnswer{}, errors.New("this server has no address that others can reach; start it with --node-ip")
	}
	return serverAnswer{ID: added.ID, Members: all}, err
}

// isAt reports whether a node has the address of a URL.
func isAt(node *corev1.Node, text string) bool {
	at, err := url.Parse(text)
	return err == nil && slices.ContainsFunc(node.Status.Addresses, func(a corev1.NodeAddress) bool {
		return a.Type == corev1.NodeInternalIP && a.Address == at.Hostname()
	})
}
