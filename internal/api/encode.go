package api

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net/http"
	"strings"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
)

// Protobuf field tags: number<<3 | 2 (length-delimited).
const (
	tag1 = 0x0a
	tag2 = 0x12
)

// protoTail is the end of the envelope: content encoding and content type, both empty (runtime.Unknown fields 3 and 4).
const protoTail = "\x1a\x00\x22\x00"

// protoHead is the start of the envelope for kind: magic number and type (runtime.Unknown field 1).
func protoHead(kind schema.GroupVersionKind) []byte {
	apiVersion, name := kind.ToAPIVersionAndKind()
	meta := appendField(nil, tag1, []byte(apiVersion))
	meta = appendField(meta, tag2, []byte(name))
	return appendField([]byte("k8s\x00"), tag1, meta)
}

// appendField appends a length-delimited field.
func appendField(dst []byte, tag byte, value []byte) []byte {
	dst = append(dst, tag)
	dst = binary.AppendUvarint(dst, uint64(len(value)))
	return append(dst, value...)
}

// appendTag appends the tag and length of a field whose value follows.
func appendTag(dst []byte, tag byte, size int) []byte {
	dst = append(dst, tag)
	return binary.AppendUvarint(dst, uint64(size))
}

// wrapProto puts a bare message into the envelope that starts with head.
func wrapProto(head, raw []byte) []byte {
	out := make([]byte, 0, len(head)+len(raw)+binary.MaxVarintLen64+1+len(protoTail))
	return appendEnvelope(out, head, raw)
}

func appendEnvelope(dst, head, raw []byte) []byte {
	dst = append(dst, head...)
	dst = appendField(dst, tag2, raw)
	return append(dst, protoTail...)
}

// envelopeSize is how many bytes appendEnvelope appends.
func envelopeSize(head, raw []byte) int {
	return len(head) + 1 + uvarintSize(len(raw)) + len(raw) + len(protoTail)
}

func uvarintSize(n int) int {
	size := 1
	for n >= 0x80 {
		n >>= 7
		size++
	}
	return size
}

// kindFrame is what surrounds the encoded objects of one kind.
type kindFrame struct {
	kind, listKind schema.GroupVersionKind
	jsonHead       string // of one object: {"kind":"Pod","apiVersion":"v1",
	listHead       string // of a list, up to its metadata
	protoHead      []byte
	listProtoHead  []byte
	table          rest.TableConvertor // nil: upstream's printers know the kind
}

func newKindFrame(kind schema.GroupVersionKind, listKind string) kindFrame {
	list := kind.GroupVersion().WithKind(listKind)
	head := func(kind schema.GroupVersionKind) string {
		apiVersion, name := kind.ToAPIVersionAndKind()
		return `{"kind":"` + name + `","apiVersion":"` + apiVersion + `",`
	}
	return kindFrame{
		kind: kind, listKind: list,
		jsonHead: head(kind), listHead: head(list) + `"metadata":`,
		protoHead: protoHead(kind), listProtoHead: protoHead(list),
	}
}

// listItem is an object's JSON as it stands in a typed list: without kind and apiVersion.
func (f *kindFrame) listItem(data []byte) (brace string, rest []byte) {
	if len(data) > len(f.jsonHead) && string(data[:len(f.jsonHead)]) == f.jsonHead {
		return "{", data[len(f.jsonHead):]
	}
	return "", data
}

// appendJSONList appends a list of encoded objects.
func (f *kindFrame) appendJSONList(dst []byte, meta metav1.ListMeta, items [][]byte) ([]byte, error) {
	head, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	dst = append(dst, f.listHead...)
	dst = append(dst, head...)
	dst = append(dst, `,"items":[`...)
	for i, item := range items {
		if i > 0 {
			dst = append(dst, ',')
		}
		brace, rest := f.listItem(item)
		dst = append(dst, brace...)
		dst = append(dst, rest...)
	}
	return append(dst, ']', '}'), nil
}

// appendProtoList appends a list of bare messages in its envelope: metadata is field 1 and items field 2 of every list.
func (f *kindFrame) appendProtoList(dst []byte, meta metav1.ListMeta, items [][]byte) ([]byte, error) {
	head, err := meta.Marshal()
	if err != nil {
		return nil, err
	}
	size := 1 + uvarintSize(len(head)) + len(head)
	for _, item := range items {
		size += 1 + uvarintSize(len(item)) + len(item)
	}
	dst = append(dst, f.listProtoHead...)
	dst = appendTag(dst, tag2, size)
	dst = appendField(dst, tag1, head)
	for _, item := range items {
		dst = appendField(dst, tag2, item)
	}
	return append(dst, protoTail...), nil
}

// listSize estimates the size of a framed list, to allocate once.
func listSize(items [][]byte) int {
	size := 512
	for _, item := range items {
		size += len(item) + 12
	}
	return size
}

// gzipThreshold is the size above which answers are compressed (apiserver, defaultGzipThresholdBytes).
const gzipThreshold = 128 * 1024

// acceptsGzip reports whether the client asks for compression.
func acceptsGzip(header http.Header) bool {
	values := header["Accept-Encoding"]
	if len(values) == 0 {
		return false
	}
	for token := range strings.SplitSeq(values[0], ",") {
		if strings.TrimSpace(token) == "gzip" {
			return true
		}
	}
	return false
}

// pools keep what is dear to make between requests. The zero value is ready.
type pools struct{ buffers, gzips, deflaters sync.Pool }

// maxKeptBuffer bounds the buffers kept between requests; a larger one is left to the collector.
const maxKeptBuffer = 8 << 20

// takeBuffer returns an empty buffer with room for size bytes.
func (p *pools) takeBuffer(size int) *[]byte {
	buffer, ok := p.buffers.Get().(*[]byte)
	if !ok {
		buffer = new([]byte)
	}
	if cap(*buffer) < size {
		*buffer = make([]byte, 0, size)
	}
	*buffer = (*buffer)[:0]
	return buffer
}

func (p *pools) giveBuffer(buffer *[]byte) {
	if cap(*buffer) <= maxKeptBuffer {
		p.buffers.Put(buffer)
	}
}

// writeGzip sends parts compressed, at the fastest level as upstream does.
func (p *pools) writeGzip(w http.ResponseWriter, code int, parts [][]byte) {
	header := w.Header()
	header.Set("Content-Encoding", "gzip")
	header.Add("Vary", "Accept-Encoding")
	w.WriteHeader(code)
	zip, ok := p.gzips.Get().(*gzip.Writer)
	if !ok {
		zip, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is a valid one
	}
	zip.Reset(w)
	for _, part := range parts {
		_, _ = zip.Write(part) // the connection is gone: nobody to tell
	}
	_ = zip.Close()
	zip.Reset(nil)
	p.gzips.Put(zip)
}

// deflate compresses data into blocks that end on a byte and refer to nothing before them.
func (p *pools) deflate(data []byte) ([]byte, error) {
	w, ok := p.deflaters.Get().(*flate.Writer)
	if !ok {
		w, _ = flate.NewWriter(nil, flate.BestSpeed) // the level is a valid one
	}
	defer p.deflaters.Put(w)
	var out bytes.Buffer
	w.Reset(&out)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	return bytes.Clone(out.Bytes()), nil
}
