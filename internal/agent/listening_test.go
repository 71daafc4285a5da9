package agent

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
)

func TestListeningSocketsAreFound(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "0.0.0.0:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("listening on %s: %v", address, err)
			continue
		}
		want := l.Addr().(*net.TCPAddr).AddrPort()
		want = netip.AddrPortFrom(want.Addr().Unmap(), want.Port())
		if got := listeningSockets(os.Getpid()); !slices.Contains(got, want) {
			t.Errorf("sockets %v, want %v among them", got, want)
		}
		_ = l.Close()
		if got := listeningSockets(os.Getpid()); slices.Contains(got, want) {
			t.Errorf("sockets %v after the end of %v", got, want)
		}
	}
}

func TestParseListening(t *testing.T) {
	const text = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 00000000:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0
   2: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0
   3: zz:1F90 0100007F:D431 0A
   4: 0100
`
	if got := socketList(parseListening([]byte(text))); got != "127.0.0.1:8080 0.0.0.0:3000" {
		t.Errorf("parseListening = %q", got)
	}
	const six = "   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A\n" +
		"   1: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A\n"
	if got := socketList(parseListening([]byte(six))); got != "[::]:80 [::1]:81" {
		t.Errorf("parseListening = %q", got)
	}
}
