package delta

import (
	"cmp"
	"math/bits"
	"slices"
	"time"
)

const (
	// sample is how many bytes of a piece the methods are tried on.
	sample = 32 << 10
	// A gap between tensors is taken in pieces of at most maxGap bytes; in those of
	// minUnknown and more, numbers are looked for.
	maxGap     = 1 << 20
	minUnknown = 16 << 10
	// Where there are more than a few candidates, a shorter sample drops most.
	few = 4
)

// tableFor returns how large a table n octets are worth, in bits.
func tableFor(n int64) uint {
	return uint(min(max(bits.Len64(uint64(n))+3, minTable), maxTable))
}

// widthOf returns how many bytes an element has; 1 where that is not known.
func widthOf(kind string) int64 {
	switch kind {
	case "FP16", "BF16", "INT16", "UINT16":
		return 2
	case "FP32", "INT32", "UINT32":
		return 4
	case "FP64", "INT64", "UINT64":
		return 8
	}
	return 1
}

// coding is a method with its detail.
type coding struct {
	method method
	detail uint
}

// codings returns what elements of a type may be coded by.
func codings(kind string) []coding {
	switch kind {
	case "FP16":
		return []coding{{methodFP16, 0}}
	case "BF16":
		return []coding{{methodBF16, 0}}
	case "FP32":
		return []coding{{methodFP32, 0}}
	case "FP64":
		return []coding{{methodFP64, 0}}
	case "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64":
		return []coding{{methodGrid, uint(widthOf(kind))}, {methodText, 0}}
	case "":
		return []coding{{methodText, 0}, {methodGrid, 1}, {methodGrid, 4}, {methodFP32, 0}, {methodFP16, 0}, {methodBF16, 0}}
	}
	return []coding{{methodGrid, 1}, {methodText, 0}}
}

// candidates returns the ways in which a piece may be coded.
func (p piece) candidates() (out []part) {
	add := func(c coding, from place) {
		out = append(out, part{method: c.method, detail: c.detail, at: p.at, length: p.length, from: from})
	}
	for _, c := range codings(p.kind) {
		froms := p.aligned
		if c.method == methodText {
			froms = p.windows
			if len(froms) == 0 {
				froms = p.aligned
			}
		} else if p.kind == "" && p.length < minUnknown {
			continue
		}
		for _, from := range froms {
			add(c, from)
		}
		add(c, nowhere)
	}
	return out
}

// choose returns the piece as the part that comes out smallest on a sample of so many
// bytes, with what became of the sample. Nothing is tried for a copy.
func (w *worker) choose(p piece, sample int64) (tried, error) {
	if p.copied {
		return tried{part: part{method: methodCopy, at: p.at, length: p.length, from: p.aligned[0]}}, nil
	}
	raw := part{method: methodRaw, at: p.at, length: p.length, from: nowhere}
	candidates := slices.DeleteFunc(p.candidates(), func(c part) bool {
		width := kinds[c.method].width
		return width > 0 && p.length%int64(width) != 0
	})
	if len(candidates) > few {
		best, err := w.smallest(candidates, sample/4, few)
		if err != nil {
			return tried{}, err
		}
		candidates = candidates[:0]
		for _, t := range best {
			candidates = append(candidates, t.part)
		}
	}
	best, err := w.smallest(append(candidates, raw), sample, 1)
	if err != nil {
		return tried{}, err
	}
	return best[0], nil
}

// tried is a part of which a sample was coded.
type tried struct {
	part
	sample, size int64         // bytes of the sample, as it is and coded
	took         time.Duration // to code it
}

// smallest returns the n of the candidates that come out smallest on a sample from
// the middle.
func (w *worker) smallest(candidates []part, sample int64, n int) ([]tried, error) {
	all := make([]tried, len(candidates))
	for i, c := range candidates {
		if kinds[c.method].width > 0 {
			var err error
			if c.detail, err = w.zeros(c); err != nil {
				return nil, err
			}
		}
		try := c
		try.length = min(c.length, sample)
		skip := (c.length - try.length) / 2 &^ 63
		try.at += skip
		if try.from.base >= 0 {
			try.from = try.from.cut(skip, try.length, try.method == methodText)
		}
		all[i] = tried{part: c, sample: try.length, size: try.length}
		if c.method == methodRaw {
			continue
		}
		began := time.Now()
		s, err := w.code([]part{try}, tableFor(try.length))
		if err != nil {
			return nil, err
		}
		all[i].size, all[i].took = int64(len(s.code)+len(s.raw)), time.Since(began)
	}
	slices.SortStableFunc(all, func(a, b tried) int { return cmp.Compare(a.size, b.size) })
	return all[:min(n, len(all))], nil
}

// cut returns the part of a range that a sample of n bytes, skip behind its start,
// is compared with; text is compared with what lies around it too.
func (p place) cut(skip, n int64, text bool) place {
	if text {
		from := min(max(skip-n, 0), p.length)
		return place{p.base, p.offset + from, min(p.length-from, 3*n)}
	}
	return place{p.base, p.offset + skip, n}
}

// zeros returns how many of the lowest bits are zero in all numbers of a part, as
// they are in numbers that came from a narrower type.
func (w *worker) zeros(p part) (uint, error) {
	k := kinds[p.method]
	var block [8 << 10]byte
	all := uint64(0)
	for done := int64(0); done < p.length && all&1 == 0; {
		b := block[:min(p.length-done, int64(len(block)))]
		if err := readAt(w.target.Content, b, p.at+done); err != nil {
			return 0, err
		}
		for i := 0; i < len(b); i += k.width {
			all |= load(b[i:], k.width)
		}
		done += int64(len(b))
	}
	if all == 0 {
		return 0, nil
	}
	return min(uint(bits.TrailingZeros64(all)), k.mantissa()-1), nil
}
