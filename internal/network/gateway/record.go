package gateway

import (
	"cmp"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"slices"
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

// validID reports whether a proxy's request id is kept.
func validID(id string) bool {
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
		Tries: r.tries, Reason: r.reason, Detail: r.detail, Agent: string(r.agent), Labels: r.labels}
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
		if r.detail != "" {
			b = appendText(append(b, `,"detail":`...), r.detail)
		}
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

// Bounds of what is remembered of requests that failed. Those that reached no service have room of
// their own: whoever looks for holes in a site makes many of them, and must not push the others out.
const (
	maxFailures = 1000
	maxStrays   = 250
)

// failures keeps the last requests that failed.
type failures struct {
	mu       sync.Mutex // guards the fields below
	services ring
	strays   ring
}

// ring holds the last so many entries.
type ring struct {
	entries []Entry
	next    int
}

func (r *ring) add(one Entry, most int) {
	if len(r.entries) < most {
		r.entries = append(r.entries, one)
		return
	}
	r.entries[r.next] = one
	r.next = (r.next + 1) % most
}

// each calls do for every entry, oldest first.
func (r *ring) each(do func(*Entry)) {
	for i := range r.entries {
		do(&r.entries[(r.next+i)%len(r.entries)])
	}
}

func (f *failures) add(one Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if one.Service == "" {
		f.strays.add(one, maxStrays)
		return
	}
	f.services.add(one, maxFailures)
}

// list returns those that a query asks for, oldest first.
func (f *failures) list(q Query) []Entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Entry
	for _, r := range []*ring{&f.strays, &f.services} {
		r.each(func(e *Entry) {
			if q.wants(e) {
				out = append(out, *e)
			}
		})
	}
	slices.SortStableFunc(out, func(a, b Entry) int { return cmp.Compare(a.Sequence, b.Sequence) })
	return out[max(0, len(out)-q.limit()):]
}

// Bounds of an answer's entries.
const (
	mostEntries = 1000
	mostOldest  = 20_000 // for who reads all of the log
)

func (q *Query) limit() int {
	most := mostEntries
	if q.Oldest {
		most = mostOldest
	}
	if q.Limit <= 0 || q.Limit > most {
		return most
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
