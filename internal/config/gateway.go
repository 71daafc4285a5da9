package config

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Gateway is the way in for HTTP and what it proves itself with.
type Gateway struct {
	Off                 bool
	HTTPPort, HTTPSPort uint16
	PublicAddresses     []netip.Addr // under which the Internet reaches this machine, where that is not its own address
	ACME                ACME
}

// ACME is who issues certificates for public names. Other names get one of the cluster's own authority.
type ACME struct {
	On        bool
	Email     string // of the account; may be empty
	Directory string // URL
	CAFile    string // PEM of who signs the directory's own certificate; empty is the system's
}

// Names of the keys of Gateway.
const (
	KeyNoGateway        = "no-gateway"
	KeyGatewayHTTPPort  = "gateway-http-port"
	KeyGatewayHTTPSPort = "gateway-https-port"
	KeyPublicAddress    = "public-address"
	KeyACME             = "acme"
	KeyACMEEmail        = "acme-email"
	KeyACMEDirectory    = "acme-directory"
	KeyACMECAFile       = "acme-ca-file"
)

// letsEncrypt is the directory of certificates that browsers believe.
const letsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

// gatewayKeys are the settings of Gateway.
func gatewayKeys() []Key {
	port := func(name, byDefault, usage string, at func(*Gateway) *uint16) Key {
		return Key{Name: name, Default: byDefault, Usage: usage, set: func(c *Config, v []string) error {
			n, err := within(v[0], 1, 65535)
			*at(&c.Gateway) = uint16(n) //nolint:gosec // within its range
			return err
		}}
	}
	truth := func(name, usage string, at func(*Gateway) *bool) Key {
		return Key{Name: name, Default: "false", Bool: true, Usage: usage, set: func(c *Config, v []string) (err error) {
			if *at(&c.Gateway), err = strconv.ParseBool(v[0]); err != nil {
				return wrong("want true or false", "%q is neither true nor false", v[0])
			}
			return nil
		}}
	}
	return []Key{
		truth(KeyNoGateway, "serve no Ingress and no Gateway API", func(g *Gateway) *bool { return &g.Off }),
		port(KeyGatewayHTTPPort, "80", "port of the gateway for HTTP", func(g *Gateway) *uint16 { return &g.HTTPPort }),
		port(KeyGatewayHTTPSPort, "443", "port of the gateway for HTTPS", func(g *Gateway) *uint16 { return &g.HTTPSPort }),
		{Name: KeyPublicAddress, List: true, set: setPublicAddress,
			Usage: "address under which the Internet reaches this machine, where that is not its own (NAT); may be repeated"},
		truth(KeyACME, "get certificates for public names from an ACME authority, whose terms you accept by this", func(g *Gateway) *bool { return &g.ACME.On }),
		{Name: KeyACMEEmail, set: setACMEEmail, Usage: "address that the ACME authority may write to"},
		{Name: KeyACMEDirectory, Default: letsEncrypt, set: setACMEDirectory, Usage: "URL of the ACME authority's directory"},
		{Name: KeyACMECAFile, set: func(c *Config, v []string) (err error) {
			if v[0] != "" {
				c.Gateway.ACME.CAFile, err = absolute(v[0])
			}
			return err
		}, Usage: "PEM file of who signs the directory's own certificate (default: the system's authorities)"},
	}
}

func setPublicAddress(c *Config, values []string) error {
	for _, text := range entries(values) {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() {
			return wrong("want an address such as 203.0.113.7", "%q is no address that others reach", text)
		}
		c.Gateway.PublicAddresses = append(c.Gateway.PublicAddresses, addr)
	}
	return nil
}

func setACMEEmail(c *Config, v []string) error {
	if at := strings.IndexByte(v[0], '@'); v[0] != "" && (at < 1 || at == len(v[0])-1 || strings.ContainsAny(v[0], " <>,")) {
		return wrong("want an address, such as admin@example.com", "%q is no e-mail address", v[0])
	}
	c.Gateway.ACME.Email = v[0]
	return nil
}

func setACMEDirectory(c *Config, v []string) error {
	u, err := url.Parse(v[0])
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return wrong("want a URL that begins with https://", "%q is no such URL", v[0])
	}
	c.Gateway.ACME.Directory = v[0]
	return nil
}

// checkGateway compares the settings of Gateway with others.
func (c *Config) checkGateway(add func(key, want, format string, args ...any)) {
	g := &c.Gateway
	if g.Off {
		return
	}
	taken := map[uint16]string{c.Listen.Port(): "the API's", c.AgentPort: "the agent's"}
	for _, p := range []struct {
		key  string
		port uint16
	}{{KeyGatewayHTTPPort, g.HTTPPort}, {KeyGatewayHTTPSPort, g.HTTPSPort}} {
		if whose := taken[p.port]; whose != "" {
			add(p.key, "choose another port", "port %d is %s already", p.port, whose)
		}
		taken[p.port] = "the other one's of the gateway"
	}
}
