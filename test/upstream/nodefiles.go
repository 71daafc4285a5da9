package upstream

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// pauseReference is the image of the container that holds a pod's namespaces.
const pauseReference = "upstream.invalid/pause:1"

// What a node's programs are configured with: defaults, but for what cgroup v1 and a machine without CAP_SYS_RESOURCE need.
const (
	kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %s}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /upstream-%s
failCgroupV1: false
failSwapOn: false
clusterDNS: [%s]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
resolvConf: %s
serializeImagePulls: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 200Mi, nodefs.available: 1%%, imagefs.available: 1%%}
%s`
	proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: %s}
clusterCIDR: %s
hostnameOverride: %s
conntrack: {maxPerCore: 0, min: 0}
`
	cniConfig = `{"cniVersion": "1.0.0", "name": "upstream", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`
	corefile = `.:53 {
    bind %s
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig %s
        ttl 5
    }
    cache 5
    loadbalance
}
`
	containerdConfig = `version = 3
root = %q
state = %q
[grpc]
  address = "/run/containerd/containerd.sock"
[debug]
  level = "warn"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images"]
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "` + pauseReference + `"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = %q
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
`
)

// pauseImage makes the archive of the image that holds a pod's namespaces.
func pauseImage(opts NodeOptions) (string, error) {
	program, err := os.ReadFile(filepath.Join(opts.Programs.Runtime, "pause"))
	if err != nil {
		return "", fmt.Errorf("upstream: read the pause program: %w", err)
	}
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	header := &tar.Header{Name: "pause", Mode: 0o755, Size: int64(len(program)), ModTime: time.Unix(0, 0)}
	if err := archive.WriteHeader(header); err != nil {
		return "", fmt.Errorf("upstream: make the pause image: %w", err)
	}
	if _, err := archive.Write(program); err != nil {
		return "", fmt.Errorf("upstream: make the pause image: %w", err)
	}
	if err := archive.Close(); err != nil {
		return "", fmt.Errorf("upstream: make the pause image: %w", err)
	}
	path := filepath.Join(opts.Dir, "pause.layer")
	if err := os.WriteFile(path, layer.Bytes(), 0o600); err != nil {
		return "", fmt.Errorf("upstream: keep the pause image: %w", err)
	}
	content, err := tarball.LayerFromFile(path)
	if err != nil {
		return "", fmt.Errorf("upstream: make the pause image: %w", err)
	}
	image, err := mutate.AppendLayers(empty.Image, content)
	if err != nil {
		return "", fmt.Errorf("upstream: make the pause image: %w", err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		return "", fmt.Errorf("upstream: make the pause image: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Entrypoint = "linux", "amd64", []string{"/pause"}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return "", fmt.Errorf("upstream: make the pause image: %w", err)
	}
	tag, err := name.NewTag(pauseReference)
	if err != nil {
		return "", fmt.Errorf("upstream: make the pause image: %w", err)
	}
	out := filepath.Join(opts.Dir, "pause.tar")
	if err := tarball.WriteToFile(out, tag, image); err != nil {
		return "", fmt.Errorf("upstream: write the pause image: %w", err)
	}
	return out, nil
}
