package reference

import (
	"fmt"
)

// Image is the shape of a value with rows and columns: element (y, x, c) is number
// (y·Width + x)·Channels + c.
type Image struct{ Height, Width, Channels int }

// Size is how many elements an image has.
func (m Image) Size() int { return m.Height * m.Width * m.Channels }

func (m Image) check() error {
	if m.Height < 1 || m.Width < 1 || m.Channels < 1 {
		return fmt.Errorf("an image of %d×%d with %d channels is none", m.Height, m.Width, m.Channels)
	}
	return nil
}

// Window is what part of an image an element of the output comes from.
type Window struct {
	Height, Width    int // of the window
	StrideY, StrideX int
	Top, Left        int // how far the first window reaches beyond the image
	Bottom, Right    int // and the last one
}

// Over returns how many windows an image has, one below the other and side by side.
func (w Window) Over(m Image) (rows, columns int) {
	return (m.Height+w.Top+w.Bottom-w.Height)/w.StrideY + 1, (m.Width+w.Left+w.Right-w.Width)/w.StrideX + 1
}

func (w Window) check(m Image) error {
	if err := m.check(); err != nil {
		return err
	}
	if w.Height < 1 || w.Width < 1 || w.StrideY < 1 || w.StrideX < 1 || min(w.Top, w.Left, w.Bottom, w.Right) < 0 {
		return fmt.Errorf("a window of %d×%d, moved by %d and %d, is none", w.Height, w.Width, w.StrideY, w.StrideX)
	}
	if w.Height > m.Height+w.Top+w.Bottom || w.Width > m.Width+w.Left+w.Right {
		return fmt.Errorf("a window of %d×%d is larger than the image", w.Height, w.Width)
	}
	return nil
}

// at returns element (y, x, c) of an image, and padding beyond its edges.
func (m Image) at(v []int8, y, x, c int, padding int8) int8 {
	if y < 0 || x < 0 || y >= m.Height || x >= m.Width {
		return padding
	}
	return v[(y*m.Width+x)*m.Channels+c]
}

// each calls fn for each window with the place of its upper left corner.
func (w Window) each(m Image, fn func(y, x int)) {
	rows, columns := w.Over(m)
	for row := range rows {
		for column := range columns {
			fn(row*w.StrideY-w.Top, column*w.StrideX-w.Left)
		}
	}
}

// Convolution has a neuron for each channel of its output, which sees one window
// after the other.
type Convolution struct {
	In Image
	Window
	// Padding is what lies beyond the edges: the zero point of the input.
	Padding int8
	// Weights by output channel; those of one as the elements of a window lie: by row, column
	// and input channel.
	Weights [][]int8
	Bias    []int32
	Requantisation
}

// Inputs implements Layer.
func (c *Convolution) Inputs() int { return c.In.Size() }

// Outputs implements Layer.
func (c *Convolution) Outputs() int {
	rows, columns := c.Over(c.In)
	return rows * columns * len(c.Weights)
}

// Check implements Layer.
func (c *Convolution) Check() error {
	if err := c.Window.check(c.In); err != nil {
		return err
	}
	if len(c.Weights) == 0 || len(c.Bias) != len(c.Weights) || len(c.Weights[0]) != c.Height*c.Width*c.In.Channels {
		return fmt.Errorf("a convolution has %d biases for %d channels, or not %d weights for each", len(c.Bias), len(c.Weights), c.Height*c.Width*c.In.Channels)
	}
	if err := c.Requantisation.check(); err != nil {
		return err
	}
	return bounded(c.Weights, c.Bias)
}

// Apply implements Layer.
func (c *Convolution) Apply(v []int8) (out []int8) {
	c.each(c.In, func(y, x int) {
		for j, weights := range c.Weights {
			sum, k := c.Bias[j], 0
			for dy := range c.Height {
				for dx := range c.Width {
					for channel := range c.In.Channels {
						sum += int32(weights[k]) * int32(c.In.at(v, y+dy, x+dx, channel, c.Padding))
						k++
					}
				}
			}
			out = append(out, c.Requantisation.Apply(sum))
		}
	})
	return out
}

// MaxPool gives the largest of each window, channel by channel. Its windows lie
// within the image. Nothing is scaled, but a table may follow.
type MaxPool struct {
	In Image
	Window
	Requantisation
}

// Identity leaves a value as it is.
var Identity = Requantisation{Multiplier: 1, Low: -128, High: 127}

// Inputs implements Layer.
func (p *MaxPool) Inputs() int { return p.In.Size() }

// Outputs implements Layer.
func (p *MaxPool) Outputs() int {
	rows, columns := p.Over(p.In)
	return rows * columns * p.In.Channels
}

// Check implements Layer.
func (p *MaxPool) Check() error {
	if p.Top+p.Left+p.Bottom+p.Right != 0 {
		return fmt.Errorf("a pool reaches beyond the edges of its image")
	}
	if err := p.Window.check(p.In); err != nil {
		return err
	}
	return p.Requantisation.check()
}

// Apply implements Layer.
func (p *MaxPool) Apply(v []int8) (out []int8) {
	p.each(p.In, func(y, x int) {
		for channel := range p.In.Channels {
			top := int8(-128)
			for dy := range p.Height {
				for dx := range p.Width {
					top = max(top, p.In.at(v, y+dy, x+dx, channel, -128))
				}
			}
			out = append(out, p.Requantisation.Apply(int32(top)))
		}
	})
	return out
}

// Average gives a number for each channel: the sum of all of its elements,
// requantised. Division is in the multiplier.
type Average struct {
	In   Image
	Bias int32 // holds the zero point of the input, once for each element
	Requantisation
}

// Inputs implements Layer.
func (a *Average) Inputs() int { return a.In.Size() }

// Outputs implements Layer.
func (a *Average) Outputs() int { return a.In.Channels }

// Check implements Layer.
func (a *Average) Check() error {
	if err := a.In.check(); err != nil {
		return err
	}
	if bound := int64(a.In.Height*a.In.Width)<<7 + max(int64(a.Bias), -int64(a.Bias)); bound >= sumLimit {
		return fmt.Errorf("the sum of a channel could reach %d, the accumulators hold less than %d", bound, sumLimit)
	}
	return a.check()
}

// Apply implements Layer.
func (a *Average) Apply(v []int8) (out []int8) {
	for channel := range a.In.Channels {
		sum := a.Bias
		for at := channel; at < len(v); at += a.In.Channels {
			sum += int32(v[at])
		}
		out = append(out, a.Requantisation.Apply(sum))
	}
	return out
}

// Sum adds two images element by element, each with a weight that brings it to the
// same scale.
type Sum struct {
	In     Image
	First  int8
	Second int8
	Bias   int32
	Requantisation
}

// Inputs implements Layer.
func (s *Sum) Inputs() int { return 2 * s.In.Size() }

// Outputs implements Layer.
func (s *Sum) Outputs() int { return s.In.Size() }

// Check implements Layer.
func (s *Sum) Check() error {
	if err := s.In.check(); err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return err
	}
	return bounded([][]int8{{s.First, s.Second}}, []int32{s.Bias})
}

// Apply implements Layer.
func (s *Sum) Apply(v []int8) (out []int8) {
	n := s.In.Size()
	for i := range n {
		out = append(out, s.Requantisation.Apply(int32(s.First)*int32(v[i])+int32(s.Second)*int32(v[n+i])+s.Bias))
	}
	return out
}
