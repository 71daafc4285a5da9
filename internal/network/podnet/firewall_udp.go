package podnet

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// Where IPv4 and UDP headers have what rules for tunnels look at (RFC 791, RFC 768).
const (
	protocolOffset = 9
	sourceOffset   = 12
	destPortOffset = 2
)

// udpReader finds out whether a rule asks for no more than UDP, its port, and who sent it.
type udpReader struct {
	field string // what was loaded last: "link", "protocol", "source", "port"; "" is something else
	ok    bool
	ports [2]uint16
}

// readUDP reports whether the rule may be one for a tunnel, and for which ports.
func readUDP(exprs []expr.Any) (ports [2]uint16, ok bool) {
	r := udpReader{ok: true, ports: [2]uint16{0, 65535}}
	for _, e := range exprs {
		r.read(e)
	}
	return r.ports, r.ok
}

func (r *udpReader) read(e expr.Any) {
	switch v := e.(type) {
	case *expr.Meta:
		switch v.Key {
		case expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME:
			r.field = "link"
		case expr.MetaKeyL4PROTO:
			r.field = "protocol"
		default:
			r.field = ""
		}
	case *expr.Payload:
		switch {
		case v.Base == expr.PayloadBaseNetworkHeader && v.Offset == protocolOffset:
			r.field = "protocol"
		case v.Base == expr.PayloadBaseNetworkHeader && v.Offset == sourceOffset:
			r.field = "source"
		case v.Base == expr.PayloadBaseTransportHeader && v.Offset == destPortOffset:
			r.field = "port"
		default:
			r.field = ""
		}
	case *expr.Bitwise:
	case *expr.Cmp:
		r.compare(v)
	case *expr.Range:
		if r.ok = r.ok && v.Op == expr.CmpOpEq && (r.field == "port" || r.field == "source"); r.field == "port" && len(v.FromData) == 2 && len(v.ToData) == 2 {
			r.ports = [2]uint16{binary.BigEndian.Uint16(v.FromData), binary.BigEndian.Uint16(v.ToData)}
		}
	case *expr.Lookup: // a set of ports or senders: which ones is not looked at
		r.ok = r.ok && !v.Invert && (r.field == "port" || r.field == "source")
	case *expr.Match:
		r.match(v)
	case *expr.Counter, *expr.Log, *expr.Verdict, *expr.Reject:
	default:
		r.ok = false
	}
}

func (r *udpReader) compare(v *expr.Cmp) {
	switch {
	case r.field == "link", r.field == "source":
		r.ok = r.ok && v.Op == expr.CmpOpEq
	case r.field == "protocol":
		r.ok = r.ok && v.Op == expr.CmpOpEq && len(v.Data) > 0 && v.Data[0] == unix.IPPROTO_UDP
	case r.field == "port" && v.Op == expr.CmpOpEq && len(v.Data) == 2:
		port := binary.BigEndian.Uint16(v.Data)
		r.ports = [2]uint16{port, port}
	default:
		r.ok = false
	}
}

// match reads a rule of iptables.
func (r *udpReader) match(v *expr.Match) {
	info, ok := v.Info.(*xt.Udp)
	switch {
	case v.Name == "comment":
	case v.Name == "udp" && ok && info.InvFlags == 0:
		r.ports = info.DstPorts
	default:
		r.ok = false
	}
}
