package robustness

import (
	"strconv"
	"sync"
	"time"
)

// Verb is what a client asked.
type Verb string

// Verbs of the load. A list is kept as a Get of each key, and whole in Listing.
const (
	Create Verb = "create"
	Update Verb = "update" // with the resourceVersion of Op.RV, or whatever is there when that is 0
	Delete Verb = "delete" // of the resourceVersion of Op.RV
	Get    Verb = "get"
)

// Outcome is what the client was told.
type Outcome string

// Outcomes. Only Unknown leaves open whether a write was done.
const (
	Done     Outcome = "done"
	Conflict Outcome = "conflict"
	Missing  Outcome = "missing"
	Exists   Outcome = "exists"
	Refused  Outcome = "refused" // nothing was done
	Unknown  Outcome = "unknown"
)

// Op is one request and its answer. Times are nanoseconds since the run's start.
type Op struct {
	Client, Server int
	Verb           Verb
	Key            string
	Value          string // written; each is written once only
	RV             int64  // the condition
	Call, Return   int64
	Outcome        Outcome
	GotValue       string // what a Get was given
	GotRV          int64  // the new or the given revision
	Message        string // of a failure
}

// Listing is the answer of one list.
type Listing struct {
	Client, Server int
	Call, Return   int64
	RV             int64
	Items          map[string]Version // by key
}

// Version is a value and the revision that wrote it.
type Version struct {
	Value string
	RV    int64
}

// History collects what all clients were told. Its methods may be called at the same time.
type History struct {
	begun time.Time

	mu    sync.Mutex // guards the fields below
	ops   []Op
	lists []Listing
	value int
}

// NewHistory begins one.
func NewHistory() *History { return &History{begun: time.Now()} }

// Now is the time since the start.
func (h *History) Now() int64 { return int64(time.Since(h.begun)) }

// NewValue is a value that was never written.
func (h *History) NewValue() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.value++
	return "v" + strconv.Itoa(h.value)
}

// Add keeps an answered request.
func (h *History) Add(op Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
}

// AddList keeps an answered list.
func (h *History) AddList(l Listing) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lists = append(h.lists, l)
}

// Taken is all that was collected.
func (h *History) Taken() ([]Op, []Listing) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ops, h.lists
}
