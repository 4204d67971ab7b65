package transfer

import (
	"container/list"
	"crypto/sha256"
	"sync"

	atelier "github.com/atelier-edge/atelier"
)

// blockCache keeps chunks that were read lately, so that peers which pull the same
// content at about the same time share the reading. Chunks are verified when they are
// read: no byte of a damaged one is sent. It is bounded in bytes, beyond which the
// chunk that was used least recently goes; memory of chunks that nobody copies from
// any more is used again.
type blockCache struct {
	most int64

	mu     sync.Mutex
	blocks map[blockKey]*list.Element // of *block
	order  list.List                  // the latest used first
	bytes  int64                      // of all blocks in order
	free   [][]byte                   // for chunks to come
}

type blockKey struct {
	digest atelier.Digest // of what comes: content, or a difference
	start  int64
}

// block is one chunk.
type block struct {
	key   blockKey
	ready chan struct{} // closed when bytes or err are there
	bytes []byte
	err   error
	users int  // that copy from it, or wait for it
	gone  bool // from the cache
}

// mostFree is how many pieces of memory are kept for chunks to come.
const mostFree = 4

func newBlockCache(most int64) *blockCache {
	return &blockCache{most: most, blocks: map[blockKey]*list.Element{}}
}

// holds reports whether chunks of that length are worth keeping here.
func (c *blockCache) holds(length int64) bool { return length <= c.most/8 }

// append appends n bytes at offset off of a chunk of d to p; the chunk is read from
// blob where it is not here.
func (c *blockCache) append(p []byte, n int, d atelier.Digest, blob Blob, k chunk, off int64) ([]byte, error) {
	b, mine := c.take(blockKey{d, k.Start}, k.Len())
	if mine {
		b.err = readFull(blob, b.bytes, k.Start)
		if b.err == nil && sha256.Sum256(b.bytes) != k.sum {
			b.err = atelier.Errorf(atelier.Corrupt, "the sender's copy of %s is damaged at bytes %d to %d", d, k.Start, k.End)
		}
		close(b.ready)
	}
	<-b.ready
	err := b.err
	if err == nil {
		p = append(p, b.bytes[off:off+int64(n)]...)
	}
	c.give(b)
	return p, err
}

// take returns the block of a key, for one more user. mine says that the caller is to
// read it.
func (c *blockCache) take(key blockKey, length int64) (b *block, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.blocks[key]; ok {
		c.order.MoveToFront(e)
		b := e.Value.(*block)
		b.users++
		return b, false
	}
	for c.bytes+length > c.most && c.order.Len() > 0 {
		c.remove(c.order.Back())
	}
	b = &block{key: key, ready: make(chan struct{}), bytes: c.memory(length), users: 1}
	c.blocks[key] = c.order.PushFront(b)
	c.bytes += length
	return b, true
}

// give ends a use. A chunk that could not be read is not kept.
func (c *blockCache) give(b *block) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.users--; b.err != nil && !b.gone {
		c.remove(c.blocks[b.key])
	}
	c.reuse(b)
}

func (c *blockCache) remove(e *list.Element) {
	b := e.Value.(*block)
	c.order.Remove(e)
	delete(c.blocks, b.key)
	c.bytes -= int64(len(b.bytes))
	b.gone = true
	c.reuse(b)
}

// reuse keeps the memory of a block that nobody can reach any more.
func (c *blockCache) reuse(b *block) {
	if b.gone && b.users == 0 && b.bytes != nil {
		if len(c.free) < mostFree {
			c.free = append(c.free, b.bytes)
		}
		b.bytes = nil
	}
}

// memory returns length bytes, what they hold is of no meaning.
func (c *blockCache) memory(length int64) []byte {
	for i := len(c.free) - 1; i >= 0; i-- {
		if b := c.free[i]; int64(cap(b)) >= length {
			c.free = append(c.free[:i], c.free[i+1:]...)
			return b[:length]
		}
	}
	return make([]byte, length)
}
