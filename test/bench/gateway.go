//go:build linux

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"gantry.dev/gantry/internal/network/dns"
	"gantry.dev/gantry/internal/network/feed"
	"gantry.dev/gantry/internal/network/gateway"
)

// partGateway compares gantry-edge's gateway with haproxy and nginx. It runs when it alone is
// named, and needs BIN/gantry-edge and what scripts/bench-gateway.sh installs: haproxy, nginx, wrk.
const partGateway = "gateway"

// proxy is one of the compared programs.
type proxy struct {
	name        string
	http, https int // ports
}

// gatewayBench is one run of the part.
type gatewayBench struct {
	dir      string
	opts     options
	children []*exec.Cmd
}

// measureGateway starts a backend and the proxies before it, loads each in turn, and prints
// requests per second: the median of the rounds.
func measureGateway(ctx context.Context, opts options, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "ggw")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	b := &gatewayBench{dir: dir, opts: opts}
	defer func() {
		for _, c := range b.children {
			_ = c.Process.Signal(syscall.SIGTERM) // nginx ends its workers then
			_ = c.Wait()
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := b.startProxies(ctx); err != nil {
		return err
	}
	proxies := []proxy{{"none", 9000, 0}, {"haproxy", 8001, 8441}, {"nginx", 8002, 8442}, {"gantry", 8003, 8443}}
	rates := map[string][]float64{}
	for range opts.rounds {
		for _, p := range proxies {
			for scheme, port := range map[string]int{"http": p.http, "https": p.https} {
				if port == 0 {
					continue
				}
				rate, err := b.load(ctx, scheme, port)
				if err != nil {
					return fmt.Errorf("%s %s: %w", p.name, scheme, err)
				}
				rates[p.name+" "+scheme] = append(rates[p.name+" "+scheme], rate)
			}
		}
	}
	return b.table(out, proxies, rates)
}

func (b *gatewayBench) table(out io.Writer, proxies []proxy, rates map[string][]float64) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "requests/s\thttp\tof haproxy\thttps\tof haproxy")
	median := func(name string) float64 {
		list := slices.Sorted(slices.Values(rates[name]))
		if len(list) == 0 {
			return 0
		}
		return list[len(list)/2]
	}
	for _, p := range proxies {
		plain, secure := median(p.name+" http"), median(p.name+" https")
		_, _ = fmt.Fprintf(w, "%s\t%.0f\t%.2f\t%.0f\t%.2f\n", p.name, plain, plain/median("haproxy http"), secure, secure/median("haproxy https"))
	}
	if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.children[len(b.children)-1].Process.Pid)); err == nil {
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "VmHWM") {
				_, _ = fmt.Fprint(w, "gantry-edge "+line)
			}
		}
	}
	return w.Flush()
}

// start runs a program in the background until the end of the benchmark.
func (b *gatewayBench) start(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	b.children = append(b.children, cmd)
	return nil
}

// write writes a file of the run's folder and returns its path.
func (b *gatewayBench) write(name, content string) (string, error) {
	path := filepath.Join(b.dir, name)
	return path, os.WriteFile(path, []byte(content), 0o644)
}

// startProxies starts nginx as the backend (1 KB answers), and haproxy, nginx and gantry-edge
// before it, each with its defaults for workers.
func (b *gatewayBench) startProxies(ctx context.Context) error {
	chain, key, err := benchCertificate()
	if err != nil {
		return err
	}
	pemFile, err := b.write("cert.pem", chain+key)
	if err != nil {
		return err
	}
	workers := "worker_processes auto;\nerror_log /dev/null;\ndaemon off;\npid " + b.dir + "/%s.pid;\nevents { worker_connections 4096; }\nhttp {\naccess_log off;\nkeepalive_requests 1000000;\nkeepalive_timeout 300s;\n"
	temp := "client_body_temp_path " + b.dir + "/t1; proxy_temp_path " + b.dir + "/t2; fastcgi_temp_path " + b.dir + "/t3; uwsgi_temp_path " + b.dir + "/t4; scgi_temp_path " + b.dir + "/t5;\n"
	backend, err := b.write("backend.conf", fmt.Sprintf(workers, "backend")+temp+"server { listen 127.0.0.1:9000; location / { return 200 \""+strings.Repeat("x", 1024)+"\"; } }\n}\n")
	if err != nil {
		return err
	}
	front, err := b.write("front.conf", fmt.Sprintf(workers, "front")+temp+"upstream up { server 127.0.0.1:9000; keepalive 128; keepalive_requests 1000000; }\n"+
		"server { listen 127.0.0.1:8002; listen 127.0.0.1:8442 ssl; ssl_certificate "+pemFile+"; ssl_certificate_key "+pemFile+";\n"+
		"location / { proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header X-Forwarded-For $remote_addr; } }\n}\n")
	if err != nil {
		return err
	}
	ha, err := b.write("haproxy.cfg", "global\n maxconn 4096\ndefaults\n mode http\n timeout client 60s\n timeout server 60s\n timeout connect 5s\n option forwardfor\n http-reuse always\n"+
		"frontend f\n bind 127.0.0.1:8001\n bind 127.0.0.1:8441 ssl crt "+pemFile+"\n default_backend b\nbackend b\n server s 127.0.0.1:9000\n")
	if err != nil {
		return err
	}
	if err := errors.Join(b.start(ctx, "nginx", "-c", backend), b.start(ctx, "nginx", "-c", front), b.start(ctx, "haproxy", "-f", ha)); err != nil {
		return err
	}
	return b.startEdge(ctx, chain, key)
}

// startEdge starts gantry-edge, which is the last of the children, and feeds it.
func (b *gatewayBench) startEdge(ctx context.Context, chain, key string) error {
	socket := filepath.Join(b.dir, "s")
	if err := b.start(ctx, b.opts.bin+"/gantry-edge", "-socket", socket, "-state", filepath.Join(b.dir, "edge"), "-dns", "127.0.0.1:5300"); err != nil {
		return err
	}
	var conn net.Conn
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if conn, err = net.Dial("unix", socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("connect to the edge: %w", err)
		}
	}
	defer func() { _ = conn.Close() }()
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	table := feed.Table{Generation: 1, DNS: dns.Table{Config: dns.Config{Domain: "cluster.local"}}, Gateway: &gateway.Table{
		Settings:     gateway.Settings{NoAccessLog: os.Getenv("BENCH_ACCESS_LOG") == ""}, // as the others
		Listeners:    []gateway.Listener{{Name: "http", Addresses: loopback, Port: 8003, Protocol: "http"}, {Name: "https", Addresses: loopback, Port: 8443, Protocol: "https"}},
		Certificates: map[string]gateway.Certificate{"c": {Chain: []byte(chain), Key: []byte(key), Default: true}},
		Services:     map[string]gateway.Service{"a/b:80": {Namespace: "a", Name: "b", Endpoints: []gateway.Endpoint{{Address: netip.MustParseAddrPort("127.0.0.1:9000"), Ready: true}}}},
		Routes:       map[string][]gateway.Route{"r": {{Backends: []gateway.Backend{{Service: "a/b:80", Weight: 1}}}}},
	}}
	var ack feed.Ack
	if err := feed.Expect(conn, feed.KindHello, &feed.Hello{}); err != nil {
		return err
	}
	return errors.Join(feed.Write(conn, feed.KindTable, table), feed.Expect(conn, feed.KindAck, &ack))
}

// load runs wrk for a round and returns requests per second. One error spoils the round.
func (b *gatewayBench) load(ctx context.Context, scheme string, port int) (float64, error) {
	url := fmt.Sprintf("%s://127.0.0.1:%d/", scheme, port)
	out, err := exec.CommandContext(ctx, "wrk", "-t2", "-c64", fmt.Sprintf("-d%ds", max(1, int(b.opts.round.Seconds()))), url).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("wrk: %w: %s", err, out)
	}
	if strings.Contains(string(out), "Socket errors") || strings.Contains(string(out), "Non-2xx") {
		return 0, fmt.Errorf("failed requests: %s", out)
	}
	match := regexp.MustCompile(`Requests/sec:\s+([0-9.]+)`).FindSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("wrk says %s", out)
	}
	return strconv.ParseFloat(string(match[1]), 64)
}

// benchCertificate returns a certificate and its key as PEM.
func benchCertificate() (chain, key string, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"bench.example"}, NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		return "", "", err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return "", "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})), nil
}
