package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	mdns "github.com/miekg/dns"
)

func testTable() Table {
	ip := netip.MustParseAddr
	return Table{
		Config: Config{Domain: "cluster.local", Ranges: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("10.244.0.0/16")}},
		Sets: map[string][]Record{
			"ns/default": {{Name: "default.svc.cluster.local"}},
			"svc/web": {
				{Name: "web.default.svc.cluster.local", Type: A, Addr: ip("10.96.0.20")},
				{Name: "_http._tcp.web.default.svc.cluster.local", Type: SRV, Target: "web.default.svc.cluster.local", Port: 80},
				{Name: "20.0.96.10.in-addr.arpa", Type: PTR, Target: "web.default.svc.cluster.local"},
			},
			"svc/db": {
				{Name: "db.default.svc.cluster.local", Type: A, Addr: ip("10.244.0.5")},
				{Name: "db.default.svc.cluster.local", Type: A, Addr: ip("10.244.0.6")},
				{Name: "db-0.db.default.svc.cluster.local", Type: A, Addr: ip("10.244.0.5")},
				{Name: "_pg._tcp.db.default.svc.cluster.local", Type: SRV, Target: "db-0.db.default.svc.cluster.local", Port: 5432},
			},
			"svc/alias":  {{Name: "alias.default.svc.cluster.local", Type: CNAME, Target: "web.default.svc.cluster.local"}},
			"svc/extern": {{Name: "extern.default.svc.cluster.local", Type: CNAME, Target: "www.example.com"}},
			"svc/loop":   {{Name: "loop.default.svc.cluster.local", Type: CNAME, Target: "loop.default.svc.cluster.local"}},
			"version":    {{Name: "dns-version.cluster.local", Type: TXT, Target: "1.1.0"}},
		},
	}
}

// testServer answers from testTable and forwards to a server of the test's own.
func testServer(t testing.TB) *Server {
	t.Helper()
	mux := mdns.NewServeMux()
	mux.HandleFunc(".", func(w mdns.ResponseWriter, r *mdns.Msg) {
		m := new(mdns.Msg)
		m.SetReply(r)
		switch strings.ToLower(r.Question[0].Name) {
		case "www.example.com.":
			rr, _ := mdns.NewRR("www.example.com. 60 IN A 203.0.113.1")
			m.Answer = append(m.Answer, rr)
		case "large.example.com.":
			for i := range 100 {
				rr, _ := mdns.NewRR(fmt.Sprintf("large.example.com. 60 IN A 203.0.113.%d", i))
				m.Answer = append(m.Answer, rr)
			}
			if w.LocalAddr().Network() == "udp" {
				m.Truncate(512)
			}
		default:
			m.Rcode = mdns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp4", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*mdns.Server{{PacketConn: udp, Handler: mux}, {Listener: tcp, Handler: mux}} {
		go func() { _ = s.ActivateAndServe() }()
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("search x\nnameserver 10.96.0.10\nnameserver 127.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	zone := NewZone()
	if err := zone.Replace(testTable()); err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(udp.LocalAddr().String()).Port()
	return NewServer(zone, NewForwarder(ForwarderOptions{ResolvConf: conf, Self: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Port: port}),
		slog.New(slog.DiscardHandler))
}

// short returns the answer in short: the code, then each record.
func short(t testing.TB, s *Server, question string, qtype uint16, limit int) string {
	t.Helper()
	m := new(mdns.Msg)
	m.SetQuestion(question, qtype)
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	r := new(mdns.Msg)
	if err := r.Unpack(s.Answer(t.Context(), packed, limit)); err != nil {
		t.Fatal(err)
	}
	if r.Id != m.Id || len(r.Question) != 1 || r.Question[0] != m.Question[0] {
		t.Errorf("the answer is to another question: %v", r.Question)
	}
	out := mdns.RcodeToString[r.Rcode]
	if r.Truncated {
		out += " truncated"
	}
	for _, section := range [][]mdns.RR{r.Answer, r.Ns, r.Extra} {
		for _, rr := range section {
			out += fmt.Sprintf("\n%s %s", rr.Header().Name, mdns.TypeToString[rr.Header().Rrtype])
			switch v := rr.(type) {
			case *mdns.A:
				out += " " + v.A.String()
			case *mdns.SRV:
				out += fmt.Sprintf(" %d %s", v.Port, v.Target)
			case *mdns.CNAME:
				out += " " + v.Target
			case *mdns.PTR:
				out += " " + v.Ptr
			case *mdns.TXT:
				out += " " + v.Txt[0]
			}
		}
	}
	return out
}

func TestAnswers(t *testing.T) {
	s := testServer(t)
	const soa = "\ncluster.local. SOA"
	for name, tc := range map[string]struct {
		question string
		qtype    uint16
		want     string
	}{
		"service":              {"web.default.svc.cluster.local.", mdns.TypeA, "NOERROR\nweb.default.svc.cluster.local. A 10.96.0.20"},
		"spelling is kept":     {"WeB.default.svc.Cluster.local.", mdns.TypeA, "NOERROR\nWeB.default.svc.Cluster.local. A 10.96.0.20"},
		"no such type":         {"web.default.svc.cluster.local.", mdns.TypeAAAA, "NOERROR" + soa},
		"no such service":      {"wbe.default.svc.cluster.local.", mdns.TypeA, "NXDOMAIN" + soa},
		"namespace":            {"default.svc.cluster.local.", mdns.TypeA, "NOERROR" + soa},
		"no such namespace":    {"web.nowhere.svc.cluster.local.", mdns.TypeA, "NXDOMAIN" + soa},
		"name between":         {"_tcp.web.default.svc.cluster.local.", mdns.TypeSRV, "NOERROR" + soa},
		"named port":           {"_http._tcp.web.default.svc.cluster.local.", mdns.TypeSRV, "NOERROR\n_http._tcp.web.default.svc.cluster.local. SRV 80 web.default.svc.cluster.local.\nweb.default.svc.cluster.local. A 10.96.0.20"},
		"headless port":        {"_pg._tcp.db.default.svc.cluster.local.", mdns.TypeSRV, "NOERROR\n_pg._tcp.db.default.svc.cluster.local. SRV 5432 db-0.db.default.svc.cluster.local.\ndb-0.db.default.svc.cluster.local. A 10.244.0.5"},
		"pod's hostname":       {"db-0.db.default.svc.cluster.local.", mdns.TypeA, "NOERROR\ndb-0.db.default.svc.cluster.local. A 10.244.0.5"},
		"reverse":              {"20.0.96.10.in-addr.arpa.", mdns.TypePTR, "NOERROR\n20.0.96.10.in-addr.arpa. PTR web.default.svc.cluster.local."},
		"reverse, nobody":      {"21.0.96.10.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN" + soa},
		"reverse, outside":     {"1.113.0.203.in-addr.arpa.", mdns.TypePTR, "NXDOMAIN"},
		"pod":                  {"10-244-0-5.default.pod.cluster.local.", mdns.TypeA, "NOERROR\n10-244-0-5.default.pod.cluster.local. A 10.244.0.5"},
		"pod, not an address":  {"web.default.pod.cluster.local.", mdns.TypeA, "NXDOMAIN" + soa},
		"pod, other namespace": {"10-244-0-5.nowhere.pod.cluster.local.", mdns.TypeA, "NXDOMAIN" + soa},
		"alias inside":         {"alias.default.svc.cluster.local.", mdns.TypeA, "NOERROR\nalias.default.svc.cluster.local. CNAME web.default.svc.cluster.local.\nweb.default.svc.cluster.local. A 10.96.0.20"},
		"alias outside":        {"extern.default.svc.cluster.local.", mdns.TypeA, "NOERROR\nextern.default.svc.cluster.local. CNAME www.example.com.\nwww.example.com. A 203.0.113.1"},
		"alias itself":         {"extern.default.svc.cluster.local.", mdns.TypeCNAME, "NOERROR\nextern.default.svc.cluster.local. CNAME www.example.com."},
		"version":              {"dns-version.cluster.local.", mdns.TypeTXT, "NOERROR\ndns-version.cluster.local. TXT 1.1.0"},
		"apex":                 {"cluster.local.", mdns.TypeSOA, "NOERROR" + soa},
		"outside":              {"www.example.com.", mdns.TypeA, "NOERROR\nwww.example.com. A 203.0.113.1"},
		"outside, nobody":      {"nobody.example.com.", mdns.TypeA, "NXDOMAIN"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, short(t, s, tc.question, tc.qtype, 0)); diff != "" {
				t.Errorf("answer to %s (-want +got):\n%s", tc.question, diff)
			}
		})
	}
}

func TestLargeAnswers(t *testing.T) {
	s := testServer(t)
	if got := short(t, s, "large.example.com.", mdns.TypeA, 0); got != "NOERROR truncated" {
		t.Errorf("by UDP: %.100s, want it truncated", got)
	}
	if got := short(t, s, "large.example.com.", mdns.TypeA, 65535); strings.Count(got, "203.0.113") != 100 {
		t.Errorf("by TCP: %.100s, want 100 addresses", got)
	}
}

func TestAddressesRotate(t *testing.T) {
	s := testServer(t)
	first := map[string]bool{}
	for range 4 {
		first[strings.Split(short(t, s, "db.default.svc.cluster.local.", mdns.TypeA, 0), "\n")[1]] = true
	}
	if len(first) != 2 {
		t.Errorf("first answers %v, want both addresses in turn", first)
	}
}

func TestUpdateRemovesNames(t *testing.T) {
	z := NewZone()
	if err := z.Replace(testTable()); err != nil {
		t.Fatal(err)
	}
	all := map[string][]Record{}
	for key := range testTable().Sets {
		all[key] = nil
	}
	if err := z.Update(all); err != nil {
		t.Fatal(err)
	}
	if len(z.names) != 0 || len(z.sets) != 0 {
		t.Errorf("left after removing all: %v", z.names)
	}
}

func TestCacheCountsDown(t *testing.T) {
	s := testServer(t)
	for range 3 {
		short(t, s, "www.example.com.", mdns.TypeA, 0)
	}
	if n := len(s.forward.cache); n != 1 {
		t.Errorf("%d answers remembered, want 1", n)
	}
	for key, entry := range s.forward.cache {
		entry.stored = entry.stored.Add(-10e9)
		s.forward.cache[key] = entry
	}
	m := new(mdns.Msg)
	m.SetQuestion("wWw.example.com.", mdns.TypeA)
	packed, _ := m.Pack()
	r := new(mdns.Msg)
	if err := r.Unpack(s.Answer(t.Context(), packed, 0)); err != nil {
		t.Fatal(err)
	}
	if r.Answer[0].Header().Ttl != 50 || r.Question[0].Name != "wWw.example.com." {
		t.Errorf("remembered answer %v, want 50 s left and the client's spelling", r)
	}
}

func FuzzAnswer(f *testing.F) {
	zone := NewZone()
	if err := zone.Replace(testTable()); err != nil {
		f.Fatal(err)
	}
	s := NewServer(zone, NewForwarder(ForwarderOptions{ResolvConf: "/nonexistent"}), slog.New(slog.DiscardHandler))
	for _, name := range []string{"web.default.svc.cluster.local.", "extern.default.svc.cluster.local.", "loop.default.svc.cluster.local.", "a.example."} {
		m := new(mdns.Msg)
		m.SetQuestion(name, mdns.TypeA)
		m.SetEdns0(1232, true)
		packed, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		answer := s.Answer(context.Background(), message, 0)
		if answer == nil {
			return
		}
		if len(answer) < 12 || answer[2]&0x80 == 0 || answer[0] != message[0] || answer[1] != message[1] || len(answer) > maxUDP {
			t.Fatalf("not an answer: % x to % x", answer, message)
		}
		if err := new(mdns.Msg).Unpack(answer); err != nil {
			t.Fatalf("unreadable answer % x: %v", answer, err)
		}
	})
}

func FuzzTTLs(f *testing.F) {
	f.Add(make([]byte, 12))
	f.Fuzz(func(t *testing.T, message []byte) {
		if len(message) < 12 {
			return
		}
		at, _, ok := findTTLs(message)
		for _, i := range at {
			if ok && i+4 > len(message) {
				t.Fatalf("TTL at %d of %d bytes", i, len(message))
			}
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	s := testServer(b)
	m := new(mdns.Msg)
	m.SetQuestion("web.default.svc.cluster.local.", mdns.TypeA)
	packed, _ := m.Pack()
	b.ReportAllocs()
	for b.Loop() {
		s.Answer(b.Context(), packed, 0)
	}
}
