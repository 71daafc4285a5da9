package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
)

// HostPort is a port of the node that leads to a port of the pod.
type HostPort struct {
	HostIP   netip.Addr `json:"hostIP,omitzero"` // the zero Addr means every address of the node
	HostPort uint16     `json:"hostPort"`
	PodPort  uint16     `json:"podPort"`
	Protocol string     `json:"protocol"` // "TCP" (also when empty), "UDP" or "SCTP"
}

// record is what the file of a pod holds.
type record struct {
	UID       string       `json:"uid"`
	Addrs     []netip.Addr `json:"addresses"`
	HostPorts []HostPort   `json:"hostPorts,omitempty"`
}

// store keeps the records on disk. A record counts from the moment its rename returned.
type store struct{ dir string }

func (s store) load() ([]record, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("reading pod records: %w", err)
	}
	var out []record
	for _, entry := range entries {
		path := filepath.Join(s.dir, entry.Name())
		if filepath.Ext(path) == ".tmp" {
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("removing a half-written pod record: %w", err)
			}
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading pod record: %w", err)
		}
		var r record
		if err := json.Unmarshal(data, &r); err != nil || r.UID != entry.Name() {
			return nil, fmt.Errorf("pod record %s is damaged; remove it when no pod uses it: %w", path, errors.Join(err, fs.ErrInvalid))
		}
		out = append(out, r)
	}
	return out, nil
}

func (s store) write(r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding pod record: %w", err)
	}
	path := filepath.Join(s.dir, r.UID)
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("writing pod record: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return fmt.Errorf("writing pod record: %w", err)
	}
	return nil
}

func (s store) remove(uid string) error {
	if err := os.Remove(filepath.Join(s.dir, uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing pod record: %w", err)
	}
	return nil
}

// pool hands out the addresses of one prefix, always the next free one after the last, so
// that an address rests as long as possible before another pod gets it.
type pool struct {
	prefix netip.Prefix
	used   map[netip.Addr]bool
	last   netip.Addr
}

// errPoolFull says that every address of the node's range is taken.
var errPoolFull = errors.New("no free pod address on this node")

// newPool reserves the network's own address, the gateway's (the first) and the broadcast.
func newPool(prefix netip.Prefix) *pool {
	prefix = prefix.Masked()
	p := &pool{prefix: prefix, used: map[netip.Addr]bool{prefix.Addr(): true, lastAddr(prefix): true}}
	p.last = prefix.Addr().Next()
	p.used[p.last] = true
	return p
}

func (p *pool) gateway() netip.Addr { return p.prefix.Addr().Next() }

// take reserves and returns the next free address.
func (p *pool) take() (netip.Addr, error) {
	addr := p.last
	for {
		addr = addr.Next()
		if !p.prefix.Contains(addr) {
			addr = p.prefix.Addr()
		}
		if !p.used[addr] {
			p.used[addr] = true
			p.last = addr
			return addr, nil
		}
		if addr == p.last {
			return netip.Addr{}, fmt.Errorf("%w (%s)", errPoolFull, p.prefix)
		}
	}
}

// reserve marks an address that a record holds. It reports whether it was free.
func (p *pool) reserve(addr netip.Addr) bool {
	if p.used[addr] {
		return false
	}
	p.used[addr] = true
	if p.prefix.Contains(addr) && p.last.Less(addr) {
		p.last = addr
	}
	return true
}

func (p *pool) free(addr netip.Addr) {
	if !slices.Contains([]netip.Addr{p.prefix.Addr(), p.gateway(), lastAddr(p.prefix)}, addr) {
		delete(p.used, addr)
	}
}

// lastAddr returns the highest address of an IPv4 prefix.
func lastAddr(prefix netip.Prefix) netip.Addr {
	bytes := prefix.Masked().Addr().As4()
	for bit := prefix.Bits(); bit < 32; bit++ {
		bytes[bit/8] |= 1 << (7 - bit%8)
	}
	return netip.AddrFrom4(bytes)
}

// nthAddr returns the n-th address of an IPv4 prefix, counted from 0.
func nthAddr(prefix netip.Prefix, n int) netip.Addr {
	addr := prefix.Masked().Addr()
	for range n {
		addr = addr.Next()
	}
	return addr
}
