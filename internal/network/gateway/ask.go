package gateway

import (
	"net/netip"
	"time"
)

// What a Query asks for.
const (
	QuerySnapshot = "snapshot"
	QueryFailures = "failures"
	QueryLog      = "log"
)

// Query is a question over the control socket; Answer's field of the same name is set.
type Query struct {
	What string `json:"what"`

	RequestID string            `json:"requestID,omitempty"` // failures and log: only this request
	Namespace string            `json:"namespace,omitempty"` // failures and log: only of services here
	Labels    map[string]string `json:"labels,omitempty"`    // failures and log: the service has all of these
	After     uint64            `json:"after,omitempty"`     // log: lines with a larger Sequence
	Since     time.Time         `json:"since,omitzero"`      // failures and log
	Limit     int               `json:"limit,omitempty"`     // the last so many; default and at most 1,000
	Oldest    bool              `json:"oldest,omitempty"`    // log: the first so many instead, at most 20,000: with After, all of it can be read
}

// Answer to a Query.
type Answer struct {
	Snapshot *Snapshot `json:"snapshot,omitempty"`
	Failures []Entry   `json:"failures,omitempty"` // oldest first
	Log      []Entry   `json:"log,omitempty"`      // oldest first
	Error    string    `json:"error,omitempty"`
}

// Snapshot is the gateway's state and counts at one moment.
type Snapshot struct {
	At          time.Time               `json:"at"`
	Started     time.Time               `json:"started"` // counts began; a takeover begins anew
	Listeners   []ListenerStatus        `json:"listeners"`
	Services    map[string]ServiceStats `json:"services"`         // by id; those that had a request
	Routes      map[string]RouteStats   `json:"routes,omitempty"` // by owner, as "HTTPRoute/namespace/name"; those that had a request
	Connections int                     `json:"connections"`
	Refused     map[string]uint64       `json:"refused"` // connections and requests that a limit refused, by limit
}

// ListenerStatus says whether an address is listened on.
type ListenerStatus struct {
	Address netip.AddrPort `json:"address"` // 0.0.0.0 stands for all, IPv6 included
	Names   []string       `json:"names"`   // of the table's listeners there
	Error   string         `json:"error,omitempty"`
	InUse   bool           `json:"inUse,omitempty"` // another process holds the port: Holder finds it
}

// ServiceStats are counts since Snapshot.Started.
type ServiceStats struct {
	Requests  uint64            `json:"requests"`
	Errors    uint64            `json:"errors"` // 5xx, or no answer
	Codes     map[string]uint64 `json:"codes"`  // "2xx", ...
	BytesIn   uint64            `json:"bytesIn"`
	BytesOut  uint64            `json:"bytesOut"`
	InFlight  int64             `json:"inFlight"` // held ones included
	Held      int64             `json:"held"`
	Latency   []uint64          `json:"latency"` // requests by time to the answer's end: one count per bound of LatencyBounds, and one beyond
	Seconds   float64           `json:"seconds"` // sum of the times
	Busy      float64           `json:"busy"`    // integral of InFlight over time, in seconds: its slope is the concurrency
	Retries   uint64            `json:"retries"`
	Ejections uint64            `json:"ejections"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// RouteStats are counts of one owner's routes since Snapshot.Started: also of what never came to a service.
type RouteStats struct {
	Requests uint64            `json:"requests"`
	Errors   uint64            `json:"errors"` // 5xx, or no answer
	Codes    map[string]uint64 `json:"codes"`  // "2xx", ...
	BytesIn  uint64            `json:"bytesIn"`
	BytesOut uint64            `json:"bytesOut"`
	Latency  []uint64          `json:"latency"` // as of ServiceStats
	Seconds  float64           `json:"seconds"` // sum of the times
}

// LatencyBounds are the upper bounds of ServiceStats.Latency's counts in seconds.
func LatencyBounds() []float64 {
	return []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}
}

// Reasons of failures.
const (
	ReasonNoRoute       = "NoRoute"
	ReasonNoEndpoint    = "NoEndpoint"
	ReasonBadReference  = "BadReference"
	ReasonConnect       = "ConnectFailed"
	ReasonTimeout       = "Timeout"
	ReasonUpstreamReset = "UpstreamReset"
	ReasonUpstreamError = "UpstreamError" // the backend itself answered 5xx
	ReasonHoldExpired   = "HoldExpired"
	ReasonLimit         = "Limit"
	ReasonBadRequest    = "BadRequest"
	ReasonClientGone    = "ClientGone"
)

// Entry is a line of the access log.
type Entry struct {
	Sequence  uint64            `json:"seq"`
	Time      time.Time         `json:"time"` // the request's begin
	RequestID string            `json:"id"`
	Client    string            `json:"client"`
	Method    string            `json:"method"`
	Scheme    string            `json:"scheme"`
	Host      string            `json:"host"`
	Path      string            `json:"path"` // without the query
	Protocol  string            `json:"protocol"`
	Status    int               `json:"status"` // 0: none was sent
	BytesIn   int64             `json:"in"`
	BytesOut  int64             `json:"out"`
	Seconds   float64           `json:"seconds"`
	Held      float64           `json:"held,omitempty"` // of Seconds
	Tries     int               `json:"tries,omitempty"`
	Route     string            `json:"route,omitempty"`   // owner and name
	Service   string            `json:"service,omitempty"` // id
	Endpoint  string            `json:"endpoint,omitempty"`
	Pod       string            `json:"pod,omitempty"`
	Reason    string            `json:"reason,omitempty"` // why it failed
	Detail    string            `json:"detail,omitempty"` // of the reason: for the operator, never for the client
	Agent     string            `json:"agent,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"` // the service's
}

// Kinds of events.
const (
	EventWake     = "wake"     // requests wait for Service, which has no ready endpoint
	EventListener = "listener" // ListenerStatus changed
)

// Event is told at once to those who subscribed. A wake is repeated every second while requests wait.
type Event struct {
	Kind     string          `json:"kind"`
	Service  string          `json:"service,omitempty"`
	Waiting  int             `json:"waiting,omitempty"`
	Listener *ListenerStatus `json:"listener,omitempty"`
}
