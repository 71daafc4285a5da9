package gateway

import (
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// record is what is noted of one request. Its byte slices may be views of a buffer: what
// outlives the request copies them.
type record struct {
	start    time.Time
	id       string
	client   string
	scheme   string
	protocol string
	method   []byte
	host     []byte
	path     []byte
	agent    []byte
	status   int
	in, out  int64
	held     time.Duration
	tries    int
	route    *route
	service  *service
	labels   map[string]string
	endpoint *endpoint
	reason   string // why it failed
	detail   string
	tunnel   bool // its time says nothing about latency
}

// newID returns a request id.
func newID() string {
	var raw [10]byte
	a, b := rand.Uint64(), rand.Uint32()
	for i := range 8 {
		raw[i] = byte(a >> (8 * i))
	}
	raw[8], raw[9] = byte(b), byte(b>>8)
	var text [20]byte
	hex.Encode(text[:], raw[:])
	return string(text[:])
}

// validID reports whether a client's request id is kept.
func validID[T string | []byte](id T) bool {
	if len(id) == 0 || len(id) > 128 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return true
}

// entry copies a record into an Entry.
func (r *record) entry(sequence uint64, took time.Duration) Entry {
	e := Entry{Sequence: sequence, Time: r.start, RequestID: string([]byte(r.id)), Client: r.client, Method: string(r.method), Scheme: r.scheme, Host: string(r.host),
		Path: string(r.path), Protocol: r.protocol, Status: r.status, BytesIn: r.in, BytesOut: r.out, Seconds: took.Seconds(), Held: r.held.Seconds(),
		Tries: r.tries, Reason: r.reason, Agent: string(r.agent), Labels: r.labels}
	if r.route != nil {
		e.Route = r.route.fullName()
	}
	if r.service != nil {
		e.Service = r.service.id
	}
	if r.endpoint != nil {
		e.Endpoint, e.Pod = r.endpoint.address, r.endpoint.pod
	}
	return e
}

// appendJSON appends what json.Marshal makes of the record's entry, and a newline, without
// garbage: every request passes here.
func (r *record) appendJSON(b []byte, sequence uint64, took time.Duration) []byte {
	b = strconv.AppendUint(append(b, `{"seq":`...), sequence, 10)
	b = r.start.UTC().AppendFormat(append(b, `,"time":"`...), time.RFC3339Nano)
	b = appendText(append(b, `","id":`...), r.id)
	b = appendText(append(b, `,"client":`...), r.client)
	b = appendText(append(b, `,"method":`...), r.method)
	b = appendText(append(b, `,"scheme":`...), r.scheme)
	b = appendText(append(b, `,"host":`...), r.host)
	b = appendText(append(b, `,"path":`...), r.path)
	b = appendText(append(b, `,"protocol":`...), r.protocol)
	b = strconv.AppendInt(append(b, `,"status":`...), int64(r.status), 10)
	b = strconv.AppendInt(append(b, `,"in":`...), r.in, 10)
	b = strconv.AppendInt(append(b, `,"out":`...), r.out, 10)
	b = strconv.AppendFloat(append(b, `,"seconds":`...), took.Seconds(), 'f', 6, 64)
	if r.held > 0 {
		b = strconv.AppendFloat(append(b, `,"held":`...), r.held.Seconds(), 'f', 6, 64)
	}
	if r.tries > 0 {
		b = strconv.AppendInt(append(b, `,"tries":`...), int64(r.tries), 10)
	}
	if r.route != nil {
		b = appendText(append(b, `,"route":`...), r.route.fullName())
	}
	if r.service != nil {
		b = appendText(append(b, `,"service":`...), r.service.id)
	}
	if r.endpoint != nil {
		b = appendText(append(b, `,"endpoint":`...), r.endpoint.address)
		if r.endpoint.pod != "" {
			b = appendText(append(b, `,"pod":`...), r.endpoint.pod)
		}
	}
	if r.reason != "" {
		b = appendText(append(b, `,"reason":`...), r.reason)
	}
	if len(r.agent) > 0 {
		b = appendText(append(b, `,"agent":`...), r.agent)
	}
	if len(r.labels) > 0 {
		text, err := json.Marshal(r.labels)
		if err == nil {
			b = append(append(b, `,"labels":`...), text...)
		}
	}
	return append(b, '}', '\n')
}

// appendText appends a JSON string.
func appendText[T string | []byte](b []byte, text T) []byte {
	b = append(b, '"')
	for i := range len(text) {
		if c := text[i]; c < ' ' || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			quoted, err := json.Marshal(string(text))
			if err == nil {
				return append(b[:len(b)-i-1], quoted...)
			}
		}
		b = append(b, text[i])
	}
	return append(b, '"')
}

// failures keeps the last requests that failed.
type failures struct {
	mu   sync.Mutex // guards the fields below
	ring []Failure
	next int
}

// maxFailures bounds the ring.
const maxFailures = 1000

func (f *failures) add(one Failure) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.ring) < maxFailures {
		f.ring = append(f.ring, one)
		return
	}
	f.ring[f.next] = one
	f.next = (f.next + 1) % maxFailures
}

// list returns those that a query asks for, oldest first.
func (f *failures) list(q Query) []Failure {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Failure
	for i := range f.ring {
		if one := f.ring[(f.next+i)%len(f.ring)]; q.wants(&one.Entry) {
			out = append(out, one)
		}
	}
	return out[max(0, len(out)-q.limit()):]
}

func (q *Query) limit() int {
	if q.Limit <= 0 || q.Limit > 1000 {
		return 1000
	}
	return q.Limit
}

// wants reports whether an entry is asked for.
func (q *Query) wants(e *Entry) bool {
	if q.RequestID != "" && q.RequestID != e.RequestID || e.Sequence <= q.After && q.After > 0 || e.Time.Before(q.Since) {
		return false
	}
	if q.Namespace != "" && (len(e.Service) <= len(q.Namespace) || e.Service[len(q.Namespace)] != '/' || e.Service[:len(q.Namespace)] != q.Namespace) {
		return false
	}
	for name, value := range q.Labels {
		if e.Labels[name] != value {
			return false
		}
	}
	return true
}
