package nft

import corev1 "k8s.io/api/core/v1"

// Protocol numbers of IP (IANA).
const (
	ProtocolTCP  = 6
	ProtocolUDP  = 17
	ProtocolSCTP = 132
)

// ProtocolNumber is the IP protocol of a Kubernetes protocol name; a name that is none of them is TCP, the API's default.
func ProtocolNumber(p corev1.Protocol) uint8 {
	switch p {
	case corev1.ProtocolUDP:
		return ProtocolUDP
	case corev1.ProtocolSCTP:
		return ProtocolSCTP
	}
	return ProtocolTCP
}
