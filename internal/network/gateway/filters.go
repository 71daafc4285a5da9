package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// checkFilters refuses what cannot be done.
func checkFilters(filters []Filter) error {
	for _, f := range filters {
		for _, change := range []*HeaderChange{f.RequestHeaders, f.ResponseHeaders} {
			if change == nil {
				continue
			}
			for _, h := range append(change.Set[:len(change.Set):len(change.Set)], change.Add...) {
				if !httpguts.ValidHeaderFieldName(h.Name) || !httpguts.ValidHeaderFieldValue(h.Value) {
					return fmt.Errorf("header %q is not valid", h.Name)
				}
			}
		}
		if r := f.Redirect; r != nil && r.Status != 0 && (r.Status < 300 || r.Status > 399) {
			return fmt.Errorf("redirect with status %d", r.Status)
		}
		if f.Mirror != nil && f.Mirror.Service == "" {
			return errors.New("mirror without a service")
		}
	}
	return nil
}

// changeHeaders does a HeaderChange.
func changeHeaders(h http.Header, c *HeaderChange) {
	for _, one := range c.Set {
		h.Set(one.Name, one.Value)
	}
	for _, one := range c.Add {
		h.Add(one.Name, one.Value)
	}
	for _, name := range c.Remove {
		h.Del(name)
	}
}

// changeRequestHeaders is changeHeaders for what goes to a backend: net/http keeps Host apart.
func changeRequestHeaders(r *http.Request, c *HeaderChange) {
	changeHeaders(r.Header, c)
	if host := r.Header.Get("Host"); host != "" {
		r.Host = host
		r.Header.Del("Host")
	}
}

// replacePrefix puts value in place of the prefix of an escaped path that the route matched.
func replacePrefix(path, prefix, value string) string {
	rest := strings.TrimPrefix(path, prefix)
	value = strings.TrimRight(value, "/")
	if rest == "" && value == "" {
		return "/"
	}
	if rest != "" && rest[0] != '/' {
		rest = "/" + rest
	}
	return value + rest
}

// rewrite changes the URL and host that a backend sees.
func rewrite(r *http.Request, route *route, path string, w *Rewrite) {
	if w.Host != "" {
		r.Host = w.Host
	}
	switch {
	case w.Path != nil:
		setPath(r.URL, *w.Path)
	case w.Prefix != nil:
		setPath(r.URL, replacePrefix(path, route.Path.Value, *w.Prefix))
	}
}

// setPath sets an escaped path.
func setPath(u *url.URL, path string) {
	u.Opaque = ""
	if decoded, err := url.PathUnescape(path); err == nil {
		u.Path, u.RawPath = decoded, path
		return
	}
	u.Path, u.RawPath = path, ""
}

// location returns where a redirect leads.
func location(r *http.Request, scheme string, port uint16, route *route, path string, to *Redirect) string {
	u := url.URL{Scheme: scheme, RawQuery: r.URL.RawQuery}
	if to.Scheme != "" {
		u.Scheme = to.Scheme
	}
	host := hostOnly(r.Host)
	if to.Host != "" {
		host = to.Host
	}
	switch {
	case to.Port != 0:
		port = to.Port
	case to.Scheme == "http":
		port = 80
	case to.Scheme == "https":
		port = 443
	}
	if u.Scheme == "http" && port == 80 || u.Scheme == "https" && port == 443 {
		u.Host = host
		if strings.Contains(host, ":") {
			u.Host = "[" + host + "]"
		}
	} else {
		u.Host = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	switch {
	case to.Path != nil:
		path = *to.Path
	case to.Prefix != nil:
		path = replacePrefix(path, route.Path.Value, *to.Prefix)
	}
	setPath(&u, path)
	return u.String()
}

// hostOnly returns a Host field in lower case without port, brackets and last dot.
func hostOnly(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && i > strings.LastIndexByte(host, ']') {
		host = host[:i]
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}
