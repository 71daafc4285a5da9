package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Ports of servers: each has a machine of its own, so they need not be drawn.
const (
	etcdPort      = "2379"
	peerPort      = "2380"
	apiPort       = "6443"
	managerPort   = "10257"
	schedulerPort = "10259"
)

// Machine is where a server runs.
type Machine struct {
	Address net.IP // where the others reach it
	NetNS   string // its network namespace, as a path
}

// Server is one of several servers: an etcd member with the kube-apiserver, kube-controller-manager and kube-scheduler that use it, as
// kubeadm's stacked etcd has them.
type Server struct {
	*Cluster
	machine  Machine
	opts     Options
	programs [][]string
}

// StartServers starts a server on each machine, which together are one cluster, and returns without waiting for them.
func StartServers(opts Options, machines []Machine) (servers []*Server, err error) {
	if opts.Programs == "" || opts.Dir == "" || len(machines) == 0 {
		return nil, errors.New("upstream: Programs, Dir and machines are required")
	}
	defer func() {
		if err != nil {
			for _, s := range servers {
				err = errors.Join(err, s.Stop())
			}
		}
	}()
	var addresses []net.IP
	var members []string
	for i, m := range machines {
		addresses = append(addresses, m.Address)
		members = append(members, fmt.Sprintf("s%d=http://%s", i, net.JoinHostPort(m.Address.String(), peerPort)))
	}
	const placeholder = "https://server.invalid"
	shared := filepath.Join(opts.Dir, "pki")
	if err := os.MkdirAll(shared, 0o700); err != nil {
		return nil, fmt.Errorf("upstream: make a folder: %w", err)
	}
	if err := writeFiles(shared, placeholder, addresses...); err != nil {
		return nil, err
	}
	for i, m := range machines {
		own := opts
		own.Dir, own.NetNS = filepath.Join(opts.Dir, fmt.Sprintf("s%d", i)), m.NetNS
		url := "https://" + net.JoinHostPort(m.Address.String(), apiPort)
		pki := filepath.Join(own.Dir, "pki")
		if err := copyFiles(shared, pki, placeholder, url); err != nil {
			return servers, err
		}
		programs := arguments(own.Dir, m.Address.String(), []string{etcdPort, peerPort, apiPort, managerPort, schedulerPort})
		programs[0] = memberArguments(own.Dir, i, m.Address, strings.Join(members, ","))
		s := &Server{
			Cluster: &Cluster{
				Kubeconfig: filepath.Join(pki, "admin.kubeconfig"), PKI: pki, Server: url, Etcd: "http://127.0.0.1:" + etcdPort,
				Started: time.Now(), nodeAt: map[string]int{},
			},
			machine: m, opts: own, programs: programs,
		}
		servers = append(servers, s)
		if err := s.Restart(); err != nil {
			return servers, err
		}
	}
	return servers, nil
}

// memberArguments is the command line of member i. It answers on its machine's address too, so that it can be asked who leads.
func memberArguments(dir string, i int, address net.IP, members string) []string {
	at := net.JoinHostPort(address.String(), etcdPort)
	peer := "http://" + net.JoinHostPort(address.String(), peerPort)
	return []string{
		"etcd", fmt.Sprintf("--name=s%d", i), "--data-dir=" + filepath.Join(dir, "etcd"),
		"--listen-client-urls=http://127.0.0.1:" + etcdPort + ",http://" + at, "--advertise-client-urls=http://" + at,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=" + members,
		"--snapshot-count=10000", "--log-level=warn",
	}
}

// copyFiles copies a folder's files; what they say of one URL they say of another then.
func copyFiles(from, to, old, url string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return fmt.Errorf("upstream: make a folder: %w", err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("upstream: read the keys: %w", err)
	}
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(from, entry.Name()))
		if err != nil {
			return fmt.Errorf("upstream: read the keys: %w", err)
		}
		if err := os.WriteFile(filepath.Join(to, entry.Name()), bytes.ReplaceAll(content, []byte(old), []byte(url)), 0o600); err != nil {
			return fmt.Errorf("upstream: write the keys: %w", err)
		}
	}
	return nil
}

// Restart starts the server's programs; after Kill they go on with their data.
func (s *Server) Restart() error { return s.launchAll(s.opts, s.programs) }

// Leads reports whether the server's etcd member leads.
func (s *Server) Leads(ctx context.Context) (bool, error) {
	url := "http://" + net.JoinHostPort(s.machine.Address.String(), etcdPort) + "/v3/maintenance/status"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader("{}"))
	if err != nil {
		return false, fmt.Errorf("upstream: ask etcd who leads: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false, fmt.Errorf("upstream: ask etcd who leads: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return false, fmt.Errorf("upstream: ask etcd who leads: %w", err)
	}
	var status struct {
		Header struct {
			MemberID string `json:"member_id"`
		} `json:"header"`
		Leader string `json:"leader"`
	}
	if err := json.Unmarshal(text, &status); err != nil || status.Header.MemberID == "" {
		return false, fmt.Errorf("upstream: etcd says %q of its leader: %w", text, err)
	}
	return status.Leader == status.Header.MemberID, nil
}
