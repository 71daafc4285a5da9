package upstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// storageVersion is what etcd 3.6 calls the layout that it reads.
const storageVersion = "3.6.0"

// TakeOverOptions says on what TakeOver starts.
type TakeOverOptions struct {
	Programs    string // folder with etcd and kube-apiserver, from Build; required
	NewEtcd     string // program that wrote the data, a release newer than Programs' etcd; required
	Dir         string // folder for logs and a kubeconfig; required
	EtcdDir     string // data of a single member, which is changed; required
	PKI         string // folder with kubeadm's file names and encryption.yaml; required
	MemberName  string // of the single member; default "default"
	ServiceCIDR string // default 10.96.0.0/12

	// Inspect is called before kube-apiserver starts, and so sees the data as it was left. gateway
	// is the address of etcd's JSON API, like http://127.0.0.1:2379/v3/. It may be nil.
	Inspect func(ctx context.Context, gateway string) error
}

func (o *TakeOverOptions) check() error {
	for _, value := range []string{o.Programs, o.NewEtcd, o.Dir, o.EtcdDir, o.PKI} {
		if value == "" {
			return errors.New("upstream: Programs, NewEtcd, Dir, EtcdDir and PKI are required")
		}
	}
	if o.MemberName == "" {
		o.MemberName = "default"
	}
	if o.ServiceCIDR == "" {
		o.ServiceCIDR = "10.96.0.0/12"
	}
	return nil
}

// TakeOver starts etcd and kube-apiserver on data that another release of etcd and another API
// server wrote, with that server's keys: etcd's data is brought down to the release of Programs
// first, the way its documentation says. It returns without waiting for kube-apiserver. Call Stop
// at the end.
func TakeOver(ctx context.Context, opts TakeOverOptions) (*Cluster, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	if err := downgrade(ctx, opts, ports); err != nil {
		return nil, err
	}
	c := &Cluster{Kubeconfig: filepath.Join(opts.Dir, "admin.kubeconfig"), PKI: opts.PKI, Started: time.Now()}
	if err := adminOf(opts.PKI, "https://127.0.0.1:"+ports[2], c.Kubeconfig); err != nil {
		return nil, err
	}
	where := Options{Programs: opts.Programs, Dir: opts.Dir}
	for _, p := range takeOverArguments(opts, ports) {
		if err := c.launch(where.Dir, p[0], append([]string{filepath.Join(where.Programs, p[0])}, p[1:]...)); err != nil {
			return nil, errors.Join(err, c.Stop())
		}
	}
	return c, nil
}

// downgrade runs the newer etcd until it has written the older layout.
func downgrade(ctx context.Context, opts TakeOverOptions, ports []string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c := &Cluster{}
	where := Options{Programs: filepath.Dir(opts.NewEtcd), Dir: opts.Dir}
	if err := c.launch(where.Dir, filepath.Base(opts.NewEtcd), append([]string{filepath.Join(where.Programs, filepath.Base(opts.NewEtcd))}, etcdArguments(opts, ports)...)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop()) }()
	gateway := "http://127.0.0.1:" + ports[0] + "/v3/"
	asked := false
	for {
		var status struct {
			StorageVersion string `json:"storageVersion"`
		}
		err := Post(ctx, gateway+"maintenance/status", map[string]string{}, &status)
		switch {
		case err == nil && status.StorageVersion == storageVersion:
			if opts.Inspect != nil {
				return opts.Inspect(ctx, gateway)
			}
			return nil
		case err == nil && !asked: // refused until the member has seen its own version
			err = Post(ctx, gateway+"maintenance/downgrade", map[string]string{"action": "ENABLE", "version": storageVersion}, nil)
			asked = err == nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("upstream: bring etcd's data from %q down to %s: %w", status.StorageVersion, storageVersion, errors.Join(ctx.Err(), err, c.Check()))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Post calls etcd's JSON API, which has the names of its gRPC API and bytes in base64.
func Post(ctx context.Context, url string, body, answer any) error {
	encoded, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("upstream: encode a request: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(encoded))
	if err != nil {
		return fmt.Errorf("upstream: make a request: %w", err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("upstream: ask etcd: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	said, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("upstream: etcd answers %s: %s: %w", response.Status, said, err)
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(said, answer); err != nil {
		return fmt.Errorf("upstream: read etcd's answer: %w", err)
	}
	return nil
}

func etcdArguments(opts TakeOverOptions, ports []string) []string {
	client, peer := "http://127.0.0.1:"+ports[0], "http://127.0.0.1:"+ports[1]
	return []string{
		"--name=" + opts.MemberName, "--data-dir=" + opts.EtcdDir,
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=" + opts.MemberName + "=" + peer,
	}
}

func takeOverArguments(opts TakeOverOptions, ports []string) [][]string {
	file := func(name string) string { return filepath.Join(opts.PKI, name) }
	return [][]string{
		append([]string{"etcd"}, etcdArguments(opts, ports)...),
		{
			"kube-apiserver", "--etcd-servers=http://127.0.0.1:" + ports[0], "--bind-address=127.0.0.1",
			"--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--secure-port=" + ports[2],
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
			"--client-ca-file=" + file("ca.crt"),
			"--tls-cert-file=" + file("apiserver.crt"), "--tls-private-key-file=" + file("apiserver.key"),
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + file("sa.pub"), "--service-account-signing-key-file=" + file("sa.key"),
			"--service-cluster-ip-range=" + opts.ServiceCIDR, "--encryption-provider-config=" + file("encryption.yaml"),
			"--requestheader-client-ca-file=" + file("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-username-headers=X-Remote-User",
			"--proxy-client-cert-file=" + file("front-proxy-client.crt"), "--proxy-client-key-file=" + file("front-proxy-client.key"),
		},
	}
}

// adminOf writes a kubeconfig with the administrator's pair of a folder of keys.
func adminOf(pki, apiURL, path string) error {
	var files [3][]byte
	for i, name := range []string{"ca.crt", "admin.crt", "admin.key"} {
		content, err := os.ReadFile(filepath.Join(pki, name))
		if err != nil {
			return fmt.Errorf("upstream: read the administrator's keys: %w", err)
		}
		files[i] = content
	}
	content, err := Kubeconfig(apiURL, files[0], Pair{Cert: files[1], Key: files[2]})
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("upstream: write a kubeconfig: %w", err)
	}
	return nil
}
