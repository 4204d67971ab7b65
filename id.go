package atelier

import (
	"crypto/rand"
	"encoding/binary"
	"sync"
	"time"
)

// idAlphabet is Crockford's base 32 in lower case, as the ULID specification
// (github.com/ulid/spec) takes it.
const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

// idLen is the length of an id in characters: 48 bits of time, 80 of chance.
const idLen = 26

var lastID struct {
	sync.Mutex
	bytes [16]byte
}

// NewID returns a fresh lower-case ULID. Ids made by one process sort in the
// order in which they were made, also within a millisecond and when the clock
// steps back.
func NewID() string { return newIDAt(time.Now()) }

func newIDAt(now time.Time) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16)
	if _, err := rand.Read(b[6:]); err != nil {
		panic(err) // crypto/rand never fails since Go 1.24; it ends the program itself
	}
	lastID.Lock()
	defer lastID.Unlock()
	if string(b[:6]) <= string(lastID.bytes[:6]) {
		b = lastID.bytes
		for i := 15; i >= 0; i-- { // the next id after the last
			b[i]++
			if b[i] != 0 {
				break
			}
		}
	}
	lastID.bytes = b
	return encodeID(b)
}

func encodeID(b [16]byte) string {
	var out [idLen]byte
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	for i := idLen - 1; i >= 0; i-- {
		out[i] = idAlphabet[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(out[:])
}

// IsID reports whether s has the form of an id: 26 characters of Crockford's
// base 32 in lower case. Names may not have this form, so that a path segment
// is either a name or an id and never both.
func IsID(s string) bool {
	if len(s) != idLen || s[0] > '7' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		digit := c >= '0' && c <= '9'
		letter := c >= 'a' && c <= 'z' && c != 'i' && c != 'l' && c != 'o' && c != 'u'
		if !digit && !letter {
			return false
		}
	}
	return true
}
