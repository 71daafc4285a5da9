package managedfields

import (
	"hash/maphash"
	"sync"
)

// cache is a map that forgets what was not used for longest. Keys are bytes; looking one up
// does not allocate.
type cache[V any] struct {
	max int // bytes, counted as put says

	mu    sync.Mutex // guards the fields below
	used  int
	items map[string]*item[V]
	root  item[V] // ring of all items, the most recent after root
}

type item[V any] struct {
	key        string
	value      V
	size       int
	prev, next *item[V]
}

func newCache[V any](maxBytes int) *cache[V] {
	c := &cache[V]{max: maxBytes, items: make(map[string]*item[V])}
	c.root.prev, c.root.next = &c.root, &c.root
	return c
}

func (c *cache[V]) get(key []byte) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it, ok := c.items[string(key)]
	if !ok {
		var none V
		return none, false
	}
	if c.root.next != it {
		c.unlinkLocked(it)
		c.linkLocked(it)
	}
	return it.value, true
}

// put keeps value and returns what is kept under key: another caller may have been first.
// size is what the value takes beside the key.
func (c *cache[V]) put(key []byte, value V, size int) V {
	size += len(key) + itemBytes
	c.mu.Lock()
	defer c.mu.Unlock()
	if it, ok := c.items[string(key)]; ok {
		return it.value
	}
	if size > c.max/4 {
		return value // one huge entry must not push out all others
	}
	it := &item[V]{key: string(key), value: value, size: size}
	c.items[it.key] = it
	c.linkLocked(it)
	c.used += size
	for c.used > c.max {
		oldest := c.root.prev
		c.unlinkLocked(oldest)
		delete(c.items, oldest.key)
		c.used -= oldest.size
	}
	return value
}

// itemBytes is about what an item and its place in the map take.
const itemBytes = 128

func (c *cache[V]) linkLocked(it *item[V]) {
	it.prev, it.next = &c.root, c.root.next
	it.prev.next, it.next.prev = it, it
}

func (c *cache[V]) unlinkLocked(it *item[V]) {
	it.prev.next, it.next.prev = it.next, it.prev
}

// doorkeeper remembers about which keys were seen lately, so that what happens once, such as
// a pod getting its address, is not kept.
type doorkeeper struct {
	seed maphash.Seed

	mu   sync.Mutex // guards seen
	seen [4096]uint32
}

// again reports whether key was probably seen before.
func (d *doorkeeper) again(key []byte) bool {
	hash := maphash.Bytes(d.seed, key)
	slot, mark := hash%uint64(len(d.seen)), uint32(hash>>32)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen[slot] == mark {
		return true
	}
	d.seen[slot] = mark
	return false
}
