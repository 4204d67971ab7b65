package delta

import (
	"cmp"
	"context"
	"crypto/sha256"
	"slices"

	"github.com/atelier-edge/atelier/internal/content/chunk"
)

// piece is a range of the target of which it is known what it may be compared with,
// but not yet how it is coded best.
type piece struct {
	at, length int64
	copied     bool    // it is what lies at aligned[0]
	kind       string  // the type of its elements; "" where it is not known
	aligned    []place // ranges of the same length that may hold older numbers
	windows    []place // ranges that may hold older text
}

// The bounds on what a plan is made of.
const (
	minTensor = 256 // bytes; smaller ones are coded with the text around them
	minCopy   = 256 // bytes; shorter ones are coded as text
	maxPiece  = 2 << 20
	margin    = 16 << 10
	maxTried  = 4  // ranges of bases for one piece
	farthest  = 64 // anchors that are looked through for a neighbour
)

// anchor says that a range of the target corresponds to one of a base.
type anchor struct {
	at, length int64
	from       place
}

// plan divides the target into pieces, in order and without gaps.
func plan(ctx context.Context, target File, bases []File) ([]piece, error) {
	tensors := usable(target)
	olds := make([][]Tensor, len(bases))
	for i, b := range bases {
		olds[i] = usable(b)
	}
	copies, err := copies(ctx, target, bases, tensors, olds)
	if err != nil {
		return nil, err
	}
	p := planner{target: target, bases: bases, copies: copies}
	p.match(tensors, olds)
	at := int64(0)
	for _, t := range tensors {
		p.stretch(at, t.Offset, nil)
		p.stretch(t.Offset, t.Offset+t.Length, &t)
		at = t.Offset + t.Length
	}
	p.stretch(at, target.Size, nil)
	return p.pieces, nil
}

// usable returns the tensors of a layout that lie in the file, do not overlap and
// are large enough to be worth it, in order.
func usable(f File) (out []Tensor) {
	sorted := slices.SortedStableFunc(slices.Values(f.Layout), func(a, b Tensor) int { return cmp.Compare(a.Offset, b.Offset) })
	at := int64(0)
	for _, t := range sorted {
		if t.Offset >= at && t.Length >= minTensor && t.Length <= f.Size && t.Offset <= f.Size-t.Length {
			out = append(out, t)
			at = t.Offset + t.Length
		}
	}
	return out
}

// copies finds what the target has in common with the bases, wherever it lies.
func copies(ctx context.Context, target File, bases []File, tensors []Tensor, olds [][]Tensor) ([]anchor, error) {
	type spot struct{ base, n int }
	known := map[[sha256.Size]byte]spot{}
	chunks := make([][]chunk.Chunk, len(bases))
	sizes := chunk.SizesFor(target.Size)
	for i, b := range bases {
		var err error
		if chunks[i], err = chunk.Cut(ctx, b.Content, b.Size, ends(olds[i]), sizes); err != nil {
			return nil, err
		}
		for n, c := range chunks[i] {
			if _, twice := known[c.Sum]; !twice {
				known[c.Sum] = spot{i, n}
			}
		}
	}
	if len(known) == 0 {
		return nil, nil
	}
	own, err := chunk.Cut(ctx, target.Content, target.Size, ends(tensors), sizes)
	if err != nil {
		return nil, err
	}
	var out []anchor
	next := spot{base: -1} // the chunk behind the one copied last
	for _, c := range own {
		s, found := known[c.Sum]
		if next.base >= 0 && next.n < len(chunks[next.base]) && chunks[next.base][next.n].Sum == c.Sum {
			s, found = next, true
		}
		next = spot{base: -1}
		if !found {
			continue
		}
		next = spot{s.base, s.n + 1}
		from := place{s.base, chunks[s.base][s.n].Offset, c.Length}
		if n := len(out) - 1; n >= 0 && out[n].at+out[n].length == c.Offset && out[n].from.base == from.base && out[n].from.offset+out[n].from.length == from.offset {
			out[n].length += c.Length
			out[n].from.length += c.Length
			continue
		}
		out = append(out, anchor{c.Offset, c.Length, from})
	}
	return out, grow(target, bases, out)
}

// ends returns where tensors start and end, as boundaries of chunks.
func ends(tensors []Tensor) (out []int64) {
	for _, t := range tensors {
		out = append(out, t.Offset, t.Offset+t.Length)
	}
	return out
}

// grow makes copies longer by the equal bytes around them, which the borders of
// chunks do not show.
func grow(target File, bases []File, copies []anchor) error {
	var a, b [4096]byte
	at := int64(0)
	for i := range copies {
		c := &copies[i]
		end := target.Size
		if i+1 < len(copies) {
			end = copies[i+1].at
		}
		base := bases[c.from.base]
		for {
			n := min(c.at-at, c.from.offset, int64(len(a)))
			if err := readAt(target.Content, a[:n], c.at-n); err != nil {
				return err
			}
			if err := readAt(base.Content, b[:n], c.from.offset-n); err != nil {
				return err
			}
			same := int64(0)
			for same < n && a[n-1-same] == b[n-1-same] {
				same++
			}
			c.at, c.from.offset = c.at-same, c.from.offset-same
			c.length, c.from.length = c.length+same, c.from.length+same
			if same < int64(len(a)) {
				break
			}
		}
		for {
			n := min(end-c.at-c.length, base.Size-c.from.offset-c.from.length, int64(len(a)))
			if err := readAt(target.Content, a[:n], c.at+c.length); err != nil {
				return err
			}
			if err := readAt(base.Content, b[:n], c.from.offset+c.from.length); err != nil {
				return err
			}
			same := int64(0)
			for same < n && a[same] == b[same] {
				same++
			}
			c.length, c.from.length = c.length+same, c.from.length+same
			if same < int64(len(a)) {
				break
			}
		}
		at = c.at + c.length
	}
	return nil
}

// planner makes the pieces of one target.
type planner struct {
	target  File
	bases   []File
	copies  []anchor
	anchors []anchor          // copies and tensors that correspond, in order
	old     map[int64][]place // by the offset of a tensor, those that it corresponds to
	pieces  []piece
}

// match finds the tensors of the bases that correspond to those of the target: of
// the same name, or else those that come in the same order among all of their type
// and length that no name matched.
func (p *planner) match(tensors []Tensor, olds [][]Tensor) {
	type shape struct {
		kind   string
		length int64
	}
	p.old = map[int64][]place{}
	p.anchors = slices.Clone(p.copies)
	for i, old := range olds {
		named := map[string][]Tensor{}
		for _, t := range old {
			named[t.Name] = append(named[t.Name], t)
		}
		matched := map[int64]bool{}
		var rest []Tensor
		note := func(t, o Tensor) {
			from := place{i, o.Offset, t.Length}
			p.old[t.Offset] = append(p.old[t.Offset], from)
			p.anchors = append(p.anchors, anchor{t.Offset, t.Length, from})
		}
		for _, t := range tensors {
			same := named[t.Name]
			if len(same) == 0 || same[0].Length != t.Length || same[0].Type != t.Type {
				rest = append(rest, t)
				continue
			}
			named[t.Name] = same[1:]
			matched[same[0].Offset] = true
			note(t, same[0])
		}
		free := map[shape][]Tensor{}
		for _, o := range old {
			if !matched[o.Offset] {
				s := shape{o.Type, o.Length}
				free[s] = append(free[s], o)
			}
		}
		for _, t := range rest {
			s := shape{t.Type, t.Length}
			if f := free[s]; len(f) > 0 {
				free[s] = f[1:]
				note(t, f[0])
			}
		}
	}
	slices.SortStableFunc(p.anchors, func(a, b anchor) int { return cmp.Compare(a.at, b.at) })
}

// stretch adds the pieces of the target from at up to end: a tensor, or what lies
// between two.
func (p *planner) stretch(at, end int64, t *Tensor) {
	width := int64(1)
	if t != nil {
		width = widthOf(t.Type)
	}
	for _, c := range p.copies[p.firstCopy(at):] {
		if c.at >= end {
			break
		}
		// Copies end between elements.
		from := max(c.at, at)
		from += (width - (from-at)%width) % width
		to := min(c.at+c.length, end)
		if to < end {
			to -= (to - at) % width
		}
		if to-from < minCopy {
			continue
		}
		p.coded(at, from, t)
		p.add(piece{at: from, length: to - from, copied: true, aligned: []place{{c.from.base, c.from.offset + from - c.at, to - from}}})
		at = to
	}
	p.coded(at, end, t)
}

// firstCopy returns the first copy that ends behind at.
func (p *planner) firstCopy(at int64) int {
	n, _ := slices.BinarySearchFunc(p.copies, at, func(c anchor, at int64) int { return cmp.Compare(c.at+c.length, at+1) })
	return n
}

// add appends a piece, or makes the last one longer by it where both are copied from
// one range.
func (p *planner) add(next piece) {
	if n := len(p.pieces) - 1; n >= 0 && next.copied && p.pieces[n].copied {
		last := &p.pieces[n]
		if a, b := &last.aligned[0], next.aligned[0]; a.base == b.base && a.offset+a.length == b.offset {
			a.length += b.length
			last.length += next.length
			return
		}
	}
	p.pieces = append(p.pieces, next)
}

// coded adds what is not copied.
func (p *planner) coded(at, end int64, t *Tensor) {
	for at < end {
		n := min(end-at, maxPiece)
		next := piece{at: at, length: n}
		if t != nil {
			next.kind = t.Type
			for _, from := range p.old[t.Offset] {
				next.aligned = append(next.aligned, place{from.base, from.offset + at - t.Offset, n})
			}
		} else {
			n = min(n, maxGap)
			next.length = n
			next.windows = p.windows(at, n)
			if n >= minUnknown {
				next.aligned = p.aligned(at, n)
			}
		}
		p.add(next)
		at += n
	}
}

// windows returns ranges of bases that may hold what the target holds from at on,
// in some other form: what lies between the same neighbours there.
func (p *planner) windows(at, length int64) (out []place) {
	for base, f := range p.bases {
		before, behind := p.neighbours(at, length, base)
		from, to := int64(0), f.Size
		switch {
		case before != nil && behind != nil:
			from, to = before.from.offset+before.length, behind.from.offset
			from += at - before.at - before.length
			to -= behind.at - at - length
			if to < from || to-from > maxWindow {
				to = from + length + margin
			}
		case before != nil:
			from = before.from.offset + at - before.at
			to = from + length + margin
		case behind != nil:
			to = behind.from.offset - (behind.at - at - length)
			from = to - length - margin
		case f.Size > maxWindow:
			from, to = at-margin, at+length+margin
		}
		from, to = max(from, 0), min(to, f.Size)
		if from < to {
			out = append(out, place{base, from, min(to-from, maxWindow)})
		}
	}
	return out[:min(len(out), maxTried)]
}

// aligned returns ranges of bases that may hold older numbers of those that the
// target holds from at on: as far from a neighbour, from the start or from the end.
func (p *planner) aligned(at, length int64) (out []place) {
	for base, f := range p.bases {
		before, behind := p.neighbours(at, length, base)
		offsets := []int64{at, at + f.Size - p.target.Size}
		if before != nil {
			offsets = append(offsets, before.from.offset+at-before.at)
		}
		if behind != nil {
			offsets = append(offsets, behind.from.offset+at-behind.at)
		}
		slices.Sort(offsets)
		for _, o := range slices.Compact(offsets) {
			if o >= 0 && length <= f.Size && o <= f.Size-length {
				out = append(out, place{base, o, length})
			}
		}
	}
	return out[:min(len(out), maxTried)]
}

// neighbours returns the last anchor before a range and the first behind it that lead
// to a base.
func (p *planner) neighbours(at, length int64, base int) (before, behind *anchor) {
	n, _ := slices.BinarySearchFunc(p.anchors, at, func(a anchor, at int64) int { return cmp.Compare(a.at, at) })
	for i := n - 1; i >= max(n-farthest, 0); i-- {
		if a := &p.anchors[i]; a.from.base == base && a.at+a.length <= at {
			before = a
			break
		}
	}
	for i := n; i < min(n+farthest, len(p.anchors)); i++ {
		if a := &p.anchors[i]; a.from.base == base && a.at >= at+length {
			behind = a
			break
		}
	}
	return before, behind
}
