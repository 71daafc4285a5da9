//go:build linux

package service

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"gantry.dev/gantry/internal/network/nettest"
)

func TestWithoutSilent(t *testing.T) {
	addr := netip.MustParseAddr
	list := func(ips ...string) []discoveryv1.EndpointSlice {
		s := slice("kubernetes")
		for _, ip := range ips {
			s.Endpoints = append(s.Endpoints, on("", ip))
		}
		return []discoveryv1.EndpointSlice{*s}
	}
	for name, tc := range map[string]struct {
		have   []string
		silent []string
		want   []string
	}{
		"all heard":       {[]string{"192.0.2.1", "192.0.2.2"}, nil, []string{"192.0.2.1", "192.0.2.2"}},
		"one silent":      {[]string{"192.0.2.1", "192.0.2.2"}, []string{"192.0.2.1"}, []string{"192.0.2.2"}},
		"all silent":      {[]string{"192.0.2.1", "192.0.2.2"}, []string{"192.0.2.1", "192.0.2.2"}, []string{"192.0.2.1", "192.0.2.2"}},
		"a stranger":      {[]string{"192.0.2.1"}, []string{"192.0.2.9"}, []string{"192.0.2.1"}},
		"the only server": {[]string{"192.0.2.1"}, []string{"192.0.2.1"}, []string{"192.0.2.1"}},
	} {
		t.Run(name, func(t *testing.T) {
			silent := map[netip.Addr]bool{}
			for _, ip := range tc.silent {
				silent[addr(ip)] = true
			}
			have := list(tc.have...)
			var got []string
			for _, e := range withoutSilent(have, silent)[0].Endpoints {
				got = append(got, e.Addresses[0])
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("left are %v, want %v", got, tc.want)
			}
			if len(have[0].Endpoints) != len(tc.have) {
				t.Error("the list that was given has changed")
			}
		})
	}
}

// hold accepts connections in a pod, says the pod's name on each and keeps it open.
func (w *world) hold(name, address string) {
	w.t.Helper()
	err := nettest.In(w.t, w.paths[name], func() error {
		listener, err := net.Listen("tcp4", address)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				w.t.Cleanup(func() { _ = conn.Close() })
				_, _ = io.WriteString(conn, name+" held\n")
			}
		}()
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// held is a connection that is kept, and who answers it.
type held struct {
	net.Conn
	with string
}

func (w *world) keep(from string) held {
	w.t.Helper()
	conn := nettest.Dial(w.t, w.paths[from], "tcp4", "10.96.0.1:443")
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	text, err := bufio.NewReaderSize(conn, 16).ReadString('\n')
	if err != nil {
		w.t.Fatal(err)
	}
	return held{conn, strings.Fields(text)[0]}
}

// ends waits for a connection's end, sending nothing.
func (h held) ends(limit time.Duration) error {
	_ = h.SetReadDeadline(time.Now().Add(limit))
	_, err := h.Read(make([]byte, 1))
	return err
}

// A connection from a pod to an API server that this node hears no more ends, though its client only waits; new ones go elsewhere.
// Connections to a server that another Service has lost go on.
func TestConnectionsToDeadServersAreCut(t *testing.T) {
	nettest.Need(t)
	w := newWorld(t, "a", "b", "client")
	port := func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 443}}
	}
	servers := func(name string, pods ...string) *discoveryv1.EndpointSlice {
		s := slice(name)
		s.Ports = []discoveryv1.EndpointPort{{Name: ptr("tcp"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr(int32(6443))}}
		for _, pod := range pods {
			s.Endpoints = append(s.Endpoints, on("", w.addrs[pod].String()))
		}
		return s
	}
	w.put(service("kubernetes", "10.96.0.1", port))
	w.put(servers("kubernetes", "a", "b"))
	w.put(service("other", "10.96.0.2", port))
	w.put(servers("other", "a"))
	for _, pod := range []string{"a", "b"} {
		w.hold(pod, ":6443")
	}
	w.run()
	w.until("client", "tcp4", "10.96.0.1:443", "b")
	var toA, toB []held
	for deadline := time.Now().Add(20 * time.Second); len(toA) < 2 || len(toB) < 2; {
		if h := w.keep("client"); h.with == "a" {
			toA = append(toA, h)
		} else {
			toB = append(toB, h)
		}
		if time.Now().After(deadline) {
			t.Fatal("one server gets all connections")
		}
	}
	elsewhere := nettest.Dial(t, w.paths["client"], "tcp4", "10.96.0.2:443")
	if _, err := elsewhere.Read(make([]byte, 7)); err != nil {
		t.Fatal(err)
	}
	w.put(servers("other", "b"))

	w.proxy.Hear(w.addrs["a"], false)
	for _, h := range toA {
		if err := h.ends(10 * time.Second); !errors.Is(err, syscall.ECONNABORTED) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a connection to the dead server ends with %v", err)
		}
	}
	for range 8 {
		if h := w.keep("client"); h.with != "b" {
			t.Errorf("a new connection goes to %s", h.with)
		}
	}
	for _, h := range append(toB, held{elsewhere, "a"}) {
		if err := h.ends(50 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a connection to %s that should stay: %v", h.with, err)
		}
	}
	w.proxy.Hear(w.addrs["b"], false) // nobody is heard: then it is this node that is cut off
	w.proxy.Hear(w.addrs["a"], true)
	w.proxy.Hear(w.addrs["b"], true)
	w.until("client", "tcp4", "10.96.0.1:443", "a")
}
