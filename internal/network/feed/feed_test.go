package feed

import (
	"bytes"
	"testing"

	"gantry.dev/gantry/internal/network/dns"
)

func FuzzRead(f *testing.F) {
	frame, err := Encode(KindTable, Table{Generation: 3, DNS: dns.Table{Config: dns.Config{Domain: "cluster.local"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(frame)
	f.Add([]byte{0, 0, 0, 2, 'A', '{'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 'A'})
	f.Fuzz(func(t *testing.T, data []byte) {
		kind, payload, err := Read(bytes.NewReader(data))
		if err != nil {
			return
		}
		var table Table
		if Decode(payload, &table) != nil {
			return
		}
		again, err := Encode(kind, table)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if _, _, err := Read(bytes.NewReader(again)); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		_ = dns.NewZone().Replace(table.DNS)
	})
}
