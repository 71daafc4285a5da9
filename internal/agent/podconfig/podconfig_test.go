package podconfig

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestExpand(t *testing.T) {
	lookup := lookupIn([]string{"A=1", "B=$(A)", "A=2"})
	for name, tc := range map[string]struct{ in, want string }{
		"plain":        {"x", "x"},
		"known":        {"<$(A)>", "<2>"},
		"not again":    {"$(B)", "$(A)"},
		"unknown":      {"$(C)", "$(C)"},
		"escaped":      {"$$(A)", "$(A)"},
		"not closed":   {"$(A", "$(A"},
		"other dollar": {"$A $", "$A $"},
		"two":          {"$(A)$(A)", "22"},
		"empty name":   {"$()", "$()"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Expand(tc.in, lookup); got != tc.want {
				t.Errorf("Expand(%q) = %q, want %q", tc.in, got, tc.want)
			}
		})
	}
	if _, err := ExpandSubPath("a/$(NONE)", nil); err == nil || err.Error() != `missing value for "NONE"` {
		t.Errorf("ExpandSubPath of a missing name: %v", err)
	}
}

func pod() *corev1.Pod {
	links := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "uid-1", Labels: map[string]string{"app": "web", "b": `q"`}},
		Spec:       corev1.PodSpec{EnableServiceLinks: &links, NodeName: "node-1", Containers: []corev1.Container{{Name: "main"}}},
	}
}

func TestEnvironment(t *testing.T) {
	notFound := apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, "none")
	p := pod()
	c := &p.Spec.Containers[0]
	c.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m")}
	c.EnvFrom = []corev1.EnvFromSource{{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "conf"}}}}
	c.Env = []corev1.EnvVar{
		{Name: "URL", Value: "http://$(DB_SERVICE_HOST):$(DB_SERVICE_PORT)/$(P_a)"},
		{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
		{Name: "LABEL", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}}},
		{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
		{Name: "MEM", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
		{Name: "SECRET", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "k"}}},
		{Name: "P_a", Value: "own"},
	}
	in := EnvInput{
		Pod: p, Container: c, PodIPs: []string{"10.1.0.2"},
		Node: Node{IPs: []string{"192.0.2.1"}, Allocatable: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}},
		Services: []corev1.Service{
			{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.5", Ports: []corev1.ServicePort{{Name: "sql", Port: 5432, Protocol: corev1.ProtocolTCP}}}},
			{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "headless"}, Spec: corev1.ServiceSpec{ClusterIP: "None"}},
		},
		ConfigMap: func(name string) (*corev1.ConfigMap, error) {
			if name != "conf" {
				return nil, notFound
			}
			return &corev1.ConfigMap{Data: map[string]string{"a": "from"}}, nil
		},
		Secret: func(string) (*corev1.Secret, error) {
			return &corev1.Secret{Data: map[string][]byte{"k": []byte("v")}}, nil
		},
	}
	got, err := Environment(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"DB_SERVICE_HOST=10.96.0.5", "DB_SERVICE_PORT=5432", "DB_SERVICE_PORT_SQL=5432", "DB_PORT=tcp://10.96.0.5:5432",
		"DB_PORT_5432_TCP=tcp://10.96.0.5:5432", "DB_PORT_5432_TCP_PROTO=tcp", "DB_PORT_5432_TCP_PORT=5432", "DB_PORT_5432_TCP_ADDR=10.96.0.5",
		"P_a=own", "URL=http://10.96.0.5:5432/from", "IP=10.1.0.2", "LABEL=web", "CPU=2", "MEM=1024", "SECRET=v",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	c.EnvFrom[0].ConfigMapRef.Name = "none"
	if _, err := Environment(in); !apierrors.IsNotFound(err) {
		t.Errorf("a missing ConfigMap gives %v", err)
	}
	optional := true
	c.EnvFrom[0].ConfigMapRef.Optional = &optional
	c.Env[5].ValueFrom.SecretKeyRef.Key = "none"
	if _, err := Environment(in); err == nil || err.Error() != "couldn't find key none in Secret default/s" {
		t.Errorf("a missing key gives %v", err)
	}
	c.Env[5].ValueFrom.SecretKeyRef.Optional = &optional
	if got, err := Environment(in); err != nil || slices.ContainsFunc(got, func(e string) bool { return strings.HasPrefix(e, "SECRET=") }) {
		t.Errorf("an optional missing key gives %v, %v", got, err)
	}
}

func TestResources(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	for name, tc := range map[string]struct {
		requests, limits corev1.ResourceList
		path             string
		shares           uint64
		quota, memory    int64
		score            int
	}{
		"best effort": {nil, nil, "/kubepods/besteffort/poduid-1", 2, 0, 0, 1000},
		"burstable":   {list("100m", "1Gi"), nil, "/kubepods/burstable/poduid-1", 102, 0, 0, 875},
		"limited":     {list("100m", "1Gi"), list("500m", "2Gi"), "/kubepods/burstable/poduid-1", 102, 50000, 2 << 30, 875},
		"guaranteed":  {list("1", "1Gi"), list("1", "1Gi"), "/kubepods/poduid-1", 1024, 100000, 1 << 30, -997},
		"tiny limit":  {list("1m", "1Mi"), list("5m", ""), "/kubepods/burstable/poduid-1", 2, 1000, 0, 999},
		"huge":        {list("1", "8Gi"), nil, "/kubepods/burstable/poduid-1", 1024, 0, 0, 3},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod()
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: tc.requests, Limits: tc.limits}
			res := ContainerResources(p, &p.Spec.Containers[0], 8<<30)
			if got := CgroupPath("/", p); got != tc.path {
				t.Errorf("path is %s, want %s", got, tc.path)
			}
			if res.CPUShares != tc.shares || res.CPUQuotaMicros != tc.quota || res.MemoryLimitBytes != tc.memory || *res.OOMScoreAdj != tc.score {
				t.Errorf("container gets %+v, score %d", res, *res.OOMScoreAdj)
			}
			whole := PodResources(p, 0)
			if whole.CPUShares != tc.shares || whole.CPUQuotaMicros != tc.quota || whole.MemoryLimitBytes != tc.memory {
				t.Errorf("pod gets %+v", whole)
			}
		})
	}
}

func TestSecurity(t *testing.T) {
	yes, no, root, user := true, false, int64(0), int64(1000)
	for name, tc := range map[string]struct {
		pod       corev1.PodSecurityContext
		container corev1.SecurityContext
		image     string
		wantUser  *int64
		wantErr   string
	}{
		"container wins":     {corev1.PodSecurityContext{RunAsUser: &root}, corev1.SecurityContext{RunAsUser: &user}, "", &user, ""},
		"non-root image":     {corev1.PodSecurityContext{RunAsNonRoot: &yes}, corev1.SecurityContext{}, "1000:1000", nil, ""},
		"root image":         {corev1.PodSecurityContext{RunAsNonRoot: &yes}, corev1.SecurityContext{}, "", nil, `container has runAsNonRoot and image will run as root (pod: "web_default(uid-1)", container: main)`},
		"named user":         {corev1.PodSecurityContext{RunAsNonRoot: &yes}, corev1.SecurityContext{}, "nobody", nil, `container has runAsNonRoot and image has non-numeric user (nobody), cannot verify user is non-root (pod: "web_default(uid-1)", container: main)`},
		"root asked for":     {corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &root}, corev1.SecurityContext{}, "", nil, `container's runAsUser breaks non-root policy (pod: "web_default(uid-1)", container: main)`},
		"container may root": {corev1.PodSecurityContext{RunAsNonRoot: &yes}, corev1.SecurityContext{RunAsNonRoot: &no}, "", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod()
			p.Spec.SecurityContext, p.Spec.Containers[0].SecurityContext = &tc.pod, &tc.container
			got, err := Security(p, &p.Spec.Containers[0], tc.image, "/seccomp")
			if tc.wantErr != "" {
				if err == nil || err.Error() != tc.wantErr {
					t.Errorf("error is %v, want %s", err, tc.wantErr)
				}
				return
			}
			if err != nil || got.User != tc.wantUser || got.Seccomp != "unconfined" {
				t.Errorf("Security = %+v, %v", got, err)
			}
		})
	}
	p := pod()
	gid, profile := int64(5), "a/b.json"
	p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: &gid, SupplementalGroups: []int64{6}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: &profile}}
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"CAP_NET_ADMIN"}, Drop: []corev1.Capability{"all"}}}
	got, err := Security(p, &p.Spec.Containers[0], "", "/seccomp")
	if err != nil || !got.NoNewPrivileges || got.Seccomp != "/seccomp/a/b.json" || !slices.Equal(got.SupplementalGroups, []int64{5, 6}) ||
		!slices.Equal(got.AddCapabilities, []string{"NET_ADMIN"}) || !slices.Equal(got.DropCapabilities, []string{"ALL"}) {
		t.Errorf("Security = %+v, %v", got, err)
	}
}

func TestFiles(t *testing.T) {
	p := pod()
	p.Spec.Subdomain, p.Spec.DNSPolicy = "sub", corev1.DNSClusterFirst
	p.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.9", Hostnames: []string{"a", "b"}}}
	name, domain := Hostname(p, "cluster.local")
	hosts := string(HostsFile(p, []string{"10.1.0.2"}, name, domain, nil))
	want := "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\n" +
		"fe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n10.1.0.2\tweb.sub.default.svc.cluster.local\tweb\n\n# Entries added by HostAliases.\n192.0.2.9\ta\tb\n"
	if hosts != want {
		t.Errorf("hosts file is %q, want %q", hosts, want)
	}
	node := ParseResolver("# x\nnameserver 192.0.2.53\nsearch corp.example. .\noptions timeout:1 edns0\n")
	two := "2"
	for name, tc := range map[string]struct {
		policy corev1.DNSPolicy
		host   bool
		config *corev1.PodDNSConfig
		want   string
	}{
		"cluster first":   {corev1.DNSClusterFirst, false, nil, "search default.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n"},
		"host network":    {corev1.DNSClusterFirst, true, nil, "search corp.example\nnameserver 192.0.2.53\noptions timeout:1 edns0\n"},
		"with host net":   {corev1.DNSClusterFirstWithHostNet, true, nil, "search default.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n"},
		"default":         {corev1.DNSDefault, false, nil, "search corp.example\nnameserver 192.0.2.53\noptions timeout:1 edns0\n"},
		"none and config": {corev1.DNSNone, false, &corev1.PodDNSConfig{Nameservers: []string{"1.1.1.1"}, Searches: []string{"x"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: &two}, {Name: "edns0"}}}, "search x\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"},
		"too many":        {corev1.DNSNone, false, &corev1.PodDNSConfig{Nameservers: []string{"1", "2", "3", "4"}}, "nameserver 1\nnameserver 2\nnameserver 3\n"},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod()
			p.Spec.DNSPolicy, p.Spec.HostNetwork, p.Spec.DNSConfig = tc.policy, tc.host, tc.config
			got, warnings := PodResolver(p, node, []string{"10.96.0.10"}, "cluster.local")
			if got.String() != tc.want || (len(warnings) > 0) != (name == "too many") {
				t.Errorf("resolver is %q with %q, want %q", got, warnings, tc.want)
			}
		})
	}
	long := pod()
	long.Name = strings.Repeat("a", 62) + "-bcd"
	if got, _ := Hostname(long, ""); got != strings.Repeat("a", 62) {
		t.Errorf("a long name becomes %q", got)
	}
}
