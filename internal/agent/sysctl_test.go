package agent

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestAdmitSysctls(t *testing.T) {
	for name, tc := range map[string]struct {
		sysctl       string
		hostNet, ipc bool
		want         string
	}{
		"safe":                {sysctl: "net.ipv4.tcp_syncookies"},
		"safe, with slashes":  {sysctl: "net/ipv4/tcp_syncookies"},
		"unsafe":              {sysctl: "kernel.msgmax", want: `"kernel.msgmax" not allowlisted`},
		"allowed":             {sysctl: "net.core.somaxconn"},
		"allowed by prefix":   {sysctl: "kernel.sem.x"},
		"the node's network":  {sysctl: "net.ipv4.tcp_syncookies", hostNet: true, want: "not allowed with host net enabled"},
		"the node's IPC":      {sysctl: "kernel.shm_rmid_forced", ipc: true, want: "not allowed with host ipc enabled"},
		"of another pattern":  {sysctl: "kernel.semx", want: "not allowlisted"},
		"IPC in host network": {sysctl: "kernel.shm_rmid_forced", hostNet: true},
	} {
		t.Run(name, func(t *testing.T) {
			pod := newPod("x", func(p *corev1.Pod) {
				p.Spec.HostNetwork, p.Spec.HostIPC = tc.hostNet, tc.ipc
				p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: tc.sysctl, Value: "1"}}}
			})
			err := admitSysctls(pod, []string{"net.core.somaxconn", "kernel.sem.*"})
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("admitSysctls = %v, want %q", err, tc.want)
			}
		})
	}
}
