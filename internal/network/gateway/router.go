package gateway

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
)

// router finds routes. It never changes; services that it points to do.
type router struct {
	ports map[uint16]*portRoutes
}

// portRoutes are the routes of one port.
type portRoutes struct {
	redirect uint16              // to https at this port; 0: no
	exact    map[string][]*route // by host
	wildcard map[string][]*route // by ".example" of "*.example"
	any      []*route
	fallback []*route
}

// route is a Route that was compiled.
type route struct {
	Route
	owner   string
	shared  *owner // with the owner's other routes
	regex   *regexp.Regexp
	headers []valueMatch
	query   []valueMatch
	targets []target
	total   int  // weight of all targets
	plain   bool // nothing but a choice of services: the fast path can do it
}

type valueMatch struct {
	name, value string
	regex       *regexp.Regexp
}

// target is a Backend with the service it names.
type target struct {
	*Backend
	service *service
}

// request is what a route is chosen by. Its strings may be views of a buffer.
type request interface {
	header(name string) (string, bool)
	queryValue(name string) (string, bool)
}

// compileRouter makes the routes of a table ready. find returns the service of an id, known or not, and shared what the
// routes of an owner have in common.
func compileRouter(listeners []Listener, sets map[string][]Route, find func(id string) *service, shared func(key string) *owner) (*router, error) {
	r := &router{ports: map[uint16]*portRoutes{}}
	byName := map[string]*portRoutes{}
	for _, l := range listeners {
		p := r.ports[l.Port]
		if p == nil {
			p = &portRoutes{exact: map[string][]*route{}, wildcard: map[string][]*route{}}
			r.ports[l.Port] = p
		}
		p.redirect = cmp.Or(p.redirect, l.RedirectHTTPS)
		byName[l.Name] = p
	}
	for key, set := range sets {
		for i := range set {
			compiled, err := compileRoute(key, set[i], find)
			if err != nil {
				return nil, fmt.Errorf("route %d of %s: %w", i, key, err)
			}
			compiled.shared = shared(key)
			added := map[*portRoutes]bool{}
			if len(set[i].Listeners) == 0 {
				for _, p := range r.ports {
					added[p] = true
				}
			}
			for _, name := range set[i].Listeners {
				if p := byName[name]; p != nil {
					added[p] = true
				}
			}
			for p := range added {
				p.add(compiled)
			}
		}
	}
	for _, p := range r.ports {
		p.sort()
	}
	return r, nil
}

func (p *portRoutes) add(r *route) {
	switch {
	case r.Fallback:
		p.fallback = append(p.fallback, r)
	case len(r.Hosts) == 0:
		p.any = append(p.any, r)
	}
	if r.Fallback {
		return
	}
	for _, host := range r.Hosts {
		if host == "" || host == "*" {
			p.any = append(p.any, r)
		} else if suffix, ok := strings.CutPrefix(host, "*"); ok {
			p.wildcard[suffix] = append(p.wildcard[suffix], r)
		} else {
			p.exact[host] = append(p.exact[host], r)
		}
	}
}

func (p *portRoutes) sort() {
	for _, list := range p.exact {
		slices.SortStableFunc(list, compareRoutes)
	}
	for _, list := range p.wildcard {
		slices.SortStableFunc(list, compareRoutes)
	}
	slices.SortStableFunc(p.any, compareRoutes)
	slices.SortStableFunc(p.fallback, compareRoutes)
}

// compareRoutes orders routes of the same host: the first that fits a request gets it.
// Source: Gateway API, HTTPRouteRule.matches.
func compareRoutes(a, b *route) int {
	rank := func(r *route) int {
		return map[string]int{PathExact: 0, PathRegex: 1}[r.Path.Type] + map[bool]int{true: 2}[r.Path.Type == PathPrefix]
	}
	if c := cmp.Compare(rank(a), rank(b)); c != 0 {
		return c
	}
	if c := cmp.Compare(len(b.Path.Value), len(a.Path.Value)); c != 0 && a.Path.Type != PathExact {
		return c
	}
	boolean := map[bool]int{true: 1}
	return cmp.Or(
		cmp.Compare(boolean[b.Method != ""], boolean[a.Method != ""]),
		cmp.Compare(len(b.headers), len(a.headers)),
		cmp.Compare(len(b.query), len(a.query)),
		cmp.Compare(a.Created, b.Created),
		cmp.Compare(a.owner, b.owner),
		cmp.Compare(a.Index, b.Index))
}

func compileRoute(owner string, spec Route, find func(string) *service) (*route, error) {
	r := &route{Route: spec, owner: owner}
	r.Path.Type = cmp.Or(r.Path.Type, PathPrefix)
	var err error
	switch r.Path.Type {
	case PathPrefix:
		if r.Path.Value = strings.TrimRight(r.Path.Value, "/"); r.Path.Value != "" && r.Path.Value[0] != '/' {
			return nil, fmt.Errorf("prefix %q does not begin with a slash", r.Path.Value)
		}
	case PathExact:
	case PathRegex:
		if r.regex, err = wholeRegex(r.Path.Value); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("path type %q: want %s, %s or %s", r.Path.Type, PathExact, PathPrefix, PathRegex)
	}
	if r.headers, err = compileValues(r.Headers); err != nil {
		return nil, err
	}
	if r.query, err = compileValues(r.Query); err != nil {
		return nil, err
	}
	if err := checkFilters(r.Filters); err != nil {
		return nil, err
	}
	if l := r.Limits; l != nil && (l.BodyBytes < 0 || l.Requests < 0 || l.Rate < 0 || l.Rate > 1e6 || l.Burst < 0) {
		return nil, fmt.Errorf("limits %+v: none is below zero, and the rate is at most 1000000", *l)
	}
	r.plain = len(r.Filters) == 0 && r.Response == nil && r.RequestTimeout == 0 && r.BackendTimeout == 0 && r.Retry == nil && r.Limits == nil
	for i := range r.Backends {
		b := &r.Backends[i]
		if b.Weight < 0 || b.Weight > 1e6 {
			return nil, fmt.Errorf("weight is %d, want 0 to 1000000", b.Weight)
		}
		if err := checkFilters(b.Filters); err != nil {
			return nil, err
		}
		r.plain = r.plain && len(b.Filters) == 0
		r.targets = append(r.targets, target{Backend: b, service: find(b.Service)})
		r.total += b.Weight
	}
	return r, nil
}

func wholeRegex(text string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(`^(?:` + text + `)$`)
	if err != nil {
		return nil, fmt.Errorf("regular expression: %w", err)
	}
	return re, nil
}

func compileValues(list []ValueMatch) ([]valueMatch, error) {
	var out []valueMatch
	for _, v := range list {
		m := valueMatch{name: v.Name, value: v.Value}
		if v.Regex {
			re, err := wholeRegex(v.Value)
			if err != nil {
				return nil, err
			}
			m.regex = re
		}
		out = append(out, m)
	}
	return out, nil
}

// find returns the route of a request, or nil. host is in lower case and without port.
func (p *portRoutes) find(host, method, path string, r request) *route {
	if p == nil {
		return nil
	}
	if list := p.host(host); list != nil {
		if found := first(list, method, path, r); found != nil {
			return found
		}
	}
	return first(p.fallback, method, path, r)
}

// host returns the routes of the most specific host.
func (p *portRoutes) host(host string) []*route {
	if list := p.exact[host]; list != nil {
		return list
	}
	if len(p.wildcard) > 0 {
		for rest := host; ; {
			i := strings.IndexByte(rest, '.')
			if i < 0 {
				break
			}
			if list := p.wildcard[rest[i:]]; list != nil && (i > 0 || len(rest) < len(host)) {
				return list
			}
			rest = rest[i+1:]
		}
	}
	return p.any
}

func first(list []*route, method, path string, r request) *route {
	for _, candidate := range list {
		if candidate.fits(method, path, r) {
			return candidate
		}
	}
	return nil
}

func (r *route) fits(method, path string, req request) bool {
	switch r.Path.Type {
	case PathPrefix:
		if !strings.HasPrefix(path, r.Path.Value) || len(path) > len(r.Path.Value) && path[len(r.Path.Value)] != '/' {
			return false
		}
	case PathExact:
		if path != r.Path.Value {
			return false
		}
	default:
		if !r.regex.MatchString(path) {
			return false
		}
	}
	if r.Method != "" && r.Method != method {
		return false
	}
	for i := range r.headers {
		if value, ok := req.header(r.headers[i].name); !ok || !r.headers[i].fits(value) {
			return false
		}
	}
	for i := range r.query {
		if value, ok := req.queryValue(r.query[i].name); !ok || !r.query[i].fits(value) {
			return false
		}
	}
	return true
}

func (m *valueMatch) fits(value string) bool {
	if m.regex != nil {
		return m.regex.MatchString(value)
	}
	return m.value == value
}

// choose returns one of the backends by weight, or nil if there is none.
func (r *route) choose() *target {
	if r.total == 0 {
		return nil
	}
	if len(r.targets) == 1 {
		return &r.targets[0]
	}
	n := rand.IntN(r.total)
	for i := range r.targets {
		if n -= r.targets[i].Weight; n < 0 {
			return &r.targets[i]
		}
	}
	return nil
}

// fullName is the route in logs.
func (r *route) fullName() string {
	if r.Name == "" {
		return r.owner
	}
	return r.owner + " " + r.Name
}
