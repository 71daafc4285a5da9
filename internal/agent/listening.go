package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// processLabel marks the pods of applications (LabelProcess in api/v1alpha1), and conditionListening is where those
	// are told about (ConditionListening there).
	processLabel       = "gantry.dev/process"
	conditionListening = "gantry.dev/listening"

	listeningPeriod = time.Second     // how often a pod that is not ready is looked at
	listeningFor    = 2 * time.Minute // for how long after its start
	listeningMost   = 16              // sockets told of
	stateListen     = "0A"            // TCP_LISTEN, include/net/tcp_states.h
)

// listening is where the pod of an application listens by TCP, as a condition; nil for other pods and while nothing does.
// It costs two small files a second while a pod is not ready, and nothing afterwards.
func (w *worker) listening(pod *corev1.Pod, ready bool) *corev1.PodCondition {
	w.listenAgain = false
	if _, ours := pod.Labels[processLabel]; !ours || pod.Spec.HostNetwork {
		return nil
	}
	pid, started := 0, time.Time{}
	for _, c := range w.observed.Running() {
		pid, started = c.PID, c.StartedAt
	}
	if pid == 0 {
		w.listens = nil
		return nil
	}
	if ready && w.listens != nil && w.listensOf == pid {
		return w.listens
	}
	w.listensOf = pid
	w.listenAgain = !ready && time.Since(started) < listeningFor
	message := socketList(listeningSockets(pid))
	switch {
	case message == "":
		w.listens = nil
	case w.listens == nil || w.listens.Message != message:
		w.listens = &corev1.PodCondition{
			Type: conditionListening, Status: corev1.ConditionTrue, Message: message, LastTransitionTime: metav1.Now(),
		}
	}
	return w.listens
}

// listeningSockets are the TCP sockets that listen in the network namespace of a process, in order.
func listeningSockets(pid int) (out []netip.AddrPort) {
	for _, file := range []string{"tcp", "tcp6"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
		if err != nil {
			continue // it has just ended, or has no IPv6
		}
		out = append(out, parseListening(data)...)
	}
	slices.SortFunc(out, func(a, b netip.AddrPort) int {
		return cmp.Or(cmp.Compare(a.Port(), b.Port()), a.Addr().Compare(b.Addr()))
	})
	return slices.Compact(out)
}

// parseListening reads the listening sockets out of /proc/PID/net/tcp or tcp6 (see proc_pid_net(5)).
func parseListening(data []byte) (out []netip.AddrPort) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 4 || fields[3] != stateListen {
			continue
		}
		host, port, ok := strings.Cut(fields[1], ":")
		number, err := strconv.ParseUint(port, 16, 16)
		raw, hexErr := hex.DecodeString(host)
		if !ok || err != nil || hexErr != nil || len(raw)%4 != 0 {
			continue
		}
		for i := 0; i < len(raw); i += 4 { // words in the machine's order
			binary.BigEndian.PutUint32(raw[i:], binary.NativeEndian.Uint32(raw[i:]))
		}
		if addr, ok := netip.AddrFromSlice(raw); ok {
			out = append(out, netip.AddrPortFrom(addr.Unmap(), uint16(number)))
		}
	}
	return out
}

func socketList(sockets []netip.AddrPort) string {
	var out []string
	for _, at := range sockets[:min(len(sockets), listeningMost)] {
		out = append(out, at.String())
	}
	return strings.Join(out, " ")
}
