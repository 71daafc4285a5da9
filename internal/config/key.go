package config

import (
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// EnvPrefix starts the name of every environment variable that is a key: GANTRY_DATA_DIR.
const EnvPrefix = "GANTRY_"

// envReserved starts variables that belong to test programs and are never keys.
const envReserved = EnvPrefix + "TEST_"

// DefaultDataDir holds everything unless another folder is given.
const DefaultDataDir = "/var/lib/gantry"

// kubeletDir is where device plugins look for the kubelet unless told otherwise.
const kubeletDir = "/var/lib/kubelet"

// Names of the keys: the flag is --NAME, the variable GANTRY_NAME, the line in the file "NAME: value".
const (
	KeyConfig        = "config"
	KeyDataDir       = "data-dir"
	KeyListen        = "listen"
	KeyNodeIP        = "node-ip"
	KeyTLSSAN        = "tls-san"
	KeyNodeName      = "node-name"
	KeyPodCIDR       = "pod-cidr"
	KeyServiceCIDR   = "service-cidr"
	KeyClusterDomain = "cluster-domain"
	KeyKubeconfig    = "kubeconfig"
	KeyDetach        = "detach"
	KeyAgentPort     = "agent-port"
	KeyKubeletDir    = "kubelet-dir"
	KeyManifests     = "pod-manifest-path"
	KeyUnsafeSysctls = "allowed-unsafe-sysctls"
	KeyBuildBase     = "build-base"
	KeyLogLevel      = "log-level"
	KeyLogFormat     = "log-format"
	KeyRuntimeConfig = "runtime-config"
	KeyScheduler     = "scheduler-config"
	KeyLoadBalancer  = "load-balancer"
)

// Key describes one setting.
type Key struct {
	Name    string
	Default string // as a user would write it; empty where the default is found at run time
	Usage   string
	List    bool // may be given several times; commas separate in the environment
	Bool    bool
	set     func(*Config, []string) error
}

// Env returns the name of the key's environment variable.
func (k Key) Env() string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(k.Name, "-", "_"))
}

// Keys returns every setting in the order in which help shows it.
func Keys() []Key {
	return slices.Concat([]Key{
		{Name: KeyDataDir, Default: DefaultDataDir, set: setDataDir,
			Usage: "folder that holds everything Gantry keeps"},
		{Name: KeyListen, Default: "127.0.0.1:6443", set: setListen,
			Usage: "address and port of the API; it is also served on the node's address, same port"},
		{Name: KeyNodeIP, set: setNodeIP,
			Usage: "address of this node (default: the default route's, else the first global one, else the pod bridge's)"},
		{Name: KeyTLSSAN, List: true, set: setTLSSAN,
			Usage: "further name or address in the API's certificate; may be repeated"},
		{Name: KeyNodeName, set: setNodeName,
			Usage: "name of this node (default: the host name at the first start, then kept)"},
		{Name: KeyPodCIDR, Default: "10.244.0.0/16", set: setPodCIDR,
			Usage: "addresses of the cluster's pods; each node gets a /24 of it"},
		{Name: KeyServiceCIDR, Default: "10.96.0.0/12", set: setServiceCIDR,
			Usage: "addresses of services"},
		{Name: KeyClusterDomain, Default: "cluster.local", set: setClusterDomain,
			Usage: "DNS domain of the cluster"},
		{Name: KeyKubeconfig, set: setKubeconfig,
			Usage: "file to write the admin kubeconfig to (default: admin.kubeconfig in the data dir)"},
		{Name: KeyDetach, Default: "false", Bool: true, set: setDetach,
			Usage: "run in the background; return once the node is ready"},
		{Name: KeyAgentPort, Default: "10250", set: setAgentPort,
			Usage: "port on which the node agent serves logs and exec"},
		{Name: KeyKubeletDir, set: setKubeletDir,
			Usage: "folder in which device plugins find the kubelet's sockets, besides the data dir (default: /var/lib/kubelet with the default data dir, else none)"},
		{Name: KeyManifests, set: setManifests,
			Usage: "folder, or file, of pods that run without the API (default: manifests in the data dir)"},
		{Name: KeyUnsafeSysctls, List: true, set: setUnsafeSysctls,
			Usage: "sysctl, or prefix that ends in *, that pods may set besides the safe ones; may be repeated"},
		{Name: KeyBuildBase, List: true, set: setBuildBases,
			Usage: "image that builds of a language begin with, such as node=registry.example/node:22 or python=...; may be repeated"},
		{Name: KeyLogLevel, Default: "info", set: setLogLevel,
			Usage: "least severe messages to log: debug, info, warn or error"},
		{Name: KeyLogFormat, Default: "text", set: setLogFormat,
			Usage: "form of the log: text or json"},
		{Name: KeyRuntimeConfig, List: true, set: setRuntimeConfig,
			Usage: "API versions to serve or not, such as api/beta=true or batch/v1=false; may be repeated"},
		{Name: KeyScheduler, set: setScheduler,
			Usage: "KubeSchedulerConfiguration file: profiles, scores and back-off of the scheduler (default: kube-scheduler's)"},
		{Name: KeyLoadBalancer, Default: LoadBalancerNodes, set: setLoadBalancer,
			Usage: "who serves Services of type LoadBalancer without a class: nodes, on their own addresses, or none"},
	}, networkKeys(), gatewayKeys(), nodeKeys(), tolerationKeys(), accessKeys())
}

// Register adds a flag for each named key, or for every key and --config when no name is given.
func Register(flags *pflag.FlagSet, names ...string) {
	for _, key := range Keys() {
		if len(names) > 0 && !slices.Contains(names, key.Name) {
			continue
		}
		switch {
		case key.Bool:
			flags.Bool(key.Name, key.Default == "true", key.Usage)
		case key.List:
			flags.StringArray(key.Name, nil, key.Usage)
		default:
			flags.String(key.Name, key.Default, key.Usage)
		}
	}
	if len(names) > 0 && !slices.Contains(names, KeyConfig) {
		return
	}
	flags.String(KeyConfig, "", "YAML file of settings; its keys are the names of the flags")
}

func keyByName(name string) (Key, bool) {
	keys := Keys()
	i := slices.IndexFunc(keys, func(k Key) bool { return k.Name == name })
	if i < 0 {
		return Key{}, false
	}
	return keys[i], true
}
