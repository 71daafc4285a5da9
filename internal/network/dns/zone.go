package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Type is a record's type as DNS numbers it.
type Type uint16

// The types that a Zone holds. Exists says that a name is there and has nothing.
const (
	Exists Type = 0
	A      Type = 1
	CNAME  Type = 5
	SOA    Type = 6
	PTR    Type = 12
	TXT    Type = 16
	SRV    Type = 33
	anyone Type = 255
)

// Record is one record of the cluster. Names are lower case, full, without the last dot.
type Record struct {
	Name   string     `json:"n"`
	Type   Type       `json:"t"`
	Addr   netip.Addr `json:"a,omitzero"`  // of A
	Target string     `json:"g,omitempty"` // of CNAME, PTR and SRV; the text of TXT
	Port   uint16     `json:"p,omitempty"` // of SRV
}

// Config says what a Zone answers for.
type Config struct {
	Domain     string         `json:"domain"`     // such as "cluster.local"
	Ranges     []netip.Prefix `json:"ranges"`     // whose reverse names are the cluster's: services and pods
	TTLSeconds uint32         `json:"ttlSeconds"` // of every record; 0 is 5
}

// Table is all that a Zone holds: sets of records by the key of whoever owns them.
type Table struct {
	Config Config              `json:"config"`
	Sets   map[string][]Record `json:"sets"`
}

// maxChain bounds how many aliases within the cluster are followed.
const maxChain = 8

// name is one name of the zone.
type name struct {
	records  []Record
	children int // names directly or indirectly below that have records
}

// Zone holds the cluster's records. Its methods may be called at the same time.
type Zone struct {
	mu     sync.RWMutex // guards the fields below
	config Config
	sets   map[string][]Record
	names  map[string]*name
}

// NewZone returns a zone that holds nothing and forwards everything.
func NewZone() *Zone {
	return &Zone{sets: map[string][]Record{}, names: map[string]*name{}}
}

// Check reports what is wrong with a table.
func (t Table) Check() error {
	if t.Config.Domain == "" || len(t.Config.Domain) > 200 || strings.Trim(strings.ToLower(t.Config.Domain), ".") != t.Config.Domain {
		return fmt.Errorf("dns: domain is %q, want a lower-case name without outer dots", t.Config.Domain)
	}
	return checkSets(t.Sets)
}

func checkSets(sets map[string][]Record) error {
	for key, records := range sets {
		for _, r := range records {
			if len(r.Name) == 0 || len(r.Name) > 253 || len(r.Target) > 253 || r.Name != strings.ToLower(r.Name) {
				return fmt.Errorf("dns: set %q has a bad name %q or target %q", key, r.Name, r.Target)
			}
			if r.Type == A && !r.Addr.Is4() {
				return fmt.Errorf("dns: set %q: %s has no IPv4 address", key, r.Name)
			}
		}
	}
	return nil
}

// Replace puts a whole table in place at once.
func (z *Zone) Replace(t Table) error {
	if err := t.Check(); err != nil {
		return err
	}
	fresh := NewZone()
	fresh.config = t.Config
	for key, records := range t.Sets {
		fresh.setLocked(key, records)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.config, z.sets, z.names = fresh.config, fresh.sets, fresh.names
	return nil
}

// Update replaces single sets; an empty one is removed.
func (z *Zone) Update(sets map[string][]Record) error {
	if err := checkSets(sets); err != nil {
		return err
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	for key, records := range sets {
		z.setLocked(key, records)
	}
	return nil
}

// Table returns a copy of what the zone holds; the records are shared and read-only.
func (z *Zone) Table() Table {
	z.mu.RLock()
	defer z.mu.RUnlock()
	t := Table{Config: z.config, Sets: make(map[string][]Record, len(z.sets))}
	for key, records := range z.sets {
		t.Sets[key] = records
	}
	return t
}

func (z *Zone) setLocked(key string, records []Record) {
	for _, r := range z.sets[key] {
		n := z.names[r.Name]
		if i := slices.Index(n.records, r); i >= 0 {
			n.records = slices.Delete(slices.Clone(n.records), i, i+1)
		}
		z.countLocked(r.Name, -1)
	}
	delete(z.sets, key)
	for _, r := range records {
		z.countLocked(r.Name, 1)
		n := z.names[r.Name]
		n.records = append(slices.Clip(n.records), r)
	}
	if len(records) > 0 {
		z.sets[key] = records
	}
}

// countLocked adds to the name and to every name above it, so that names between exist.
func (z *Zone) countLocked(full string, by int) {
	for {
		n := z.names[full]
		if n == nil {
			n = &name{}
			z.names[full] = n
		}
		n.children += by
		if n.children == 0 {
			delete(z.names, full)
		}
		_, rest, found := strings.Cut(full, ".")
		if !found {
			return
		}
		full = rest
	}
}

// Result is a zone's answer.
type Result struct {
	Forward bool     // not the cluster's name: ask others
	Exists  bool     // false is NXDOMAIN, when Forward is false
	Answers []Record // in order; an alias comes before what it leads to
	Extra   []Record // addresses of SRV targets
	Outside string   // the last alias leads to this name of others
}

// Lookup answers a question. The name is lower case without the last dot.
func (z *Zone) Lookup(question string, qtype Type) Result {
	z.mu.RLock()
	defer z.mu.RUnlock()
	if z.config.Domain == "" || !z.ownsLocked(question) {
		return Result{Forward: true}
	}
	var out Result
	for range maxChain {
		records, exists := z.findLocked(question)
		out.Exists = out.Exists || exists
		alias := ""
		for _, r := range records {
			switch {
			case r.Type == qtype || qtype == anyone && r.Type != Exists:
				out.Answers = append(out.Answers, r)
			case r.Type == CNAME:
				out.Answers = append(out.Answers, r)
				alias = r.Target
			}
			if r.Type == SRV && qtype == SRV {
				z.addTargetLocked(&out, r.Target)
			}
		}
		if alias == "" {
			return out
		}
		if !z.ownsLocked(alias) {
			out.Outside = alias
			return out
		}
		question = alias
	}
	return out
}

// addTargetLocked adds the addresses of an SRV target once.
func (z *Zone) addTargetLocked(out *Result, target string) {
	n := z.names[target]
	if n == nil {
		return
	}
	for _, r := range n.records {
		if r.Type == A && !slices.Contains(out.Extra, r) {
			out.Extra = append(out.Extra, r)
		}
	}
}

// ownsLocked reports whether the cluster is the authority for a name.
func (z *Zone) ownsLocked(question string) bool {
	if question == z.config.Domain || strings.HasSuffix(question, "."+z.config.Domain) {
		return true
	}
	addr, ok := parseReverse(question)
	return ok && slices.ContainsFunc(z.config.Ranges, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// findLocked returns the records of a name and whether it exists.
func (z *Zone) findLocked(question string) ([]Record, bool) {
	if n := z.names[question]; n != nil {
		return n.records, true
	}
	if question == z.config.Domain {
		return nil, true
	}
	below, ok := strings.CutSuffix(question, ".pod."+z.config.Domain)
	if !ok {
		return nil, question == "pod."+z.config.Domain
	}
	host, namespace, ok := strings.Cut(below, ".")
	if !ok {
		host, namespace = "", below
	}
	if strings.Contains(namespace, ".") || z.names[namespace+".svc."+z.config.Domain] == nil {
		return nil, false
	}
	if host == "" {
		return nil, true
	}
	addr, err := netip.ParseAddr(strings.ReplaceAll(host, "-", "."))
	if err != nil || !addr.Is4() {
		return nil, false
	}
	return []Record{{Name: question, Type: A, Addr: addr}}, true
}

// parseReverse turns a name such as 4.3.2.1.in-addr.arpa to the address 1.2.3.4.
func parseReverse(question string) (netip.Addr, bool) {
	digits, ok := strings.CutSuffix(question, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	parts := strings.Split(digits, ".")
	slices.Reverse(parts)
	addr, err := netip.ParseAddr(strings.Join(parts, "."))
	return addr, err == nil && addr.Is4()
}

// ReverseName is the name that holds an IPv4 address's PTR record.
func ReverseName(addr netip.Addr) string {
	b := addr.As4()
	return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0])
}
