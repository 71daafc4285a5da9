package gateway

import (
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// owner is what is known of all routes of one object, as an HTTPRoute: their counts, and what their limits remember. It
// lives as long as the table has routes of it, whatever becomes of them.
type owner struct {
	stats  routeStats
	flying atomic.Int64 // requests under way that are counted for RouteLimits.Requests
	rate   rateLimiter
}

// owners are all that the table has routes of.
type owners struct {
	mu    sync.Mutex
	byKey map[string]*owner
}

// find returns the owner of a key and makes it if needed.
func (o *owners) find(key string) *owner {
	o.mu.Lock()
	defer o.mu.Unlock()
	found := o.byKey[key]
	if found == nil {
		found = &owner{}
		o.byKey[key] = found
	}
	return found
}

// keep forgets all owners but those that have routes.
func (o *owners) keep(routes map[string][]Route) {
	o.mu.Lock()
	defer o.mu.Unlock()
	maps.DeleteFunc(o.byKey, func(key string, _ *owner) bool { return len(routes[key]) == 0 })
}

// read returns the counts of those that had a request.
func (o *owners) read() map[string]RouteStats {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := map[string]RouteStats{}
	for key, one := range o.byKey {
		if stats := one.stats.read(); stats.Requests > 0 {
			out[key] = stats
		}
	}
	return out
}

// rateLimiter lets each client do so many requests a second on average. It remembers by client when the next one would be
// due if they came evenly (GCRA).
type rateLimiter struct {
	mu  sync.Mutex
	due map[netip.Addr]time.Time
}

// clientsKept bounds how many clients a rateLimiter knows. When there are more, those that have been quiet are
// forgotten, then any.
const clientsKept = 16 << 10

// allow reports whether a client may do a request now. burst is how many it may do at once.
func (r *rateLimiter) allow(client netip.Addr, now time.Time, perSecond float64, burst int) bool {
	each := time.Duration(float64(time.Second) / perSecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	due, known := r.due[client]
	if due.Before(now) {
		due = now
	}
	if due.Sub(now) > each*time.Duration(max(burst, 1)-1) {
		return false
	}
	if r.due == nil {
		r.due = map[netip.Addr]time.Time{}
	}
	if !known && len(r.due) >= clientsKept {
		maps.DeleteFunc(r.due, func(_ netip.Addr, at time.Time) bool { return at.Before(now) })
		for other := range r.due {
			if len(r.due) < clientsKept*3/4 {
				break
			}
			delete(r.due, other)
		}
	}
	r.due[client] = due.Add(each)
	return true
}
