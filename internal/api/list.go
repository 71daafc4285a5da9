package api

import (
	"net/http"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/api/registry"
	"gantry.dev/gantry/internal/store"
)

// list answers a list from the kept bytes of its objects.
func (s *Server) list(q *query, ep *endpoint) int {
	out, ok := s.accepts.negotiate(q.accept(), ep.class)
	if !ok {
		return s.fail(q, notAcceptable(ep.class))
	}
	if q.listErr != nil {
		return s.fail(q, q.listErr)
	}
	got, err := ep.List(q.r.Context(), q.namespace(), q.list.ListOptions)
	if err != nil {
		return s.fail(q, err)
	}
	return s.entries(q, out, ep, got)
}

// listMeta is the metadata of a page.
func listMeta(list *registry.List) metav1.ListMeta {
	return metav1.ListMeta{ResourceVersion: strconv.FormatInt(list.Revision, 10), Continue: list.Continue, RemainingItemCount: list.Remaining}
}

// entries sends a page of objects.
func (s *Server) entries(q *query, out output, ep *endpoint, got registry.List) int {
	if out.shape != shapeObject {
		return s.shapedList(q, out, ep, &got)
	}
	q.auditList(ep, &got)
	items, isProto, err := encoded(got.Entries, out.format == formatProto)
	if err != nil {
		return s.crash(q, err)
	}
	if out.format == formatProto && !isProto {
		out.format = formatJSON
	}
	size := listSize(items)
	out.pretty = wantsPretty(&out, q.r)
	if size > gzipThreshold && out.format != formatYAML && !out.pretty && acceptsGzip(q.r.Header) {
		return s.zippedList(q, out, ep, listMeta(&got), got.Entries, items)
	}
	if size > listChunk && out.format != formatYAML && !out.pretty {
		return s.chunkedList(q, out, ep, listMeta(&got), items)
	}
	buffer := s.pools.takeBuffer(size)
	defer s.pools.giveBuffer(buffer)
	if isProto {
		*buffer, err = ep.appendProtoList(*buffer, listMeta(&got), items)
	} else {
		*buffer, err = ep.appendJSONList(*buffer, listMeta(&got), items)
	}
	if err != nil {
		return s.crash(q, err)
	}
	if isProto {
		return s.send(q, out, http.StatusOK, *buffer)
	}
	return s.sendJSON(q, out, http.StatusOK, *buffer)
}

// listChunk is how much of a large list is put together at a time: enough for the connection to
// work on, little enough to stay in a processor's cache.
const listChunk = 256 << 10

// chunkedList sends a large list in parts, so that it is never in memory as a whole.
func (s *Server) chunkedList(q *query, out output, ep *endpoint, meta metav1.ListMeta, items [][]byte) int {
	proto := out.format == formatProto
	size := 0
	if proto {
		for _, item := range items {
			size += 1 + uvarintSize(len(item)) + len(item)
		}
	}
	head, tail, err := ep.listEnds(meta, size, proto)
	if err != nil {
		return s.crash(q, err)
	}
	q.w.Header()["Content-Type"] = s.shared.json
	if proto {
		q.w.Header()["Content-Type"] = s.shared.proto
	}
	defer limitWrites(q.w).after(s.answerLimit(listSize(items)))()
	q.w.WriteHeader(http.StatusOK)
	buffer := s.pools.takeBuffer(listChunk + listChunk/4)
	defer s.pools.giveBuffer(buffer)
	chunk := append(*buffer, head...)
	for i, item := range items {
		if proto {
			chunk = appendField(chunk, tag2, item)
		} else {
			if i > 0 {
				chunk = append(chunk, ',')
			}
			brace, rest := ep.listItem(item)
			chunk = append(append(chunk, brace...), rest...)
		}
		if len(chunk) < listChunk {
			continue
		}
		if _, err := q.w.Write(chunk); err != nil {
			return http.StatusOK // the connection is gone: nobody to tell
		}
		chunk = chunk[:0]
	}
	*buffer = append(chunk, tail...)
	_, _ = q.w.Write(*buffer) // as above
	return http.StatusOK
}

// encoded gathers the kept bytes of entries. isProto is false if one of them has no protobuf form.
func encoded(entries []*store.Entry, proto bool) (items [][]byte, isProto bool, err error) {
	items = make([][]byte, len(entries))
	for i, entry := range entries {
		if proto {
			if items[i], err = entry.Proto(); err != nil {
				return nil, false, err
			}
			if items[i] == nil {
				return encoded(entries, false)
			}
			continue
		}
		if items[i], err = entry.JSON(); err != nil {
			return nil, false, err
		}
	}
	return items, proto, nil
}

// deleteCollection deletes what a list selects and answers with it.
func (s *Server) deleteCollection(q *query, ep *endpoint) int {
	out, ok := s.accepts.negotiate(q.accept(), ep.class)
	if !ok {
		return s.fail(q, notAcceptable(ep.class))
	}
	if q.listErr != nil {
		return s.fail(q, q.listErr)
	}
	body, err := s.readBody(q)
	if err != nil {
		return s.fail(q, err)
	}
	opts, err := parseDelete(q.r.URL.RawQuery, body, q.r.Header.Get("Content-Type"))
	if err != nil {
		return s.fail(q, err)
	}
	q.auditDelete(body, opts)
	got, err := ep.DeleteCollection(q.context(), q.namespace(), opts, q.list.ListOptions)
	if err != nil {
		return s.fail(q, err)
	}
	return s.entries(q, out, ep, got)
}
