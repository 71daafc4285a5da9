package stats

import (
	"bytes"
	"strconv"
)

// Interface is what went through one network interface.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// interfaces reads the interfaces of the network namespace that a process is in, without lo.
func interfaces(file *scratch, proc string, pid int) []Interface {
	process := "self"
	if pid != 0 {
		process = strconv.Itoa(pid)
	}
	data, err := file.read(proc + "/" + process + "/net/dev")
	if err != nil {
		return nil
	}
	var list []Interface
	for len(data) > 0 {
		var text []byte
		text, data = line(data)
		name, rest, ok := bytes.Cut(text, []byte(":"))
		if name = bytes.TrimSpace(name); !ok || string(name) == "lo" {
			continue
		}
		i := Interface{Name: string(name)}
		for column := 0; len(rest) > 0; column++ {
			var word []byte
			word, rest = field(rest)
			value, _ := parse(word)
			i.set(column, value)
		}
		list = append(list, i)
	}
	return list
}

// set fills in a column of /proc/net/dev: bytes, packets, errs, drop, fifo, frame, compressed and
// multicast received, then eight columns sent.
func (i *Interface) set(column int, value uint64) {
	switch column {
	case 0:
		i.RxBytes = value
	case 1:
		i.RxPackets = value
	case 2:
		i.RxErrors = value
	case 3:
		i.RxDropped = value
	case 8:
		i.TxBytes = value
	case 9:
		i.TxPackets = value
	case 10:
		i.TxErrors = value
	case 11:
		i.TxDropped = value
	}
}
