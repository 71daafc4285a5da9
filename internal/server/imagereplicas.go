package server

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"k8s.io/apiserver/pkg/authorization/authorizer"

	"gantry.dev/gantry/internal/images"
	"gantry.dev/gantry/internal/join"
	"gantry.dev/gantry/internal/store"
)

// otherServers are the servers beside this one, with a connection kept to each.
type otherServers struct {
	cp *ControlPlane

	mu      sync.Mutex // guards the field below
	clients map[string]*http.Client
}

// reachable is whether this server speaks to others.
func (p *otherServers) reachable() bool {
	return p.cp.opts.Endpoint != nil && p.cp.opts.ServerTLS != nil && p.cp.store.HasCompany()
}

// registries is cheap: the members of the store as they are remembered.
func (p *otherServers) registries() []images.Peer {
	if !p.reachable() {
		return nil
	}
	var out []images.Peer
	for _, m := range p.cp.store.Known() {
		addr, ok := addressOf(m)
		if !ok || m.Self {
			continue
		}
		address := netip.AddrPortFrom(addr, p.cp.opts.Endpoint().Port()).String()
		out = append(out, images.Peer{Name: peerName(m), URL: "https://" + address, HTTP: p.client(address), Votes: !m.Learner})
	}
	return out
}

// peerName is what servers call each other's registries: where they are, since a server that has just been added has no
// name yet.
func peerName(m store.Member) string {
	addr, _ := addressOf(m)
	return addr.String()
}

func (p *otherServers) client(address string) *http.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.clients == nil {
		p.clients = map[string]*http.Client{}
	}
	if p.clients[address] == nil {
		p.clients[address] = &http.Client{Transport: join.NewServers(address).Transport(p.cp.opts.ServerTLS())}
	}
	return p.clients[address]
}

// newReplica keeps the registries of all servers the same.
func (cp *ControlPlane) newReplica() error {
	self := ""
	if cp.opts.Endpoint != nil {
		self = cp.opts.Endpoint().Addr().String()
	}
	var err error
	cp.replica, err = images.NewReplica(images.ReplicaOptions{
		Store: cp.images, Self: self, Peers: cp.servers.registries, Logger: cp.opts.Logger,
	})
	return err
}

// withImageReplicas answers the registries of other servers, and passes all else on.
func (cp *ControlPlane) withImageReplicas(next http.Handler) http.Handler {
	if cp.replica == nil {
		return next
	}
	serve := cp.replica.Serve()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, images.ReplicaPath) {
			next.ServeHTTP(w, r)
			return
		}
		response, known, err := cp.authn.AuthenticateRequest(r)
		if err != nil || !known {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		verb := strings.ToLower(r.Method)
		decision, _, err := cp.authorizer.Authorize(r.Context(), &authorizer.AttributesRecord{User: response.User, Verb: verb, Path: r.URL.Path})
		if err != nil || decision != authorizer.DecisionAllow {
			http.Error(w, fmt.Sprintf("user %q may not %s %s", response.User.GetName(), verb, r.URL.Path), http.StatusForbidden)
			return
		}
		serve.ServeHTTP(w, r)
	})
}
