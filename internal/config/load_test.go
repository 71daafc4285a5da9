package config

import (
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func load(t *testing.T, args, environ []string, files map[string]string) (Config, error) {
	t.Helper()
	flags := pflag.NewFlagSet("gantry", pflag.ContinueOnError)
	Register(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(Options{
		Flags:   flags,
		Environ: environ,
		ReadFile: func(path string) ([]byte, error) {
			if text, ok := files[path]; ok {
				return []byte(text), nil
			}
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		},
		Hostname: func() (string, error) { return "Box-7.Example", nil },
		NodeIP:   func(netip.Prefix) (netip.Addr, error) { return netip.MustParseAddr("192.0.2.10"), nil },
	})
}

func TestDefaults(t *testing.T) {
	c, err := load(t, nil, []string{"PATH=/bin", "GANTRY_TEST_X=1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != "/var/lib/gantry" || c.Listen.String() != "127.0.0.1:6443" || c.NodeName != "box-7.example" ||
		c.NodeIP.String() != "192.0.2.10" || c.PodCIDR.String() != "10.244.0.0/16" || c.ServiceCIDR.String() != "10.96.0.0/12" ||
		c.ClusterDomain != "cluster.local" || c.Kubeconfig != "/var/lib/gantry/admin.kubeconfig" || c.Detach || c.AgentPort != 10250 {
		t.Errorf("defaults are %+v", c)
	}
	if got := c.APIServiceIP().String() + " " + c.DNSServiceIP().String(); got != "10.96.0.1 10.96.0.10" {
		t.Errorf("service addresses are %s", got)
	}
	if c.Given(KeyNodeName) || c.Where(KeyNodeName) != "default" {
		t.Error("the node name counts as given")
	}
}

func TestPrecedence(t *testing.T) {
	files := map[string]string{"f.yaml": "listen: 0.0.0.0:1\nnode-name: from-file\npod-cidr: 10.1.0.0/16\ntls-san: [a.example, 203.0.113.7]\ndetach: true\n"}
	c, err := load(t, []string{"--config=f.yaml", "--listen", "0.0.0.0:3"}, []string{"GANTRY_LISTEN=0.0.0.0:2", "GANTRY_NODE_NAME=from-env"}, files)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen.Port() != 3 || c.NodeName != "from-env" || c.PodCIDR.String() != "10.1.0.0/16" || !c.Detach {
		t.Errorf("Load = %+v", c)
	}
	if !slices.Equal(c.TLSSANs, []string{"a.example", "203.0.113.7"}) {
		t.Errorf("TLSSANs = %q", c.TLSSANs)
	}
	if got := []string{c.Where(KeyListen), c.Where(KeyNodeName), c.Where(KeyPodCIDR)}; !slices.Equal(got, []string{"--listen", "GANTRY_NODE_NAME", "f.yaml:3"}) {
		t.Errorf("origins are %q", got)
	}
	c, err = load(t, nil, []string{"GANTRY_CONFIG=f.yaml", "GANTRY_TLS_SAN=b.example,c.example"}, files)
	if err != nil || !slices.Equal(c.TLSSANs, []string{"b.example", "c.example"}) {
		t.Errorf("environment: %q, %v", c.TLSSANs, err)
	}
}

func TestRuntimeConfig(t *testing.T) {
	want := map[string]string{"api/beta": "true", "batch/v1": "false", "v1/bindings": "true"}
	for name, c := range map[string]struct {
		args, env []string
		file      string
	}{
		"flags":       {args: []string{"--runtime-config=api/beta=true,batch/v1=false", "--runtime-config=v1/bindings"}},
		"environment": {env: []string{"GANTRY_RUNTIME_CONFIG=api/beta=true,batch/v1=false,v1/bindings="}},
		"file":        {args: []string{"--config=f.yaml"}, file: "runtime-config: [api/beta=true, batch/v1=false, v1/bindings]\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := load(t, c.args, c.env, map[string]string{"f.yaml": c.file})
			if err != nil || !maps.Equal(got.RuntimeConfig, want) {
				t.Errorf("RuntimeConfig = %v, %v; want %v", got.RuntimeConfig, err, want)
			}
		})
	}
	if _, err := load(t, []string{"--runtime-config=api/beta=maybe"}, nil, nil); err == nil || !strings.Contains(err.Error(), "switches nothing on or off") {
		t.Errorf("a value that is neither true nor false: %v", err)
	}
}

func TestNetworkMode(t *testing.T) {
	for value, wantErr := range map[string]string{"auto": "", "vxlan": "", "ipip": "want auto or vxlan"} {
		got, err := load(t, []string{"--network-mode=" + value}, nil, nil)
		if wantErr == "" && (err != nil || got.NetworkMode != value) || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
			t.Errorf("--network-mode=%s: %q, %v; want the error %q", value, got.NetworkMode, err, wantErr)
		}
	}
	if got, err := load(t, nil, nil, nil); err != nil || got.NetworkMode != NetworkAuto {
		t.Errorf("by default %q, %v; want auto", got.NetworkMode, err)
	}
}

func TestBuildBases(t *testing.T) {
	c, err := load(t, []string{"--build-base=node=registry.example/node:22,python=python:3.13", "--build-base=node=node:20"}, nil, nil)
	if err != nil || len(c.BuildBases) != 2 || c.BuildBases["node"] != "node:20" || c.BuildBases["python"] != "python:3.13" {
		t.Errorf("bases are %v, %v", c.BuildBases, err)
	}
}

func TestLoadBalancer(t *testing.T) {
	for value, wantErr := range map[string]string{"nodes": "", "none": "", "cloud": `"cloud" serves no load balancers`} {
		got, err := load(t, []string{"--load-balancer=" + value}, nil, nil)
		if wantErr == "" && (err != nil || got.LoadBalancer != value) || wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)) {
			t.Errorf("--load-balancer=%s: %q, %v; want the error %q", value, got.LoadBalancer, err, wantErr)
		}
	}
	if got, err := load(t, nil, nil, nil); err != nil || got.LoadBalancer != LoadBalancerNodes {
		t.Errorf("by default %q, %v; want nodes", got.LoadBalancer, err)
	}
}

func TestTolerations(t *testing.T) {
	for value, want := range map[string]int64{"": 1, "0": 0, "300": 300, "-1": -1, "5m": -1} {
		var args []string
		if value != "" {
			args = []string{"--default-unreachable-toleration-seconds=" + value}
		}
		got, err := load(t, args, nil, nil)
		if (err != nil) != (want < 0) || err == nil && (got.Tolerations.Unreachable != want || got.Tolerations.NotReady != 1) {
			t.Errorf("%q: %+v, %v; want %d s", value, got.Tolerations, err, want)
		}
	}
}

func TestErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		args, env []string
		file      string
		want      []string
	}{
		"typo in the file":        {nil, nil, "\nlistn: 1\n", []string{"f.yaml:2:", `"listn" is not a setting`, "did you mean listen?"}},
		"typo in the environment": {nil, []string{"GANTRY_NODENAME=x"}, "", []string{"GANTRY_NODENAME: is not a setting", "did you mean GANTRY_NODE_NAME?"}},
		"nothing near":            {nil, nil, "colour: red\n", []string{"known are data-dir, listen"}},
		"missing file":            {[]string{"--config=nope.yaml"}, nil, "", []string{"--config: the file cannot be read", "nope.yaml"}},
		"file is a list":          {nil, nil, "- a\n", []string{"f.yaml:1: the file is not a list of settings"}},
		"broken YAML":             {nil, nil, "a: [\n", []string{"f.yaml: ", "line 1"}},
		"set twice":               {nil, nil, "detach: true\nlisten: 1.2.3.4:5\ndetach: false\n", []string{"f.yaml:3: detach is set twice, first at f.yaml:1"}},
		"map as value":            {nil, nil, "listen: {a: b}\n", []string{"f.yaml:1: listen has a list or map"}},
		"listen without a port":   {[]string{"--listen=127.0.0.1"}, nil, "", []string{`--listen: "127.0.0.1" is not an address and a port; want ADDRESS:PORT`}},
		"port zero":               {[]string{"--listen=127.0.0.1:0"}, nil, "", []string{"port 0"}},
		"node name":               {[]string{"--node-name=Node_1"}, nil, "", []string{`--node-name: "Node_1" cannot name a node`, "RFC 1123"}},
		"overlap":                 {[]string{"--pod-cidr=10.96.0.0/16"}, nil, "", []string{"--service-cidr (default): 10.96.0.0/12 overlaps the pod range 10.96.0.0/16"}},
		"node in the pod range":   {[]string{"--node-ip=10.244.3.4"}, nil, "", []string{"--pod-cidr (default): 10.244.0.0/16 holds the node's own address"}},
		"not the start":           {[]string{"--pod-cidr=10.244.0.7/16"}, nil, "", []string{"want 10.244.0.0/16"}},
		"too narrow":              {[]string{"--pod-cidr=10.244.0.0/28"}, nil, "", []string{"wrong size", "from /8 to /24"}},
		"IPv6":                    {[]string{"--service-cidr=fd00::/112"}, nil, "", []string{"IPv4 only"}},
		"loopback as node":        {[]string{"--node-ip=127.0.0.1"}, nil, "", []string{"not reachable from pods"}},
		"log level":               {[]string{"--log-level=loud"}, nil, "", []string{`"loud" is not a log level; want debug, info, warn or error`}},
		"base without an image":   {[]string{"--build-base=node"}, nil, "", []string{`--build-base: "node" names no image; want LANGUAGE=IMAGE`}},
		"base of no language":     {[]string{"--build-base=perl=a:1"}, nil, "", []string{`no builder has the language "perl"; want node or python`}},
		"SAN":                     {[]string{"--tls-san=a b"}, nil, "", []string{`"a b" is neither`}},
		"root folder":             {[]string{"--data-dir=/"}, nil, "", []string{"root folder"}},
		"same port":               {[]string{"--agent-port=6443"}, nil, "", []string{"--agent-port: port 6443 is the API's already"}},
		"all at once":             {[]string{"--listen=x", "--log-format=xml"}, []string{"GANTRY_DETACH=maybe"}, "", []string{"--listen:", "--log-format:", "GANTRY_DETACH:"}},
	} {
		t.Run(name, func(t *testing.T) {
			args, files := tc.args, map[string]string{}
			if tc.file != "" {
				args, files["f.yaml"] = append(args, "--config=f.yaml"), tc.file
			}
			_, err := load(t, args, tc.env, files)
			if err == nil {
				t.Fatal("Load succeeded")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error is %q, want it to hold %q", err, want)
				}
			}
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Errorf("error %T is not a *config.Error", err)
			}
		})
	}
}

func TestHostNodeIPSkipsPods(t *testing.T) {
	all := netip.MustParsePrefix("0.0.0.0/0")
	if addr, err := HostNodeIP(all); err != nil || addr.IsValid() {
		t.Errorf("HostNodeIP = %v, %v; want none, since every address counts as a pod's", addr, err)
	}
}

func TestNearest(t *testing.T) {
	words := []string{"listen", "node-ip", "node-name", "detach"}
	for word, want := range map[string]string{"listne": "listen", "nodename": "node-name", "node-op": "node-ip", "zebra": ""} {
		if got := Nearest(word, words); got != want {
			t.Errorf("Nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestSchedulerFile(t *testing.T) {
	c, err := load(t, []string{"--scheduler-config=/etc/gantry/scheduler.yaml"}, nil, nil)
	if err != nil || c.SchedulerFile != "/etc/gantry/scheduler.yaml" {
		t.Errorf("SchedulerFile = %q, %v", c.SchedulerFile, err)
	}
	if c, err = load(t, nil, []string{"GANTRY_SCHEDULER_CONFIG=s.yaml"}, nil); err != nil || !filepath.IsAbs(c.SchedulerFile) {
		t.Errorf("SchedulerFile = %q, %v; want it absolute", c.SchedulerFile, err)
	}
}
