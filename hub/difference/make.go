package difference

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/delta"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/onnx"
	"github.com/atelier-edge/atelier/internal/safetensors"
)

// job is a difference that is to be made.
type job struct {
	pair   pair
	ready  chan struct{} // closed when it is made or given up
	number uint64        // of when it was asked for
	wanted bool          // somebody waits for it

	began    time.Time       // when it began to be made; zero while it waits for its turn
	estimate *delta.Estimate // nil before there is one
	due      time.Time       // when it is made, where there is an estimate
}

// Expect returns what is expected of the difference of target to base; false where it
// is not being made now, even if it will be.
func (c *Cache) Expect(target, base atelier.Digest) (transfer.Expectation, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[pair{target, base}]
	if j == nil || j.began.IsZero() {
		return transfer.Expectation{}, false
	}
	now := c.opts.Now()
	e := transfer.Expectation{For: now.Sub(j.began)}
	if j.estimate != nil {
		e.Known, e.Size, e.Decoding, e.Rest = true, j.estimate.Size, decoding(j.estimate.Methods), j.due.Sub(now)
	}
	return e, true
}

// estimated notes what is expected of j. A difference is decoded again to prove it,
// which takes at most as long as coding it.
func (c *Cache) estimated(j *job, e delta.Estimate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j.estimate, j.due = &e, c.opts.Now().Add(2*e.Coding)
}

const (
	maxJobs = 256
	// smallest is the size in bytes below which content is sent as it is.
	smallest = 4 << 10
	// spare is how many bytes of the disk differences leave free.
	spare = 256 << 20
)

// ask returns the channel of a job, a new one where there is none; nil where there
// are too many. c.mu is held.
func (c *Cache) ask(p pair, wanted bool) <-chan struct{} {
	j := c.jobs[p]
	if j == nil {
		if len(c.jobs) >= maxJobs {
			return nil
		}
		c.asked++
		j = &job{pair: p, ready: make(chan struct{}), number: c.asked}
		c.jobs[p] = j
	}
	j.wanted = j.wanted || wanted
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return j.ready
}

// next returns the job that is next, nil where there is none: those that somebody
// waits for come first, then those that have a base, which save most, then the
// oldest. c.mu is held.
func (c *Cache) next() *job {
	rank := func(j *job) (r int) {
		if !j.wanted {
			r += 2
		}
		if j.pair.Base == "" {
			r++
		}
		return r
	}
	var next *job
	for _, j := range c.jobs {
		if next == nil || rank(j) < rank(next) || rank(j) == rank(next) && j.number < next.number {
			next = j
		}
	}
	return next
}

// build makes the difference of a pair; one that is not worth it has no digest.
func (c *Cache) build(ctx context.Context, j *job) (_ *entry, err error) {
	p := j.pair
	target, err := c.open(p.Target)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, target.close()) }()
	var bases []delta.File
	if p.Base != "" {
		base, err := c.open(p.Base)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, base.close()) }()
		bases = append(bases, base.file)
	}
	size := target.file.Size
	if size < smallest {
		return &entry{pair: p}, nil
	}
	most := min(size-size/20, c.opts.Limit)
	free, err := c.store.Free()
	if err != nil {
		return nil, err
	}
	if free < most+spare {
		return nil, atelier.Errorf(atelier.NoSpace, "a difference may take %s, and %s are free on the hub's disk, of which %s stay free",
			atelier.FormatBytes(most), atelier.FormatBytes(free), atelier.FormatBytes(spare)).WithRemedy("Free disk space there.")
	}
	w, err := c.store.Writer("")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	made, err := c.encode(ctx, w, target.file, bases, delta.Options{
		Workers: 1, MaxSize: most, Expect: func(e delta.Estimate) { c.estimated(j, e) },
	})
	if atelier.CodeOf(err) == atelier.TooLarge {
		return &entry{pair: p}, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := w.Commit("", -1)
	if err != nil {
		return nil, err
	}
	if err := c.prove(ctx, info.Digest, target.file, bases); err != nil {
		return nil, errors.Join(err, c.store.Delete(info.Digest))
	}
	return &entry{pair: p, Difference: info.Digest, Size: info.Size, Decoding: decoding(made.Methods)}, nil
}

// rates are how many bytes of a target a small device decodes in a second, by method.
var rates = map[string]float64{"copy": 200e6, "raw": 200e6, "FP16": 10e6, "BF16": 10e6, "FP32": 10e6, "FP64": 10e6}

const rateOfOthers = 1e6

// decoding estimates how long a device is at decoding a difference that brings so many
// bytes by each method.
func decoding(methods map[string]int64) time.Duration {
	var seconds float64
	for method, bytes := range methods {
		rate := rates[method]
		if rate == 0 {
			rate = rateOfOthers
		}
		seconds += float64(bytes) / rate
	}
	return time.Duration(seconds * float64(time.Second))
}

// prove checks that a difference brings its target back. That the hub's copy of a
// base or target is damaged shows here, too.
func (c *Cache) prove(ctx context.Context, d atelier.Digest, target delta.File, bases []delta.File) (err error) {
	blob, err := c.store.Open(d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	h := sha256.New()
	err = c.decode(ctx, h, io.NewSectionReader(blob, 0, blob.Size()), target.Size, func(base atelier.Digest) (io.ReaderAt, int64, error) {
		for _, b := range bases {
			if b.Digest == base {
				return io.NewSectionReader(b.Content, 0, b.Size), b.Size, nil
			}
		}
		return nil, 0, atelier.Errorf(atelier.Internal, "the difference needs %s, of which it was not made", base)
	})
	if err != nil {
		return err
	}
	if got := atelier.DigestFrom(h); got != target.Digest {
		return atelier.Errorf(atelier.Corrupt, "the difference to %s brings %s", target.Digest, got).
			WithRemedy("Check the hub's disk, and register what it damaged again.")
	}
	return nil
}

// source is a content with what is known of its inside.
type source struct {
	blob *content.Blob
	file delta.File
}

func (c *Cache) open(d atelier.Digest) (source, error) {
	blob, err := c.opts.Contents.Open(d)
	if err != nil {
		return source{}, err
	}
	return source{blob, delta.File{Digest: d, Size: blob.Size(), Content: blob, Layout: layout(blob)}}, nil
}

func (s source) close() error { return s.blob.Close() }

// layout returns where the tensors lie in a file that is a model, nil in others. The
// content says what it is; names do not.
func layout(b *content.Blob) []delta.Tensor {
	var all []delta.Tensor
	if tensors, err := safetensors.Layout(b, b.Size()); err == nil {
		for _, t := range tensors {
			all = append(all, delta.Tensor(t))
		}
		return all
	}
	if tensors, err := onnx.Layout(b, b.Size()); err == nil {
		for _, t := range tensors {
			if t.File != "" {
				continue
			}
			all = append(all, delta.Tensor{Name: t.Name, Type: t.Type, Offset: t.Offset, Length: t.Length})
		}
	}
	return all
}
