package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func TestCurl(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			<-r.Context().Done()
		case "/missing":
			w.WriteHeader(http.StatusNotFound)
		default:
			_, _ = io.WriteString(w, r.Method+" "+r.Header.Get("X-A"))
		}
	}))
	t.Cleanup(server.Close)
	secure := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "safe") }))
	t.Cleanup(secure.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	file := filepath.Join(t.TempDir(), "out")
	for name, tc := range map[string]struct {
		args []string
		want string
		code int
	}{
		"an address":            {[]string{"-g", "-q", "-s", server.URL}, "GET ", 0},
		"without a scheme":      {[]string{"-qs", strings.TrimPrefix(server.URL, "http://")}, "GET ", 0},
		"a header":              {[]string{"--header", "X-A: b", server.URL}, "GET b", 0},
		"from an address":       {[]string{"--interface", "127.0.0.1", server.URL}, "GET ", 0},
		"a method":              {[]string{"-XPUT", server.URL}, "PUT ", 0},
		"the status":            {[]string{"-s", "-o", file, "-w", `%{http_code}\n`, server.URL + "/missing"}, "404\n", 0},
		"a status that fails":   {[]string{"-sf", server.URL + "/missing"}, "", curlBadStatus},
		"nobody there":          {[]string{"--connect-timeout", "1", closed.URL}, "", curlNoConnect},
		"no answer in time":     {[]string{"--max-time", "0.05", server.URL + "/slow"}, "", curlTimeout},
		"a certificate of ours": {[]string{"-k", secure.URL}, "safe", 0},
		"one that is not known": {[]string{secure.URL}, "", curlNoConnect},
		"an unknown flag":       {[]string{"--proxy", "x", server.URL}, "", curlBadFlag},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := curl(tc.args, streams{out: &out})
			code := 0
			if exit, ok := errors.AsType[*exitError](err); ok {
				code = exit.code
			}
			if code != tc.code || err != nil && tc.code == 0 || out.String() != tc.want {
				t.Errorf("got %q, code %d (%v); want %q, %d", out.String(), code, err, tc.want, tc.code)
			}
		})
	}
}

func TestDigPrintsAnswers(t *testing.T) {
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, question *dns.Msg) {
		answer := new(dns.Msg).SetReply(question)
		if question.Question[0].Name == "a.test." {
			record, _ := dns.NewRR("a.test. 5 IN A 10.0.0.1")
			answer.Answer = append(answer.Answer, record)
		}
		_ = w.WriteMsg(answer)
	})}
	done := make(chan error)
	go func() { done <- server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown(); <-done })

	o, err := parseDig([]string{"+notcp", "+noall", "+answer", "+short", "a.test"})
	if err != nil {
		t.Fatal(err)
	}
	o.server = packets.LocalAddr().String()
	client := &dns.Client{Timeout: time.Minute}
	answers, err := ask(client, o, "a.test.")
	if err != nil || len(answers) != 1 || o.line(answers[0]) != "10.0.0.1" {
		t.Errorf("answers %v, error %v", answers, err)
	}
	if answers, err = ask(client, o, "b.test."); err != nil || len(answers) != 0 {
		t.Errorf("answers %v, error %v", answers, err)
	}
}

func TestParseDig(t *testing.T) {
	got, err := parseDig([]string{"+tcp", "+search", "@10.0.0.10", "1.0.0.10.in-addr.arpa.", "PTR"})
	want := digOptions{name: "1.0.0.10.in-addr.arpa.", server: "10.0.0.10:53", kind: dns.TypePTR, tcp: true, search: true}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	config := &dns.ClientConfig{Search: []string{"ns.svc.test"}, Ndots: 5}
	got.name = "db"
	if names := got.names(config); !slices.Equal(names, []string{"db.ns.svc.test.", "db."}) {
		t.Errorf("names %q", names)
	}
	for _, args := range [][]string{nil, {"+trace", "a"}, {"a", "b"}} {
		if _, err := parseDig(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func TestNetcat(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			line := make([]byte, 9)
			_, _ = io.ReadFull(conn, line)
			_, _ = conn.Write(append([]byte("got "), line...))
			_ = conn.Close()
		}
	}()
	host, port, _ := net.SplitHostPort(listener.Addr().String())
	var out, said bytes.Buffer
	if err := netcat([]string{"-v", "-t", "-w", "60", host, port}, streams{strings.NewReader("hostName\n"), &out, &said}); err != nil {
		t.Fatal(err)
	}
	if out.String() != "got hostName\n" || !strings.Contains(said.String(), "succeeded!") {
		t.Errorf("printed %q, said %q", out.String(), said.String())
	}
}

func TestNetcatEndsWhenNothingComes(t *testing.T) {
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = packets.Close() })
	host, port, _ := net.SplitHostPort(packets.LocalAddr().String())
	o, err := parseNetcat([]string{"-u", "-w", "1", host, port})
	if err != nil {
		t.Fatal(err)
	}
	o.wait = 20 * time.Millisecond
	conn, err := net.Dial(o.network, net.JoinHostPort(o.host, o.port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := o.receive(conn, io.Discard); err != nil {
		t.Error(err)
	}
}

func TestGetentKnowsTheHostsFile(t *testing.T) {
	if _, err := os.Stat("/etc/hosts"); err != nil {
		t.Skip("no /etc/hosts here")
	}
	var out bytes.Buffer
	if err := getent([]string{"hosts", "localhost"}, streams{out: &out}); err != nil || !strings.Contains(out.String(), "localhost") {
		t.Errorf("printed %q, error %v", out.String(), err)
	}
}

func TestPlainScripts(t *testing.T) {
	for script, want := range map[string][]string{
		"env":                {"env"},
		" printenv  data-1 ": {"printenv", "data-1"},
		"env; sleep 1":       nil,
		"echo $HOME":         nil,
		"A=1 env":            nil,
		"":                   nil,
	} {
		if got := plain(script); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", script, got, want)
		}
	}
	for script, want := range map[string]string{"echo a | nc -w 1 h 1": ours + "echo a | nc -w 1 h 1", "rsync a b": "rsync a b"} {
		if got := withTools(script); got != want {
			t.Errorf("%q: %q, want %q", script, got, want)
		}
	}
	for entry, want := range map[string]bool{"data-1=x": true, "1A=": true, "A_1=b-c": false, "p.q=": true} {
		if odd(entry) != want {
			t.Errorf("%q: odd %v", entry, !want)
		}
	}
}
