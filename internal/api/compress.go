package api

import (
	"encoding/binary"
	"hash/crc32"
	"net/http"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry.dev/gantry/internal/store"
)

// Lists are mostly sent compressed, and compressing costs ten times what all else does. But a list changes little
// from one request to the next, and deflate data may be put together from pieces that were compressed apart. So a
// list is cut into runs of objects, and each run's compressed form is kept until one of its objects changes. Where
// runs end depends on the objects' keys only, so an object that comes or goes changes one run.

// Runs have runLength objects on average and at most maxRun. zipCacheBytes bounds the plain size of what is kept: runs
// of objects that have changed since keep those alive until the cache is emptied.
const (
	runLength     = 64
	maxRun        = 4 * runLength
	zipCacheBytes = 64 << 20
)

// run is a piece of a list, compressed.
type run struct {
	entries []*store.Entry
	data    []byte // deflate blocks that end on a byte and refer to nothing before them
	crc     uint32 // of the plain bytes
	size    int    // of the plain bytes
}

// zipCache keeps compressed runs.
type zipCache struct {
	pools *pools

	mu    sync.RWMutex // guards the fields below
	runs  map[runKey]*run
	bytes int // plain size of all
}

// runKey finds a run by its first object and encoding.
type runKey struct {
	first *store.Entry
	proto bool
}

// get returns the run of entries, compressing their bytes if they are not kept.
func (z *zipCache) get(entries []*store.Entry, items [][]byte, frame *kindFrame, proto bool) (*run, error) {
	key := runKey{entries[0], proto}
	z.mu.RLock()
	kept := z.runs[key]
	z.mu.RUnlock()
	if kept != nil && slices.Equal(kept.entries, entries) {
		return kept, nil
	}
	fresh, err := z.compress(items, frame, proto)
	if err != nil {
		return nil, err
	}
	fresh.entries = slices.Clone(entries)
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.runs == nil || z.bytes+fresh.size > zipCacheBytes {
		z.runs, z.bytes = map[runKey]*run{}, 0
	}
	if old := z.runs[key]; old != nil {
		z.bytes -= old.size
	}
	z.runs[key] = fresh
	z.bytes += fresh.size
	return fresh, nil
}

// compress joins items as they stand in a list and compresses them.
func (z *zipCache) compress(items [][]byte, frame *kindFrame, proto bool) (*run, error) {
	plain := z.pools.takeBuffer(listSize(items))
	defer z.pools.giveBuffer(plain)
	for i, item := range items {
		if proto {
			*plain = appendField(*plain, tag2, item)
			continue
		}
		if i > 0 {
			*plain = append(*plain, ',')
		}
		brace, rest := frame.listItem(item)
		*plain = append(append(*plain, brace...), rest...)
	}
	data, err := z.pools.deflate(*plain)
	if err != nil {
		return nil, err
	}
	return &run{data: data, crc: crc32.ChecksumIEEE(*plain), size: len(*plain)}, nil
}

// cutRuns says where the runs of a list end.
func cutRuns(entries []*store.Entry) []int {
	var ends []int
	start := 0
	for i, entry := range entries {
		if i+1-start >= maxRun || keyHash(entry.Key)%runLength == 0 {
			ends, start = append(ends, i+1), i+1
		}
	}
	if start < len(entries) {
		ends = append(ends, len(entries))
	}
	return ends
}

// keyHash is FNV-1a.
func keyHash(key string) uint32 {
	hash := uint32(2166136261)
	for i := range len(key) {
		hash = (hash ^ uint32(key[i])) * 16777619
	}
	return hash ^ hash>>15
}

// zippedList sends a list compressed, from kept runs.
func (s *Server) zippedList(q *query, out output, ep *endpoint, meta metav1.ListMeta, entries []*store.Entry, items [][]byte) int {
	proto := out.format == formatProto
	ends := cutRuns(entries)
	runs := make([]*run, 0, len(ends))
	start, size, packed := 0, 0, 0
	for _, end := range ends {
		r, err := s.zips.get(entries[start:end], items[start:end], &ep.kindFrame, proto)
		if err != nil {
			return s.crash(q, err)
		}
		runs, start, size, packed = append(runs, r), end, size+r.size, packed+len(r.data)
	}
	head, tail, err := ep.listEnds(meta, size, proto)
	if err != nil {
		return s.crash(q, err)
	}
	buffer := s.pools.takeBuffer(packed + len(head) + 16*len(runs) + 128)
	defer s.pools.giveBuffer(buffer)
	z := zipWriter{out: append(*buffer, gzipHead...)}
	z.stored(head)
	for i, r := range runs {
		if i > 0 && !proto {
			z.stored(s.shared.comma)
		}
		z.run(r)
	}
	z.stored(tail)
	*buffer = z.finish()
	header := q.w.Header()
	header["Content-Type"] = s.shared.json
	if proto {
		header["Content-Type"] = s.shared.proto
	}
	header.Set("Content-Encoding", "gzip")
	header.Add("Vary", "Accept-Encoding")
	defer limitWrites(q.w).after(s.answerLimit(len(*buffer)))()
	q.w.WriteHeader(http.StatusOK)
	_, _ = q.w.Write(*buffer) // the connection is gone: nobody to tell
	return http.StatusOK
}

// listEnds is what comes before and after the objects of a list, which are size bytes.
func (f *kindFrame) listEnds(meta metav1.ListMeta, size int, proto bool) (head, tail []byte, err error) {
	if !proto {
		framed, err := f.appendJSONList(nil, meta, nil)
		if err != nil {
			return nil, nil, err
		}
		return framed[:len(framed)-2], []byte("]}\n"), nil
	}
	raw, err := meta.Marshal()
	if err != nil {
		return nil, nil, err
	}
	head = append(head, f.listProtoHead...)
	head = appendTag(head, tag2, size+1+uvarintSize(len(raw))+len(raw))
	return appendField(head, tag1, raw), []byte(protoTail), nil
}

// gzipHead is the header of a gzip member: deflate, no name, no time, fastest, unknown system (RFC 1952).
const gzipHead = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"

// maxStored is the most bytes of a stored block (RFC 1951, 3.2.4).
const maxStored = 65535

// zipWriter puts a gzip member together.
type zipWriter struct {
	out  []byte
	crc  uint32
	size uint32
}

// stored adds bytes as they are.
func (z *zipWriter) stored(plain []byte) {
	z.crc = crc32.Update(z.crc, crc32.IEEETable, plain)
	z.size += uint32(len(plain))
	for len(plain) > 0 {
		part := plain[:min(len(plain), maxStored)]
		plain = plain[len(part):]
		z.out = append(z.out, 0)
		z.out = binary.LittleEndian.AppendUint16(z.out, uint16(len(part)))
		z.out = binary.LittleEndian.AppendUint16(z.out, ^uint16(len(part)))
		z.out = append(z.out, part...)
	}
}

// run adds a compressed run.
func (z *zipWriter) run(r *run) {
	z.crc = combineCRC(z.crc, r.crc, r.size)
	z.size += uint32(r.size)
	z.out = append(z.out, r.data...)
}

// finish ends the member and returns it: an empty last block, the checksum and the size.
func (z *zipWriter) finish() []byte {
	z.out = append(z.out, 1, 0, 0, 0xff, 0xff)
	z.out = binary.LittleEndian.AppendUint32(z.out, z.crc)
	return binary.LittleEndian.AppendUint32(z.out, z.size)
}

// combineCRC is the checksum of a followed by b, of size bytes, from the checksums of both: the first is shifted by
// multiplying it with x^(8*size) modulo the polynomial. Bit 31 is the coefficient of x^0.
func combineCRC(a, b uint32, size int) uint32 {
	power, square := uint32(1)<<31, uint32(1)<<23 // x^0, x^8
	for ; size > 0; size >>= 1 {
		if size&1 == 1 {
			power = multiplyCRC(square, power)
		}
		square = multiplyCRC(square, square)
	}
	return multiplyCRC(power, a) ^ b
}

// multiplyCRC multiplies two polynomials modulo that of CRC-32.
func multiplyCRC(a, b uint32) uint32 {
	product := uint32(0)
	for bit := uint32(1) << 31; bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		carry := b & 1
		b >>= 1
		if carry == 1 {
			b ^= crc32.IEEE
		}
	}
	return product
}
