package gateway

import (
	"bytes"
	"strconv"
	"time"
)

// refusalFields follow the status line where net/http itself refuses a request, before any handler sees
// it. Answers of handlers have other fields: each of them has an X-Request-Id.
const refusalFields = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"

// Write passes on what net/http answers. What it refuses by itself gets an id, too, and is noted.
func (h *handed) Write(p []byte) (int, error) {
	const begin = "HTTP/1.1 4"
	if len(p) < len(begin) || string(p[:len(begin)]) != begin && string(p[:len(begin)]) != "HTTP/1.1 5" {
		return h.Conn.Write(p)
	}
	end := bytes.IndexByte(p, '\r')
	if end < len(begin)+2 || !bytes.HasPrefix(p[end:], []byte(refusalFields)) || h.c == nil {
		return h.Conn.Write(p)
	}
	status, err := strconv.Atoi(string(p[len(begin)-1 : len(begin)+2]))
	if err != nil {
		return h.Conn.Write(p)
	}
	r := record{start: time.Now(), id: newID(), client: h.c.client, scheme: h.c.scheme, protocol: "HTTP/1.1", status: status,
		reason: ReasonBadRequest, detail: string(p[end+len(refusalFields):])}
	out := append(append(append([]byte{}, p[:end]...), "\r\nX-Request-Id: "+r.id...), p[end:]...)
	n, err := h.Conn.Write(out)
	r.out = int64(n)
	h.c.g.finish(&r)
	if err != nil {
		return 0, err
	}
	return len(p), nil
}
