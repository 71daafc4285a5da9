package gateway

import (
	"bytes"
)

// field is a header line of a message; its parts are views of the buffer.
type field struct {
	kind  fieldKind
	name  []byte
	value []byte // without the spaces around it
}

// fieldKind names the fields that the fast path looks at.
type fieldKind byte

const (
	fieldOther fieldKind = iota
	fieldHost
	fieldContentLength
	fieldTransferEncoding
	fieldConnection
	fieldForwarded // X-Forwarded-For, -Proto, -Host and what else pretends to know the client
	fieldRequestID
	fieldUserAgent
	fieldAccept
	fieldUnusual // what the fast path leaves to net/http
)

// verdict is what the parser says of the beginning of a buffer.
type verdict byte

const (
	incomplete verdict = iota // no end of the head yet
	plain                     // a message that the fast path understands whole
	unusual                   // anything else, right or wrong: net/http decides
)

// requestHead is the head of a plain request.
type requestHead struct {
	size     int // of the head with its empty line
	method   []byte
	target   []byte
	path     []byte // target up to the question mark
	query    []byte
	host     []byte // the Host field
	hostname []byte // without port
	length   int64  // of the body
	close    bool   // Connection: close
	agent    []byte
	accept   []byte
	fields   []field
}

// responseHead is the head of a plain response.
type responseHead struct {
	size    int
	status  int
	reason  []byte // with the status: "200 OK"
	length  int64  // of the body; -1: chunked
	close   bool
	fields  []field
	stream  bool // text/event-stream
	hasBody bool
}

// parseRequest reads the head of a request. It is never wider than net/http: what it calls
// plain, net/http's server accepts and frames the same (FuzzRequest).
func parseRequest(b []byte, h *requestHead, maxFields int) verdict {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return incomplete
	}
	*h = requestHead{size: end + 4, fields: h.fields[:0]}
	head := b[:end+2]
	eol := bytes.IndexByte(head, '\n')
	line := head[:eol]
	if len(line) < len("GET / HTTP/1.1\r") || line[len(line)-1] != '\r' {
		return unusual
	}
	line = line[:len(line)-1]
	i := bytes.IndexByte(line, ' ')
	if i < 1 || !plainMethod(line[:i]) {
		return unusual
	}
	h.method = line[:i]
	rest := line[i+1:]
	i = len(rest) - len(" HTTP/1.1")
	if i < 1 || string(rest[i:]) != " HTTP/1.1" || !h.setTarget(rest[:i]) {
		return unusual
	}
	seenLength := false
	for head = head[eol+1:]; len(head) > 0; {
		f, n := parseField(head)
		if n == 0 || len(h.fields) >= maxFields {
			return unusual
		}
		head = head[n:]
		switch f.kind {
		case fieldHost:
			if h.host != nil || !h.setHost(f.value) {
				return unusual
			}
		case fieldContentLength:
			length, ok := parseLength(f.value)
			if seenLength || !ok {
				return unusual
			}
			h.length, seenLength = length, true
		case fieldConnection:
			if equalFold(f.value, "close") {
				h.close = true
			} else if !equalFold(f.value, "keep-alive") {
				return unusual
			}
		case fieldUserAgent:
			h.agent = f.value
		case fieldAccept:
			h.accept = f.value
		case fieldTransferEncoding, fieldUnusual:
			return unusual
		}
		h.fields = append(h.fields, f)
	}
	if h.host == nil {
		return unusual
	}
	return plain
}

// parseResponse reads the head of a response to a request of a method; what it calls plain,
// net/http's client accepts and frames the same (FuzzResponse).
func parseResponse(b []byte, h *responseHead, head bool) verdict {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return incomplete
	}
	*h = responseHead{size: end + 4, fields: h.fields[:0]}
	rest := b[:end+2]
	eol := bytes.IndexByte(rest, '\n')
	line := rest[:eol]
	if len(line) < len("HTTP/1.1 200 \r") || line[len(line)-1] != '\r' || string(line[:9]) != "HTTP/1.1 " || line[12] != ' ' {
		return unusual
	}
	h.reason = line[9 : len(line)-1]
	for _, c := range h.reason[:3] {
		if c < '0' || c > '9' {
			return unusual
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 200 || h.status > 599 || !plainValue(h.reason) {
		return unusual
	}
	seenLength, chunked := false, false
	for rest = rest[eol+1:]; len(rest) > 0; {
		f, n := parseField(rest)
		if n == 0 {
			return unusual
		}
		rest = rest[n:]
		switch f.kind {
		case fieldContentLength:
			length, ok := parseLength(f.value)
			if seenLength || !ok {
				return unusual
			}
			h.length, seenLength = length, true
		case fieldTransferEncoding:
			if chunked || string(f.value) != "chunked" {
				return unusual
			}
			chunked = true
		case fieldConnection:
			if equalFold(f.value, "close") {
				h.close = true
			} else if !equalFold(f.value, "keep-alive") {
				return unusual
			}
		case fieldUnusual:
			if !equalFold(f.name, "keep-alive") {
				return unusual
			}
			continue // a word between the backend and us
		}
		if len(f.name) == 12 && equalFold(f.name, "content-type") {
			h.stream = bytes.HasPrefix(f.value, []byte("text/event-stream"))
		}
		h.fields = append(h.fields, f)
	}
	if chunked && seenLength {
		return unusual
	}
	if h.status == 204 || h.status == 304 || head {
		// net/http takes a length beside 204 and 304 in several ways.
		if chunked || seenLength && !head {
			return unusual
		}
		return plain
	}
	if !chunked && !seenLength {
		return unusual // until the end of the connection
	}
	if chunked {
		h.length = -1
	}
	h.hasBody = h.length != 0
	return plain
}

// parseField reads a line "name: value\r\n". n is its size, 0 if it is not plain.
func parseField(b []byte) (f field, n int) {
	eol := bytes.IndexByte(b, '\n')
	if eol < 3 || b[eol-1] != '\r' {
		return f, 0
	}
	line := b[:eol-1]
	colon := bytes.IndexByte(line, ':')
	if colon < 1 {
		return f, 0
	}
	f.name = line[:colon]
	underscore := false
	for _, c := range f.name {
		if !tokenByte(c) {
			return f, 0
		}
		underscore = underscore || c == '_'
	}
	value := line[colon+1:]
	for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
		value = value[1:]
	}
	for len(value) > 0 && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
		value = value[:len(value)-1]
	}
	if !plainValue(value) {
		return f, 0
	}
	f.value = value
	if f.kind = kindOf(f.name); underscore {
		f.kind = fieldUnusual // some backends take _ for -
	}
	return f, eol + 1
}

// kindOf recognizes a field by its name.
func kindOf(name []byte) fieldKind {
	is := func(want string) bool { return equalFold(name, want) }
	switch len(name) {
	case 2:
		if is("te") {
			return fieldUnusual
		}
	case 4:
		if is("host") {
			return fieldHost
		}
	case 6:
		if is("accept") {
			return fieldAccept
		}
		if is("expect") {
			return fieldUnusual
		}
	case 7:
		if is("upgrade") || is("trailer") {
			return fieldUnusual
		}
	case 9:
		if is("forwarded") || is("x-real-ip") {
			return fieldForwarded
		}
	case 10:
		if is("connection") {
			return fieldConnection
		}
		if is("user-agent") {
			return fieldUserAgent
		}
		if is("keep-alive") {
			return fieldUnusual
		}
	case 12:
		if is("x-request-id") {
			return fieldRequestID
		}
	case 14:
		if is("content-length") {
			return fieldContentLength
		}
		if is("http2-settings") {
			return fieldUnusual
		}
	case 15:
		if is("x-forwarded-for") {
			return fieldForwarded
		}
	case 16:
		if is("x-forwarded-host") || is("x-forwarded-port") {
			return fieldForwarded
		}
		if is("proxy-connection") {
			return fieldUnusual
		}
	case 17:
		if is("transfer-encoding") {
			return fieldTransferEncoding
		}
		if is("x-forwarded-proto") {
			return fieldForwarded
		}
	case 18:
		if is("proxy-authenticate") {
			return fieldUnusual
		}
	case 19:
		if is("proxy-authorization") {
			return fieldUnusual
		}
	}
	return fieldOther
}

// setTarget takes a target in origin form.
func (h *requestHead) setTarget(target []byte) bool {
	if target[0] != '/' || len(target) > 1 && target[1] == '/' {
		return false
	}
	path := len(target)
	for i := 0; i < len(target); i++ {
		c := target[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '?':
			path = min(path, i)
		case c == '%':
			if i+2 >= len(target) || !hexByte(target[i+1]) || !hexByte(target[i+2]) {
				return false
			}
		case bytes.IndexByte([]byte("-._~!$&'()*+,;=:@/"), c) < 0:
			return false
		}
	}
	h.target, h.path = target, target[:path]
	if path < len(target) {
		h.query = target[path+1:]
	}
	return true
}

// setHost takes a lower-case name or IPv4 address with or without port.
func (h *requestHead) setHost(host []byte) bool {
	name := len(host)
	for i, c := range host {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '.', c == '_':
			if name < len(host) && (c < '0' || c > '9') {
				return false
			}
		case c == ':':
			if name < len(host) || i == 0 {
				return false
			}
			name = i
		default:
			return false
		}
	}
	if name == 0 || host[name-1] == '.' {
		return false
	}
	h.host, h.hostname = host, host[:name]
	return true
}

func parseLength(b []byte) (int64, bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

func plainMethod(m []byte) bool {
	switch string(m) {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS":
		return true
	}
	return false
}

// plainValue reports whether a field's value has no control bytes but tabs.
func plainValue(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func tokenByte(c byte) bool {
	if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' {
		return true
	}
	return bytes.IndexByte([]byte("!#$%&'*+.^_`|~"), c) >= 0
}

func hexByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

// equalFold compares with a lower-case ASCII text.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// idempotent reports whether a request may be sent twice (RFC 9110, 9.2.2).
func idempotent[T string | []byte](method T) bool {
	switch string(method) {
	case "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE":
		return true
	}
	return false
}
