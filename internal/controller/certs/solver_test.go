package certs

import "testing"

func TestHandshakeName(t *testing.T) {
	for host, want := range map[string]string{
		"Shop.example.com": "shop.example.com",
		"203.0.113.7":      "7.113.0.203.in-addr.arpa",
		"2001:db8::1":      "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
	} {
		if got := handshakeName(host); got != want {
			t.Errorf("%s: got %s, want %s", host, got, want)
		}
	}
}
