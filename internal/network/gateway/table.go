package gateway

import (
	"net/netip"
	"time"
)

// Table is everything that a gateway serves. Parts refer to each other by key, so that a Delta
// that replaces one leaves the others alone.
type Table struct {
	Settings     Settings               `json:"settings"`
	Listeners    []Listener             `json:"listeners,omitempty"`
	Certificates map[string]Certificate `json:"certificates,omitempty"` // by an id, as "namespace/secret"
	Routes       map[string][]Route     `json:"routes,omitempty"`       // by owner, as "HTTPRoute/namespace/name"
	Services     map[string]Service     `json:"services,omitempty"`     // by id: "namespace/name:port"

	// Challenges are answers to ACME's http-01, token to key authorization. They are served on
	// every http listener before any route or redirect.
	Challenges map[string]string `json:"challenges,omitempty"`
	// TLSChallenges are certificates for ACME's tls-alpn-01, by host.
	TLSChallenges map[string]Certificate `json:"tlsChallenges,omitempty"`
}

// Delta changes parts of a Table. What it does not name stays.
type Delta struct {
	Settings      *Settings               `json:"settings,omitempty"`
	Listeners     *[]Listener             `json:"listeners,omitempty"`     // all of them
	Certificates  map[string]*Certificate `json:"certificates,omitempty"`  // null removes
	Routes        map[string][]Route      `json:"routes,omitempty"`        // empty removes
	Services      map[string]*Service     `json:"services,omitempty"`      // null removes
	Endpoints     map[string][]Endpoint   `json:"endpoints,omitempty"`     // of services that the table has; others are ignored
	Challenges    map[string]string       `json:"challenges,omitempty"`    // "" removes
	TLSChallenges map[string]*Certificate `json:"tlsChallenges,omitempty"` // null removes
}

// Settings are what holds for all listeners.
type Settings struct {
	// TrustedProxies may say by X-Forwarded-For, -Proto and -Host whom they speak for, and by a
	// well-formed X-Request-Id how the request is called. From all others these are replaced.
	TrustedProxies []netip.Prefix `json:"trustedProxies,omitempty"`
	Forwarded      bool           `json:"forwarded,omitempty"`   // also send RFC 7239's Forwarded
	NoAccessLog    bool           `json:"noAccessLog,omitempty"` // for all routes
	Limits         Limits         `json:"limits"`
}

// Limits protect the gateway. Zero is the default that the field names.
type Limits struct {
	HeaderBytes         int           `json:"headerBytes,omitempty"`         // of a request's head; 64 KiB
	HeaderCount         int           `json:"headerCount,omitempty"`         // 200
	HeaderTimeout       time.Duration `json:"headerTimeout,omitempty"`       // from the first byte to the end of the head; 10 s
	BodyStall           time.Duration `json:"bodyStall,omitempty"`           // between two pieces of a body; 60 s
	Idle                time.Duration `json:"idle,omitempty"`                // between requests of a connection; 120 s
	Connections         int           `json:"connections,omitempty"`         // 10,000
	ConnectionsByClient int           `json:"connectionsByClient,omitempty"` // from one address that is no trusted proxy; 1,000
	Streams             int           `json:"streams,omitempty"`             // of one HTTP/2 connection; 250
	HeldRequests        int           `json:"heldRequests,omitempty"`        // that wait for a sleeping service; 1,000
	BodyBytes           int64         `json:"bodyBytes,omitempty"`           // of a request; unlimited
}

// Protocols of listeners.
const (
	ProtocolHTTP  = "http"  // HTTP/1.1 and h2c by prior knowledge
	ProtocolHTTPS = "https" // TLS >= 1.2; HTTP/2 and HTTP/1.1 by ALPN
)

// Listener is one way in. Several may share a port when their protocols are the same.
type Listener struct {
	Name      string       `json:"name"`                // as "gantry-system/gantry/https"
	Addresses []netip.Addr `json:"addresses,omitempty"` // default: all of the node's
	Port      uint16       `json:"port"`
	Protocol  string       `json:"protocol"`
	// Hostname ("", "a.example", "*.example") chooses the listener's certificates for a
	// handshake: the most specific listener of the port that fits the name decides.
	Hostname string `json:"hostname,omitempty"`
	// Certificates are ids. Of several the one with the fitting name is taken, else the first.
	// Empty means all of the table that fit by name, else the one marked Default.
	Certificates []string `json:"certificates,omitempty"`
	// RedirectHTTPS, if not zero, answers each request of an http listener with a redirect (308,
	// GET and HEAD 301) to https at this port.
	RedirectHTTPS uint16 `json:"redirectHTTPS,omitempty"`
}

// Certificate is a chain and its key.
type Certificate struct {
	Names   []string `json:"names,omitempty"` // hosts, "*.host" and addresses; default: those in the certificate
	Chain   []byte   `json:"chain"`           // PEM, leaf first
	Key     []byte   `json:"key"`             // PEM
	Default bool     `json:"default,omitempty"`
}

// Kinds of path matches.
const (
	PathPrefix = "prefix" // by whole elements: /a fits /a and /a/b, not /ab. The default
	PathExact  = "exact"
	PathRegex  = "regex" // RE2, of the whole path
)

// Route says which requests go where. Of the routes that fit, Gateway API's order decides:
// host (exact, then the longest wildcard, then any), path (exact, regex, then the longest
// prefix), method, number of headers, number of query parameters, Created, the owner's key,
// Index. The most specific host that has a route decides alone; then come Fallback routes.
type Route struct {
	Name      string   `json:"name,omitempty"`      // for logs, as "rule 2"
	Listeners []string `json:"listeners,omitempty"` // names; empty: all
	Hosts     []string `json:"hosts,omitempty"`     // "a.example", "*.example" (one label or more); empty: any. Lower case, no port
	Fallback  bool     `json:"fallback,omitempty"`  // only where no other route fits, whatever the host: Ingress's default backend
	Created   int64    `json:"created,omitempty"`   // of the owner, Unix nanoseconds
	Index     int      `json:"index,omitempty"`     // within the owner

	Path    PathMatch    `json:"path"` // zero: all
	Method  string       `json:"method,omitempty"`
	Headers []ValueMatch `json:"headers,omitempty"`
	Query   []ValueMatch `json:"query,omitempty"`

	Filters  []Filter  `json:"filters,omitempty"`
	Backends []Backend `json:"backends,omitempty"` // none and no Response: 500
	Response *Response `json:"response,omitempty"` // answers at once
	// RequestTimeout bounds the time to the end of the answer's head, holding and retries
	// included; BackendTimeout one try. Zero is none. A tunnel or stream that has begun is not bounded.
	RequestTimeout time.Duration `json:"requestTimeout,omitempty"`
	BackendTimeout time.Duration `json:"backendTimeout,omitempty"`
	Retry          *Retry        `json:"retry,omitempty"`
	NoAccessLog    bool          `json:"noAccessLog,omitempty"`
	Limits         *RouteLimits  `json:"limits,omitempty"`
}

// RouteLimits protect what is behind a route. Zero is no limit but those of Settings.
type RouteLimits struct {
	BodyBytes int64   `json:"bodyBytes,omitempty"` // of a request; over it: 413
	Requests  int     `json:"requests,omitempty"`  // under way at once, of all routes of the owner; over it: 503
	Rate      float64 `json:"rate,omitempty"`      // requests of one client a second, of all routes of the owner; over it: 429
	Burst     int     `json:"burst,omitempty"`     // how many of Rate may come at once; default 1
}

// PathMatch is a condition on the path of the URL, which is compared as sent, escapes included.
type PathMatch struct {
	Type  string `json:"type,omitempty"`
	Value string `json:"value,omitempty"`
}

// ValueMatch is a condition on a header's or a query parameter's first value.
type ValueMatch struct {
	Name  string `json:"name"`
	Value string `json:"value"`
	Regex bool   `json:"regex,omitempty"` // RE2, of the whole value
}

// Filter changes or answers a request; exactly one field is set.
type Filter struct {
	RequestHeaders  *HeaderChange `json:"requestHeaders,omitempty"`
	ResponseHeaders *HeaderChange `json:"responseHeaders,omitempty"`
	Rewrite         *Rewrite      `json:"rewrite,omitempty"`
	Redirect        *Redirect     `json:"redirect,omitempty"`
	Mirror          *Mirror       `json:"mirror,omitempty"`
}

// HeaderChange is done in the order Set, Add, Remove.
type HeaderChange struct {
	Set    []Header `json:"set,omitempty"`
	Add    []Header `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
}

// Header is a name and a value.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Rewrite changes what the backend sees. At most one of Path and Prefix is set.
type Rewrite struct {
	Host   string  `json:"host,omitempty"`
	Path   *string `json:"path,omitempty"`   // in place of the whole path
	Prefix *string `json:"prefix,omitempty"` // in place of the prefix that the route matched
}

// Redirect answers with a Location; what is empty is kept from the request.
type Redirect struct {
	Scheme string  `json:"scheme,omitempty"`
	Host   string  `json:"host,omitempty"`
	Port   uint16  `json:"port,omitempty"` // 0: the scheme's own if Scheme is set, else the listener's
	Path   *string `json:"path,omitempty"`
	Prefix *string `json:"prefix,omitempty"`
	Status int     `json:"status,omitempty"` // default 302
}

// Mirror sends a copy of requests whose body is at most 64 KiB, and forgets the answer.
type Mirror struct {
	Service string `json:"service"`
	Percent int    `json:"percent,omitempty"` // default 100
}

// Backend is a service with its share of the requests.
type Backend struct {
	Service string   `json:"service,omitempty"` // id
	Weight  int      `json:"weight"`            // 0: no requests
	Filters []Filter `json:"filters,omitempty"` // done after the route's
	// Status, if not zero, answers this share of the requests: a reference that is not valid.
	Status int `json:"status,omitempty"`
}

// Response is an answer without a backend.
type Response struct {
	Status int    `json:"status"`
	Type   string `json:"type,omitempty"` // Content-Type; without a Body the page is the gateway's
	Body   string `json:"body,omitempty"`
}

// Retry is beside what always is done: a connection that fails, or ends before the first byte
// of an answer, is tried on other endpoints when the method is idempotent.
type Retry struct {
	Attempts int           `json:"attempts"`          // after the first, at most 10
	Codes    []int         `json:"codes,omitempty"`   // answers that are tried again; the method must be idempotent
	Backoff  time.Duration `json:"backoff,omitempty"` // least wait between tries; default none
}

// Protocols of backends.
const (
	BackendHTTP  = "http"  // HTTP/1.1, WebSocket and other upgrades
	BackendH2C   = "h2c"   // HTTP/2 without TLS: gRPC
	BackendHTTPS = "https" // TLS, HTTP/1.1 or 2
)

// Service is where requests go.
type Service struct {
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Port      int               `json:"port"`
	Protocol  string            `json:"protocol,omitempty"` // default http
	Endpoints []Endpoint        `json:"endpoints,omitempty"`
	Hold      time.Duration     `json:"hold,omitempty"` // how long requests wait while no endpoint is ready; 0: not at all
	Affinity  *Affinity         `json:"affinity,omitempty"`
	TLS       *BackendTLS       `json:"tls,omitempty"`    // of https; default: not verified
	Labels    map[string]string `json:"labels,omitempty"` // "app", "process", "release": go to logs and counts
}

// Endpoint is one backend process.
type Endpoint struct {
	Address     netip.AddrPort `json:"address"`
	Pod         string         `json:"pod,omitempty"`         // for logs
	Ready       bool           `json:"ready"`                 // gets requests (of one that terminates: it still serves)
	Terminating bool           `json:"terminating,omitempty"` // finishes what it has; new ones only where nothing else is ready
}

// Affinity keeps a client at an endpoint as long as that is ready.
type Affinity struct {
	ClientIP bool   `json:"clientIP,omitempty"`
	Cookie   string `json:"cookie,omitempty"` // name; the gateway sets it
}

// BackendTLS says how the gateway checks a backend.
type BackendTLS struct {
	ServerName string `json:"serverName"`
	CA         []byte `json:"ca,omitempty"` // PEM; default: the system's
}
