package gateway

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
)

// acmeTLS is the protocol of ACME's tls-alpn-01 (RFC 8737).
const acmeTLS = "acme-tls/1"

// certificate is a Certificate that was parsed.
type certificate struct {
	source Certificate
	names  []string
	pair   *tls.Certificate
}

func parseCertificate(source Certificate) (*certificate, error) {
	pair, err := tls.X509KeyPair(source.Chain, source.Key)
	if err != nil {
		return nil, err
	}
	c := &certificate{source: source, pair: &pair}
	for _, name := range source.Names {
		c.names = append(c.names, strings.ToLower(name))
	}
	if len(c.names) == 0 && pair.Leaf != nil {
		for _, name := range pair.Leaf.DNSNames {
			c.names = append(c.names, strings.ToLower(name))
		}
		for _, ip := range pair.Leaf.IPAddresses {
			c.names = append(c.names, ip.String())
		}
	}
	return c, nil
}

func (c *certificate) same(source Certificate) bool {
	return bytes.Equal(c.source.Chain, source.Chain) && bytes.Equal(c.source.Key, source.Key) && c.source.Default == source.Default && slices.Equal(c.source.Names, source.Names)
}

// certStore chooses certificates for handshakes. It never changes.
type certStore struct {
	ports      map[uint16][]certListener
	challenges map[string]*certificate
}

// certListener is a listener with its certificates.
type certListener struct {
	hostname string
	byName   map[string]*certificate
	first    *certificate // whatever the name
}

// compileCerts returns the store, and the parsed certificates for the next time.
func compileCerts(listeners []Listener, sources, challenges map[string]Certificate, have map[string]*certificate) (*certStore, map[string]*certificate, error) {
	parsed := map[string]*certificate{}
	for id, source := range sources {
		c := have[id]
		if c == nil || !c.same(source) {
			var err error
			if c, err = parseCertificate(source); err != nil {
				return nil, nil, fmt.Errorf("certificate %s: %w", id, err)
			}
		}
		parsed[id] = c
	}
	s := &certStore{ports: map[uint16][]certListener{}, challenges: map[string]*certificate{}}
	for host, source := range challenges {
		c, err := parseCertificate(source)
		if err != nil {
			return nil, nil, fmt.Errorf("challenge certificate of %s: %w", host, err)
		}
		s.challenges[strings.ToLower(host)] = c
	}
	for _, l := range listeners {
		if l.Protocol != ProtocolHTTPS {
			continue
		}
		cl := certListener{hostname: strings.ToLower(l.Hostname), byName: map[string]*certificate{}}
		ids := l.Certificates
		if len(ids) == 0 {
			for id := range parsed {
				ids = append(ids, id)
			}
			slices.Sort(ids)
		}
		for _, id := range ids {
			c := parsed[id]
			if c == nil {
				continue
			}
			if cl.first == nil && (len(l.Certificates) > 0 || c.source.Default) {
				cl.first = c
			}
			for _, name := range c.names {
				if cl.byName[name] == nil {
					cl.byName[name] = c
				}
			}
		}
		s.ports[l.Port] = append(s.ports[l.Port], cl)
	}
	return s, parsed, nil
}

// choose returns the certificate for a name, or for the address itself if the client named
// none; nil if there is none.
func (s *certStore) choose(port uint16, name, address string) *tls.Certificate {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	var best *certListener
	most := -1
	for i := range s.ports[port] {
		l := &s.ports[port][i]
		if n := hostFit(l.hostname, name); n > most {
			best, most = l, n
		}
	}
	if best == nil {
		return nil
	}
	if name == "" {
		name = address
	}
	if c := best.byName[name]; c != nil {
		return c.pair
	}
	if i := strings.IndexByte(name, '.'); i > 0 {
		if c := best.byName["*"+name[i:]]; c != nil {
			return c.pair
		}
	}
	if best.first != nil {
		return best.first.pair
	}
	return nil
}

// hostFit says how well a listener's hostname fits a name: -1 not at all, more is better.
func hostFit(hostname, name string) int {
	switch {
	case hostname == "" || hostname == "*":
		return 0
	case hostname == name:
		return 1 << 16
	case hostname[0] == '*' && len(name) > len(hostname)-1 && strings.HasSuffix(name, hostname[1:]):
		return len(hostname)
	}
	return -1
}

// tlsConfig is the configuration of all handshakes; tickets' keys rotate by crypto/tls itself,
// for the configuration lives as long as the process.
func (g *Gateway) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, ok := hello.Conn.(*conn)
			if !ok {
				return nil, errors.New("not a connection of the gateway")
			}
			address, _, err := net.SplitHostPort(c.LocalAddr().String())
			if err != nil {
				return nil, err
			}
			return g.config.Load().certs.choose(c.port, hello.ServerName, address), nil // nil: unrecognized_name
		},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if len(hello.SupportedProtos) != 1 || hello.SupportedProtos[0] != acmeTLS {
				return nil, nil
			}
			c := g.config.Load().certs.challenges[strings.ToLower(hello.ServerName)]
			if c == nil {
				return nil, nil
			}
			return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{acmeTLS}, Certificates: []tls.Certificate{*c.pair}}, nil
		},
	}
}

// backendTransport returns the transport of a service that speaks https.
func (g *Gateway) backendTransport(check *BackendTLS) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if check == nil {
		config.InsecureSkipVerify = true // the table says that this backend is not checked
	} else {
		config.ServerName = check.ServerName
		if len(check.CA) > 0 {
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(check.CA) {
				return nil, errors.New("no certificate in the backend's CA")
			}
		}
	}
	t := g.newTransport()
	t.TLSClientConfig, t.ForceAttemptHTTP2 = config, true
	return t, nil
}
