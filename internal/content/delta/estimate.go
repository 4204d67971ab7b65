package delta

import (
	"context"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

const (
	// spots is how many places of the target an estimate looks at, spread evenly over
	// what is not copied.
	spots = 12
	// spotSample is how many bytes the methods are tried on there.
	spotSample = sample / 4
	// clearly is by which part of the target an estimate is beyond a limit when that
	// is taken for certain: models learn more from all of it than from a sample.
	clearly = 30
)

// expect estimates what the difference will be and tells it. It returns TooLarge
// where that is clearly beyond the limit.
func (e *encoder) expect(ctx context.Context, pieces []piece, tell func(Estimate)) error {
	if tell == nil && e.limit == 0 {
		return nil
	}
	x, err := e.estimate(ctx, pieces)
	if err != nil {
		return err
	}
	if e.limit > 0 && x.Size > e.limit+e.target.Size/clearly {
		return atelier.Errorf(atelier.TooLarge, "the difference has more than %d bytes: about %d, by its samples", e.limit, x.Size)
	}
	if tell != nil {
		tell(x)
	}
	return nil
}

// estimate codes samples of the pieces, and takes each for as much of the target as
// there is of it for each spot.
func (e *encoder) estimate(ctx context.Context, pieces []piece) (Estimate, error) {
	x := Estimate{Size: e.result.Size, Methods: map[string]int64{}}
	coded := int64(0)
	for _, p := range pieces {
		x.Size += headSize
		if p.copied {
			x.Methods[methodNames[methodCopy]] += p.length
		} else {
			coded += p.length
		}
	}
	w := e.worker(ctx)
	every := max(coded/spots, 1)
	next, at := every/2, int64(0) // of what is coded: the next spot, where the next piece starts
	for _, p := range pieces {
		if p.copied {
			continue
		}
		at += p.length
		if at <= next {
			continue
		}
		// So much does this piece stand for: itself and the small ones around it, or
		// its part of what is alike.
		stands := int64(0)
		for ; next < at; next += every {
			stands += every
		}
		began := time.Now()
		t, err := w.choose(p, spotSample)
		if err != nil {
			return Estimate{}, err
		}
		parts := float64(stands) / float64(t.sample)
		x.Size += int64(parts * float64(t.size))
		x.Methods[methodNames[t.method]] += stands
		// Choosing tries samples that are larger, coding takes all of it.
		x.Coding += time.Duration(float64(stands) / float64(p.length) * float64(time.Since(began)) * min(sample, float64(p.length)) / float64(t.sample))
		x.Coding += time.Duration(parts * float64(t.took))
	}
	return x, nil
}
