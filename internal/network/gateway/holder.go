package gateway

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Process is a program that runs.
type Process struct {
	PID  int
	Name string // of its program
}

// Holder finds who listens on a TCP address, or on all with its port. It reads proc (usually
// /proc) and needs root to see other users' descriptors; ok is false if it found nobody.
func Holder(proc string, at netip.AddrPort) (p Process, ok bool) {
	inodes := map[string]bool{}
	for _, name := range []string{"tcp", "tcp6"} {
		listeners(filepath.Join(proc, "net", name), at, inodes)
	}
	if len(inodes) == 0 {
		return p, false
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return p, false
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, e.Name(), "fd")
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			link, err := os.Readlink(filepath.Join(dir, fd.Name()))
			if err == nil && inodes[link] {
				name, _ := os.ReadFile(filepath.Join(proc, e.Name(), "comm"))
				return Process{PID: pid, Name: strings.TrimSpace(string(name))}, true
			}
		}
	}
	return p, false
}

// listeners adds the sockets of one of proc's tables that listen where at could not.
func listeners(path string, at netip.AddrPort, inodes map[string]bool) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != "0A" { // TCP_LISTEN
			continue
		}
		local, err := parseLocal(fields[1])
		if err != nil || local.Port() != at.Port() {
			continue
		}
		if a := local.Addr().Unmap(); a == at.Addr().Unmap() || a.IsUnspecified() || at.Addr().IsUnspecified() {
			inodes["socket:["+fields[9]+"]"] = true
		}
	}
}

// parseLocal reads "0100007F:0050": words of four bytes in the machine's order.
func parseLocal(text string) (netip.AddrPort, error) {
	host, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, fmt.Errorf("address %q", text)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, ok := netip.AddrFromSlice(raw)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("address %q", text)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}
