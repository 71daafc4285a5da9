package agent

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/node/util/sysctl"

	"gantry.dev/gantry/internal/agent/podstatus"
)

// safeSysctls are those that every pod may set: they are the pod's own and reach nobody else.
// Source: the kubelet's list (Kubernetes documentation, "Using sysctls in a Kubernetes Cluster").
func safeSysctls() []string {
	return []string{
		"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
		"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
		"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
	}
}

// admitSysctls says which of a pod's sysctls it may not set. unsafe are names, or prefixes that
// end in *, that the node's owner allows besides the safe ones.
func admitSysctls(pod *corev1.Pod, unsafe []string) error {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	allowed := slices.Concat(safeSysctls(), unsafe)
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := sysctl.NormalizeName(s.Name)
		if !slices.ContainsFunc(allowed, func(pattern string) bool {
			prefix, all := strings.CutSuffix(sysctl.NormalizeName(pattern), "*")
			return name == prefix || all && strings.HasPrefix(name, prefix)
		}) {
			return fmt.Errorf("%q not allowlisted", name)
		}
		switch {
		case strings.HasPrefix(name, "net.") && pod.Spec.HostNetwork:
			return fmt.Errorf("%q not allowed with host net enabled", name)
		case !strings.HasPrefix(name, "net.") && pod.Spec.HostIPC:
			return fmt.Errorf("%q not allowed with host ipc enabled", name)
		}
	}
	return nil
}

// forbiddenSysctl is why a new pod is refused for its sysctls; nil lets it in.
func (w *worker) forbiddenSysctl(pod *corev1.Pod) *podstatus.Waiting {
	err := admitSysctls(pod, w.agent.opts.UnsafeSysctls)
	if err == nil {
		return nil
	}
	const reason = "SysctlForbidden"
	message := fmt.Sprintf("forbidden sysctl: %v", err)
	w.agent.events.pod(pod, corev1.EventTypeWarning, reason, message)
	return &podstatus.Waiting{Reason: reason, Message: "Pod was rejected: " + message}
}
