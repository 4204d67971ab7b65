package delta

// coder is a binary arithmetic coder (the carry-less one of Matt Mahoney's lpaq,
// with 64 bits where that has 32). Both directions run the same code, so that what
// is modelled on top of it exists once and cannot differ between them.
type coder struct {
	x1, x2 uint64 // the interval
	decode bool
	x      uint64 // decoding: what was read, within the interval
	b      []byte // the code
	at     int    // decoding: how much of b was read; beyond its end, zeros are read
	raw    bitRow // bits that no model predicts, kept apart because that is faster
}

// reset begins to encode, or to decode what close gave.
func (c *coder) reset(decode bool, code, raw []byte) {
	*c = coder{x2: ^uint64(0), decode: decode, b: code, raw: bitRow{b: raw}}
	if decode {
		for range 8 {
			c.x = c.x<<8 | uint64(c.next())
		}
	}
}

func (c *coder) next() byte {
	c.at++
	if c.at <= len(c.b) {
		return c.b[c.at-1]
	}
	return 0
}

// bit codes one bit: it returns the bit given or, decoding, the one that was. p is
// the probability of a 1, in units of 2^-16, neither 0 nor 1.
func (c *coder) bit(bit int, p uint32) int {
	// p is below 2^16, so that mid stays below x2; where the interval is narrow it
	// is x1, and still both bits can be told apart.
	mid := c.x1 + (c.x2-c.x1)>>16*uint64(p)
	if c.decode {
		bit = 0
		if c.x <= mid {
			bit = 1
		}
	}
	if bit != 0 {
		c.x2 = mid
	} else {
		c.x1 = mid + 1
	}
	for (c.x1^c.x2)>>56 == 0 {
		if c.decode {
			c.x = c.x<<8 | uint64(c.next())
		} else {
			c.b = append(c.b, byte(c.x2>>56))
		}
		c.x1 <<= 8
		c.x2 = c.x2<<8 | 0xff
	}
	return bit
}

// close returns the code, as short as can be: zeros are read behind its end.
func (c *coder) close() (code, raw []byte) {
	for keep := 1; keep <= 8; keep++ {
		rest := uint(64 - 8*keep)
		v := c.x1 >> rest << rest
		if v < c.x1 {
			if v += 1 << rest; v < c.x1 { // it wrapped around
				continue
			}
		}
		if v <= c.x2 {
			for ; keep > 0; keep-- {
				c.b = append(c.b, byte(v>>56))
				v <<= 8
			}
			break
		}
	}
	for len(c.b) > 0 && c.b[len(c.b)-1] == 0 {
		c.b = c.b[:len(c.b)-1]
	}
	return c.b, c.raw.close()
}

// bitRow is a row of bits, read or written.
type bitRow struct {
	b    []byte
	at   int
	held uint64
	n    uint // bits in held
}

// put writes the low n bits of v; n is at most 32.
func (s *bitRow) put(v uint64, n uint) {
	s.held |= v & (1<<n - 1) << s.n
	for s.n += n; s.n >= 8; s.n -= 8 {
		s.b = append(s.b, byte(s.held))
		s.held >>= 8
	}
}

// get reads n bits, at most 32; zeros behind the end.
func (s *bitRow) get(n uint) uint64 {
	for s.n < n {
		if s.at < len(s.b) {
			s.held |= uint64(s.b[s.at]) << s.n
		}
		s.at++
		s.n += 8
	}
	v := s.held & (1<<n - 1)
	s.held >>= n
	s.n -= n
	return v
}

func (s *bitRow) close() []byte {
	if s.n > 0 {
		s.b = append(s.b, byte(s.held))
		s.n = 0
	}
	return s.b
}

// plain codes the low n bits of v as they are.
func (c *coder) plain(v uint64, n uint) uint64 {
	var out uint64
	for done := uint(0); done < n; {
		step := min(n-done, 32)
		if c.decode {
			out |= c.raw.get(step) << done
		} else {
			c.raw.put(v>>done, step)
		}
		done += step
	}
	if !c.decode {
		return v
	}
	return out
}

// octets codes bytes as they are.
func (c *coder) octets(b []byte) {
	for len(b) >= 4 {
		v := c.plain(uint64(b[0])|uint64(b[1])<<8|uint64(b[2])<<16|uint64(b[3])<<24, 32)
		b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
		b = b[4:]
	}
	for i := range b {
		b[i] = byte(c.plain(uint64(b[i]), 8))
	}
}

// spent reports whether more was decoded than there was.
func (c *coder) spent() bool { return c.at > len(c.b)+8 || c.raw.at > len(c.raw.b) }
