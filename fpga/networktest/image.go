package networktest

import (
	"math/rand/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/reference"
)

// RandomImages returns a network with convolutions that fits the geometry; now and then it has a pool, an
// addition, an average, tables and a dense layer at the end.
func RandomImages(r *rand.Rand, g program.Geometry) *reference.Network {
	for {
		n := randomImages(r)
		if _, err := Place(g, n); atelier.CodeOf(err) != atelier.TooLarge {
			return n
		}
	}
}

func randomImages(r *rand.Rand) *reference.Network {
	n := &reference.Network{}
	in := reference.Image{Height: 3 + r.IntN(5), Width: 3 + r.IntN(5), Channels: 1 + r.IntN(3)}
	add := func(l reference.Layer, out reference.Image, from ...int) {
		n.Layers, n.From = append(n.Layers, l), append(n.From, from)
		in = out
	}
	for range 1 + r.IntN(2) {
		c := convolution(r, in, 1+r.IntN(9))
		rows, columns := c.Over(in)
		add(c, reference.Image{Height: rows, Width: columns, Channels: len(c.Weights)})
	}
	if r.IntN(2) == 0 { // a residual: a convolution that keeps the shape, and what came before it
		before := len(n.Layers)
		c := convolution(r, in, in.Channels)
		c.Window = reference.Window{Height: 3, Width: 3, StrideY: 1, StrideX: 1, Top: 1, Left: 1, Bottom: 1, Right: 1}
		if r.IntN(3) == 0 {
			c.Window = reference.Window{Height: 1, Width: 1, StrideY: 1, StrideX: 1}
		}
		fill(r, c)
		add(c, in)
		s := &reference.Sum{In: in, First: int8(r.IntN(256) - 128), Second: int8(r.IntN(256) - 128), Bias: int32(r.IntN(1<<12) - 1<<11),
			Requantisation: requantisation(r, 127*2)}
		add(s, in, before, before+1)
	}
	if in.Height > 1 && in.Width > 1 && r.IntN(2) == 0 {
		p := &reference.MaxPool{In: in, Window: reference.Window{Height: 1 + r.IntN(min(3, in.Height)), Width: 2 + r.IntN(min(2, in.Width-1)),
			StrideY: 1 + r.IntN(2), StrideX: 1 + r.IntN(2)}, Requantisation: reference.Identity}
		if r.IntN(2) == 0 {
			p.Table = table(r)
		}
		rows, columns := p.Over(in)
		add(p, reference.Image{Height: rows, Width: columns, Channels: in.Channels})
	}
	if r.IntN(2) == 0 {
		a := &reference.Average{In: in, Bias: int32(r.IntN(2000) - 1000), Requantisation: requantisation(r, in.Height*in.Width)}
		add(a, reference.Image{Height: 1, Width: 1, Channels: in.Channels})
	}
	if r.IntN(3) > 0 && in.Size() < 200 {
		d := dense(r, in.Size(), 1+r.IntN(12))
		if r.IntN(3) == 0 {
			d.Table = table(r)
		}
		add(d, reference.Image{Height: 1, Width: 1, Channels: len(d.Weights)})
	}
	return n
}

func convolution(r *rand.Rand, in reference.Image, channels int) *reference.Convolution {
	c := &reference.Convolution{In: in, Weights: make([][]int8, channels)}
	c.Window = reference.Window{Height: 1 + r.IntN(min(3, in.Height)), Width: 1 + r.IntN(min(3, in.Width)), StrideY: 1 + r.IntN(2), StrideX: 1 + r.IntN(2)}
	if r.IntN(2) == 0 {
		c.Top, c.Left, c.Bottom, c.Right = r.IntN(c.Height), r.IntN(c.Width), r.IntN(c.Height), r.IntN(c.Width)
	}
	c.Padding = int8(r.IntN(256) - 128)
	fill(r, c)
	return c
}

// fill gives the convolution weights, biases and what follows.
func fill(r *rand.Rand, c *reference.Convolution) {
	d := dense(r, c.Height*c.Width*c.In.Channels, len(c.Weights))
	c.Weights, c.Bias, c.Requantisation = d.Weights, d.Bias, d.Requantisation
	if r.IntN(4) == 0 {
		c.Table = table(r)
	}
}

// requantisation brings sums of so many products of 7 bits back.
func requantisation(r *rand.Rand, n int) reference.Requantisation {
	shift := uint8(16)
	for ; n > 1; n /= 2 {
		shift++
	}
	return reference.Requantisation{Multiplier: uint16(1<<15 + r.IntN(1<<15)), Shift: shift, Zero: int8(r.IntN(20) - 10), Low: -128, High: 127}
}

// tables are few, since an overlay has few.
var tables = func() (all [2][256]int8) {
	r := rand.New(rand.NewPCG(4, 4))
	for i := range all {
		for j := range all[i] {
			all[i][j] = int8(r.IntN(256) - 128)
		}
	}
	return all
}()

func table(r *rand.Rand) *[256]int8 { return &tables[r.IntN(len(tables))] }
