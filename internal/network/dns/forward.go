package dns

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// ForwarderOptions tunes a Forwarder.
type ForwarderOptions struct {
	ResolvConf string       // names the other servers; default /etc/resolv.conf, read again when it changes
	Self       []netip.Addr // own addresses, never asked
	Port       uint16       // of the other servers; default 53
}

// Limits of a Forwarder.
const (
	forwardTimeout = 5 * time.Second         // for all servers together
	tryTimeout     = 1500 * time.Millisecond // for one
	cacheEntries   = 2000
	cacheEntryMax  = 4096 // bytes
	cacheTTLMax    = 30 * time.Second
	maxInFlight    = 512
	confCheck      = 3 * time.Second
)

// errNoUpstream says that nobody can be asked.
var errNoUpstream = errors.New("dns: no server to forward to")

// errBusy says that too many questions are under way.
var errBusy = errors.New("dns: too many questions under way")

// cacheKey names an answer: the question and what of its header changes the answer.
type cacheKey struct {
	name                     string
	qtype                    dnsmessage.Type
	dnssec, nocheck, desired bool
}

type cacheEntry struct {
	message []byte
	ttls    []int // where the TTLs are
	stored  time.Time
	expires time.Time
}

// flight is one question under way; who asks the same waits for it. That also ends loops: a
// question that comes back to us waits for itself until its time is over.
type flight struct {
	done   chan struct{}
	answer []byte
	err    error
}

// Forwarder asks other servers and remembers their answers for a short time.
type Forwarder struct {
	opts ForwarderOptions

	mu       sync.Mutex // guards the fields below
	servers  []netip.AddrPort
	checked  time.Time
	modified time.Time
	cache    map[cacheKey]cacheEntry
	flights  map[cacheKey]*flight
}

// NewForwarder returns a Forwarder; it starts nothing.
func NewForwarder(opts ForwarderOptions) *Forwarder {
	if opts.ResolvConf == "" {
		opts.ResolvConf = "/etc/resolv.conf"
	}
	if opts.Port == 0 {
		opts.Port = 53
	}
	return &Forwarder{opts: opts, cache: map[cacheKey]cacheEntry{}, flights: map[cacheKey]*flight{}}
}

// exchange answers a query by the cache or another server. message is the query as it came.
func (f *Forwarder) exchange(ctx context.Context, q query, message []byte) ([]byte, error) {
	key := cacheKey{q.lower, q.question.Type, q.dnssec, q.header.CheckingDisabled, q.header.RecursionDesired}
	now := time.Now()
	f.mu.Lock()
	if entry, ok := f.cache[key]; ok && now.Before(entry.expires) {
		f.mu.Unlock()
		return entry.serve(q, now), nil
	}
	if other, ok := f.flights[key]; ok {
		f.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return adopt(q, other.answer), other.err
	}
	if len(f.flights) >= maxInFlight {
		f.mu.Unlock()
		return nil, errBusy
	}
	own := &flight{done: make(chan struct{})}
	f.flights[key] = own
	servers := f.serversLocked(now)
	f.mu.Unlock()

	own.answer, own.err = askAll(ctx, servers, q, message)
	f.mu.Lock()
	delete(f.flights, key)
	if own.err == nil {
		f.rememberLocked(key, own.answer, time.Now())
	}
	f.mu.Unlock()
	close(own.done)
	return adopt(q, own.answer), own.err
}

// serversLocked returns the other servers, from the file when it may have changed.
func (f *Forwarder) serversLocked(now time.Time) []netip.AddrPort {
	if now.Sub(f.checked) < confCheck {
		return f.servers
	}
	f.checked = now
	info, err := os.Stat(f.opts.ResolvConf)
	if err != nil || info.ModTime().Equal(f.modified) {
		return f.servers
	}
	file, err := os.Open(f.opts.ResolvConf)
	if err != nil {
		return f.servers
	}
	defer func() { _ = file.Close() }()
	f.modified, f.servers = info.ModTime(), parseResolvConf(io.LimitReader(file, 1<<16), f.opts)
	return f.servers
}

// parseResolvConf returns the servers that a resolv.conf names, without ourselves.
func parseResolvConf(r io.Reader, opts ForwarderOptions) []netip.AddrPort {
	var out []netip.AddrPort
	lines := bufio.NewScanner(r)
	for lines.Scan() && len(out) < 8 {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		if err == nil && !slices.Contains(opts.Self, addr.Unmap().WithZone("")) {
			out = append(out, netip.AddrPortFrom(addr, opts.Port))
		}
	}
	return out
}

// askAll asks one server after the other, twice at most, until one gives an answer.
func askAll(ctx context.Context, servers []netip.AddrPort, q query, message []byte) ([]byte, error) {
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	var last error
	for range 2 {
		for _, server := range servers {
			answer, err := ask(ctx, "udp", server, q, message)
			if err == nil && answer[2]&2 != 0 { // truncated
				if whole, err := ask(ctx, "tcp", server, q, message); err == nil {
					answer = whole
				}
			}
			if err == nil && answer[3]&15 != byte(dnsmessage.RCodeServerFailure) && answer[3]&15 != byte(dnsmessage.RCodeRefused) {
				return answer, nil
			}
			if err == nil {
				err = fmt.Errorf("dns: %s answers with code %d", server, answer[3]&15)
			}
			last = err
			if ctx.Err() != nil {
				return nil, last
			}
		}
	}
	return nil, last
}

// ask sends the message under a random number and waits for the answer to it.
func ask(ctx context.Context, network string, server netip.AddrPort, q query, message []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, server.String())
	if err != nil {
		return nil, fmt.Errorf("dns: asking %s: %w", server, err)
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("dns: asking %s: %w", server, err)
	}
	out := make([]byte, 2, len(message)+2)
	binary.BigEndian.PutUint16(out, uint16(len(message)))
	out = append(out, message...)
	if _, err := rand.Read(out[2:4]); err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	id := binary.BigEndian.Uint16(out[2:])
	if network == "udp" {
		out = out[2:]
	}
	if _, err := conn.Write(out); err != nil {
		return nil, fmt.Errorf("dns: asking %s: %w", server, err)
	}
	for {
		answer, err := readMessage(conn, network)
		if err != nil {
			return nil, fmt.Errorf("dns: asking %s: %w", server, err)
		}
		if matches(answer, id, q) {
			return answer, nil
		}
		if network == "tcp" {
			return nil, fmt.Errorf("dns: %s answers another question", server)
		}
	}
}

func readMessage(conn net.Conn, network string) ([]byte, error) {
	if network == "udp" {
		buf := make([]byte, maxUDP*4)
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(conn, buf)
	return buf, err
}

// matches reports whether the message answers our question.
func matches(answer []byte, id uint16, q query) bool {
	var p dnsmessage.Parser
	h, err := p.Start(answer)
	if err != nil || !h.Response || h.ID != id {
		return false
	}
	question, err := p.Question()
	return err == nil && question.Type == q.question.Type && strings.EqualFold(question.Name.String(), q.question.Name.String())
}

// adopt copies an answer for another client: its number, its spelling of the name.
func adopt(q query, answer []byte) []byte {
	if len(answer) < 12 {
		return nil
	}
	out := slices.Clone(answer)
	binary.BigEndian.PutUint16(out, q.header.ID)
	at := 12
	for _, label := range strings.Split(strings.TrimSuffix(q.question.Name.String(), "."), ".") {
		if at+1+len(label) > len(out) || int(out[at]) != len(label) {
			return out
		}
		copy(out[at+1:], label)
		at += 1 + len(label)
	}
	return out
}

// serve returns the entry's answer with its time to live counted down.
func (e cacheEntry) serve(q query, now time.Time) []byte {
	out := adopt(q, e.message)
	gone := uint32(now.Sub(e.stored) / time.Second)
	for _, at := range e.ttls {
		ttl := binary.BigEndian.Uint32(out[at:])
		binary.BigEndian.PutUint32(out[at:], ttl-min(ttl, gone))
	}
	return out
}

// rememberLocked stores an answer that may be stored.
func (f *Forwarder) rememberLocked(key cacheKey, answer []byte, now time.Time) {
	code := dnsmessage.RCode(answer[3] & 15)
	if len(answer) > cacheEntryMax || answer[2]&2 != 0 || code != dnsmessage.RCodeSuccess && code != dnsmessage.RCodeNameError {
		return
	}
	ttls, lowest, ok := findTTLs(answer)
	life := min(time.Duration(lowest)*time.Second, cacheTTLMax)
	if !ok || life == 0 {
		return
	}
	for old, entry := range f.cache {
		if len(f.cache) < cacheEntries {
			break
		}
		if now.After(entry.expires) || len(f.cache) >= cacheEntries {
			delete(f.cache, old)
		}
	}
	f.cache[key] = cacheEntry{message: slices.Clone(answer), ttls: ttls, stored: now, expires: now.Add(life)}
}

// findTTLs returns where a message's TTLs are and the lowest; ok is false without records.
func findTTLs(message []byte) (at []int, lowest uint32, ok bool) {
	lowest = ^uint32(0)
	offset := 12
	for range binary.BigEndian.Uint16(message[4:]) {
		if offset = skipName(message, offset) + 4; offset < 16 || offset > len(message) {
			return nil, 0, false
		}
	}
	records := int(binary.BigEndian.Uint16(message[6:])) + int(binary.BigEndian.Uint16(message[8:])) + int(binary.BigEndian.Uint16(message[10:]))
	for range records {
		if offset = skipName(message, offset); offset < 0 || offset+10 > len(message) {
			return nil, 0, false
		}
		if Type(binary.BigEndian.Uint16(message[offset:])) != 41 { // OPT has flags there
			at = append(at, offset+4)
			lowest = min(lowest, binary.BigEndian.Uint32(message[offset+4:]))
		}
		offset += 10 + int(binary.BigEndian.Uint16(message[offset+8:]))
		if offset > len(message) {
			return nil, 0, false
		}
	}
	return at, lowest, len(at) > 0
}

// skipName returns the offset behind a name, or a negative number.
func skipName(message []byte, offset int) int {
	for offset < len(message) {
		length := int(message[offset])
		switch {
		case length == 0:
			return offset + 1
		case length >= 0xc0:
			return offset + 2
		}
		offset += 1 + length
	}
	return -100
}
