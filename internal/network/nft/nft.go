package nft

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// MasqueradeMark is the packet mark bit that asks for masquerading on the way out. It is the
// bit kube-proxy uses, so that programs that know it keep working.
const MasqueradeMark = 0x4000

// Reg returns the kernel's number of the i-th 32-bit register.
func Reg(i int) uint32 { return unix.NFT_REG32_00 + uint32(i) }

// Rule joins statements to one rule.
func Rule(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

// One wraps a single expression.
func One(e expr.Any) []expr.Any { return []expr.Any{e} }

// LoadSaddr loads the IPv4 source address into register i.
func LoadSaddr(i int) []expr.Any { return loadPayload(expr.PayloadBaseNetworkHeader, 12, 4, i) }

// LoadDaddr loads the IPv4 destination address into register i.
func LoadDaddr(i int) []expr.Any { return loadPayload(expr.PayloadBaseNetworkHeader, 16, 4, i) }

// LoadDport loads the destination port of TCP, UDP or SCTP into register i.
func LoadDport(i int) []expr.Any { return loadPayload(expr.PayloadBaseTransportHeader, 2, 2, i) }

// LoadProto loads the layer 4 protocol number into register i.
func LoadProto(i int) []expr.Any {
	return One(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: Reg(i)})
}

func loadPayload(base expr.PayloadBase, offset, length uint32, i int) []expr.Any {
	return One(&expr.Payload{DestRegister: Reg(i), Base: base, Offset: offset, Len: length})
}

// SaddrIn matches packets whose source is in prefix, or is not when not is set.
func SaddrIn(prefix netip.Prefix, not bool) []expr.Any { return inPrefix(LoadSaddr(0), prefix, not) }

// DaddrIn matches packets whose destination is in prefix, or is not when not is set.
func DaddrIn(prefix netip.Prefix, not bool) []expr.Any { return inPrefix(LoadDaddr(0), prefix, not) }

func inPrefix(load []expr.Any, prefix netip.Prefix, not bool) []expr.Any {
	prefix = prefix.Masked()
	mask := make([]byte, 4)
	binary.BigEndian.PutUint32(mask, ^uint32(0)<<(32-prefix.Bits()))
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	return Rule(load,
		One(&expr.Bitwise{SourceRegister: Reg(0), DestRegister: Reg(0), Len: 4, Mask: mask, Xor: make([]byte, 4)}),
		One(&expr.Cmp{Op: op, Register: Reg(0), Data: prefix.Addr().AsSlice()}))
}

// DaddrLocal matches packets to an address of this machine, or to any other when not is set.
func DaddrLocal(not bool) []expr.Any { return fibType(not, &expr.Fib{FlagDADDR: true}) }

// SaddrLocal matches packets from an address of this machine.
func SaddrLocal() []expr.Any { return fibType(false, &expr.Fib{FlagSADDR: true}) }

func fibType(not bool, fib *expr.Fib) []expr.Any {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	fib.Register, fib.ResultADDRTYPE = Reg(0), true
	return Rule(One(fib), One(&expr.Cmp{Op: op, Register: Reg(0), Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}))
}

// Oif matches packets that leave by the named link, or by any other when not is set.
func Oif(name string, not bool) []expr.Any { return ifname(expr.MetaKeyOIFNAME, name, not) }

// Iif matches packets that came in by the named link, or by any other when not is set.
func Iif(name string, not bool) []expr.Any { return ifname(expr.MetaKeyIIFNAME, name, not) }

func ifname(key expr.MetaKey, name string, not bool) []expr.Any {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return Rule(One(&expr.Meta{Key: key, Register: Reg(0)}), One(&expr.Cmp{Op: op, Register: Reg(0), Data: data}))
}

// Proto matches one layer 4 protocol, or every other when not is set.
func Proto(number byte, not bool) []expr.Any {
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	return Rule(LoadProto(0), One(&expr.Cmp{Op: op, Register: Reg(0), Data: []byte{number}}))
}

// SetMark sets the masquerade bit of the packet's mark.
func SetMark() []expr.Any { return changeMark(MasqueradeMark) }

// ClearMark clears it. A packet keeps its mark when it is put into a tunnel's: with the bit
// that one would be masqueraded too, and the kernel spoils its checksum by that.
func ClearMark() []expr.Any { return changeMark(0) }

func changeMark(to uint32) []expr.Any {
	mask, xor := make([]byte, 4), make([]byte, 4)
	binary.NativeEndian.PutUint32(mask, ^uint32(MasqueradeMark))
	binary.NativeEndian.PutUint32(xor, to)
	return Rule(One(&expr.Meta{Key: expr.MetaKeyMARK, Register: Reg(0)}),
		One(&expr.Bitwise{SourceRegister: Reg(0), DestRegister: Reg(0), Len: 4, Mask: mask, Xor: xor}),
		One(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: Reg(0)}))
}

// Marked matches packets whose masquerade bit is set.
func Marked() []expr.Any {
	mask := make([]byte, 4)
	binary.NativeEndian.PutUint32(mask, MasqueradeMark)
	return Rule(One(&expr.Meta{Key: expr.MetaKeyMARK, Register: Reg(0)}),
		One(&expr.Bitwise{SourceRegister: Reg(0), DestRegister: Reg(0), Len: 4, Mask: mask, Xor: make([]byte, 4)}),
		One(&expr.Cmp{Op: expr.CmpOpNeq, Register: Reg(0), Data: make([]byte, 4)}))
}

// Masquerade gives the packet the address of the link it leaves by, on a random port.
func Masquerade() []expr.Any { return One(&expr.Masq{FullyRandom: true}) }

// DNAT sends the connection to the address in register i and the port in register i+1.
func DNAT(i int) []expr.Any {
	return One(&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4,
		RegAddrMin: Reg(i), RegProtoMin: Reg(i + 1), Specified: true})
}

// Lookup matches when the key that begins in register i is in the set.
func Lookup(set *nftables.Set, i int) []expr.Any {
	return One(&expr.Lookup{SourceRegister: Reg(i), SetName: set.Name, SetID: set.ID})
}

// LookupMap loads what the map has for the key that begins in register key into register to
// and those after it, and ends the rule when it has nothing.
func LookupMap(set *nftables.Set, key, to int) []expr.Any {
	return One(&expr.Lookup{SourceRegister: Reg(key), DestRegister: Reg(to), IsDestRegSet: true, SetName: set.Name, SetID: set.ID})
}

// LookupVerdict does what the verdict map says for the key that begins in register key.
func LookupVerdict(set *nftables.Set, key int) []expr.Any {
	return One(&expr.Lookup{SourceRegister: Reg(key), DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: set.Name, SetID: set.ID})
}

// Random loads a random number from 0 to modulus-1 into register i.
func Random(modulus, i int) []expr.Any {
	return One(&expr.Numgen{Register: Reg(i), Modulus: uint32(modulus), Type: unix.NFT_NG_RANDOM})
}

// Verdict ends the rule with a verdict; chain is for jump and goto.
func Verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return One(&expr.Verdict{Kind: kind, Chain: chain})
}

// RejectReset answers a TCP packet with a reset.
func RejectReset() []expr.Any {
	return One(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
}

// RejectPort answers with ICMP port unreachable.
func RejectPort() []expr.Any {
	return One(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3})
}

// Key encodes a map's key or value: each part as it lies in registers, padded to 4 bytes.
// Parts are netip.Addr (IPv4), uint8 (protocol), uint16 (port) and uint32 (host order).
func Key(parts ...any) []byte {
	out := make([]byte, 0, 4*len(parts))
	for _, part := range parts {
		switch v := part.(type) {
		case netip.Addr:
			out = append(out, v.AsSlice()...)
		case uint8:
			out = append(out, v, 0, 0, 0)
		case uint16:
			out = append(out, byte(v>>8), byte(v), 0, 0)
		case uint32:
			out = binary.NativeEndian.AppendUint32(out, v)
		default:
			panic("nft: unknown part of a key")
		}
	}
	return out
}
