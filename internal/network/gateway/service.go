package gateway

import (
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// service is where requests go. It lives as long as the table or a route names it; what the
// table says of it is replaced as a whole, so that no route has to be compiled again.
type service struct {
	id    string
	stats serviceStats
	spec  atomic.Pointer[serviceSpec] // never nil; its known is false while the table lacks it

	waiting atomic.Int64
}

// serviceSpec is what the table says of a service. It never changes but for the endpoints' own state.
type serviceSpec struct {
	Service
	known     bool
	all       []*endpoint
	ready     []*endpoint     // those that get requests
	transport *http.Transport // of protocol https
	changed   chan struct{}   // closed when the spec is replaced
}

func newService(id string) *service {
	s := &service{id: id}
	s.spec.Store(&serviceSpec{changed: make(chan struct{})})
	return s
}

// endpoint is one address of a service with what was learned of it.
type endpoint struct {
	address string
	pod     string
	active  atomic.Int64 // requests under way

	fails        atomic.Int32
	ejections    atomic.Int32
	ejectedUntil atomic.Int64 // Unix nanoseconds

	pool pool
}

const (
	ejectAfter  = 3 // failures in a row
	ejectFirst  = time.Second
	ejectLast   = 30 * time.Second
	dialTimeout = 2 * time.Second
)

// replace makes spec what the service is now, keeping the state of endpoints that stay.
func (s *service) replace(spec Service, known bool, transport *http.Transport) {
	old := s.spec.Load()
	next := &serviceSpec{Service: spec, known: known, transport: transport, changed: make(chan struct{})}
	kept := map[string]*endpoint{}
	for _, e := range old.all {
		kept[e.address] = e
	}
	var terminating []*endpoint
	for _, spec := range spec.Endpoints {
		address := spec.Address.String()
		e := kept[address]
		if e == nil || e.pod != spec.Pod {
			e = &endpoint{address: address, pod: spec.Pod}
		} else {
			delete(kept, address)
		}
		next.all = append(next.all, e)
		switch {
		case spec.Ready && !spec.Terminating:
			next.ready = append(next.ready, e)
		case spec.Ready:
			terminating = append(terminating, e)
		}
		e.pool.setOpen(spec.Ready && !spec.Terminating)
	}
	if len(next.ready) == 0 {
		next.ready = terminating
	}
	s.spec.Store(next)
	close(old.changed)
	for _, e := range kept {
		e.pool.setOpen(false)
	}
	if old.transport != nil && old.transport != transport {
		old.transport.CloseIdleConnections()
	}
}

// pick chooses an endpoint: of two at random that with fewer requests. Those that failed for
// this request are left out, and those ejected unless there is nothing else.
func (s *serviceSpec) pick(tried []*endpoint, now int64) *endpoint {
	switch len(s.ready) {
	case 0:
		return nil
	case 1:
		if slices.Contains(tried, s.ready[0]) {
			return nil
		}
		return s.ready[0]
	}
	n := len(s.ready)
	i := rand.IntN(n)
	j := (i + 1 + rand.IntN(n-1)) % n
	a, b := s.ready[i], s.ready[j]
	if a.usable(tried, now) && b.usable(tried, now) {
		if b.active.Load() < a.active.Load() {
			return b
		}
		return a
	}
	var ejected *endpoint
	for k := range n {
		e := s.ready[(i+k)%n]
		if e.usable(tried, now) {
			return e
		}
		if ejected == nil && !slices.Contains(tried, e) {
			ejected = e
		}
	}
	return ejected
}

func (e *endpoint) usable(tried []*endpoint, now int64) bool {
	return e.ejectedUntil.Load() <= now && !slices.Contains(tried, e)
}

// bound returns the endpoint that affinity keeps a client at, or nil.
func (s *serviceSpec) bound(key string, tried []*endpoint, now int64) *endpoint {
	var best *endpoint
	var most uint64
	for _, e := range s.ready {
		if score := hash(key + "\x00" + e.address); (best == nil || score > most) && e.usable(tried, now) {
			best, most = e, score
		}
	}
	return best
}

// hash is FNV-1a with a last stir, for rendezvous hashing.
func hash(text string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(text) {
		h = (h ^ uint64(text[i])) * 1099511628211
	}
	h ^= h >> 32
	h *= 0xd6e8feb86659fd93
	return h ^ h>>32
}

// succeeded notes that an endpoint answered.
func (e *endpoint) succeeded() {
	if e.fails.Load() != 0 {
		e.fails.Store(0)
		e.ejections.Store(0)
	}
}

// failed notes that an endpoint did not answer, and ejects it after some failures in a row,
// for longer each time, but never more than half of the service's.
func (s *service) failed(e *endpoint, now time.Time) {
	if e.fails.Add(1) < ejectAfter {
		return
	}
	spec := s.spec.Load()
	ejected := 1
	for _, other := range spec.ready {
		if other != e && other.ejectedUntil.Load() > now.UnixNano() {
			ejected++
		}
	}
	if ejected*2 > len(spec.ready) || e.ejectedUntil.Load() > now.UnixNano() {
		return
	}
	wait := min(ejectFirst<<min(e.ejections.Add(1)-1, 10), ejectLast)
	e.ejectedUntil.Store(now.Add(wait).UnixNano())
	e.fails.Store(ejectAfter - 1) // one more failure after its return ejects it again
	s.stats.ejections.Add(1)
}

// services are all that the table or a route names.
type services struct {
	mu   sync.Mutex
	byID map[string]*service
}

// find returns the service of an id and makes it if needed. Empty ids have none.
func (s *services) find(id string) *service {
	if id == "" {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.byID[id]
	if found == nil {
		found = newService(id)
		s.byID[id] = found
	}
	return found
}

// keep forgets all services but those of the ids.
func (s *services) keep(ids map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, gone := range s.byID {
		if !ids[id] {
			delete(s.byID, id)
			gone.replace(Service{}, false, nil)
		}
	}
}

// list returns all services.
func (s *services) list() []*service {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*service, 0, len(s.byID))
	for _, one := range s.byID {
		out = append(out, one)
	}
	return out
}

// affinityKey names an endpoint in a cookie without telling its address.
func affinityKey(address string) string {
	const digits = "0123456789abcdefghjkmnpqrstvwxyz"
	h := hash("affinity\x00" + address)
	var out [13]byte
	for i := range out {
		out[i] = digits[h&31]
		h >>= 5
	}
	return string(out[:])
}

// byCookie returns the ready endpoint that a cookie's value names, or nil.
func (s *serviceSpec) byCookie(value string, tried []*endpoint, now int64) *endpoint {
	for _, e := range s.ready {
		if affinityKey(e.address) == value && e.usable(tried, now) {
			return e
		}
	}
	return nil
}

// validEndpoint reports whether an address can be connected to.
func validEndpoint(at netip.AddrPort) bool { return at.IsValid() && at.Port() != 0 }
