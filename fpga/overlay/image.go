package overlay

import (
	"math"

	"github.com/atelier-edge/atelier/fpga/program"
)

// windowed reads what convolutions and pools have in common.
func (s *stage) windowed(n *node) error {
	if auto := n.strings["auto_pad"]; auto != "" && auto != "NOTSET" {
		if auto == "VALID" {
			n.lists["pads"] = nil
		} else {
			return unsupported(n, "its auto_pad is %q; give pads", auto)
		}
	}
	for _, d := range n.lists["dilations"] {
		if d != 1 {
			return unsupported(n, "its dilations are %v, 1 is possible", n.lists["dilations"])
		}
	}
	read := func(name string, to []int, otherwise, least int64) error {
		list := n.lists[name]
		for i := range to {
			to[i] = int(otherwise)
			if len(list) == 0 {
				continue
			}
			if len(list) != len(to) || list[i] < least || list[i] > 255 {
				return unsupported(n, "its %s are %v; possible are %d numbers from %d to 255", name, list, len(to), least)
			}
			to[i] = int(list[i])
		}
		return nil
	}
	if err := read("kernel_shape", s.window[:], int64(s.window[0]), 1); err != nil {
		return err
	}
	if err := read("strides", s.stride[:], 1, 1); err != nil {
		return err
	}
	if err := read("pads", s.pad[:], 0, 0); err != nil {
		return err
	}
	if s.window[0] > s.in.Height+s.pad[0]+s.pad[2] || s.window[1] > s.in.Width+s.pad[1]+s.pad[3] {
		return unsupported(n, "its window of %v is larger than the image of %d×%d", s.window, s.in.Height, s.in.Width)
	}
	return nil
}

// image begins a stage that takes an image.
func image(n *node, v value, kind program.Kind) (*stage, error) {
	if v.flat && v.Height*v.Width != 1 || v.Size() == 0 {
		return nil, unsupported(n, "it takes an image; what comes has no rows and columns, or leaves open how many")
	}
	return &stage{node: n, kind: kind, from: []int{v.from}, in: v.Image, low: math.Inf(-1), high: math.Inf(1)}, nil
}

// convolution begins a stage.
func (l *lowering) convolution(n *node, v value) (value, error) {
	w, err := l.constant(n, 1)
	if err != nil {
		return v, err
	}
	s, err := l.filters(n, v, w)
	if err != nil {
		return v, err
	}
	s.scale = w.scale
	b, err := l.constant(n, 2)
	if err != nil {
		return v, err
	}
	if err := s.bias(b, 1); err != nil {
		return v, err
	}
	return l.result(s)
}

// filters begins a convolution with weights as ONNX has them: by channel of the output,
// channel of the input, row and column.
func (l *lowering) filters(n *node, v value, w *constant) (*stage, error) {
	s, err := image(n, v, program.Convolution)
	if err != nil {
		return nil, err
	}
	if group, given := n.ints["group"]; given && group != 1 {
		return nil, unsupported(n, "it has %d groups, 1 is possible", group)
	}
	if w == nil || len(w.dims) != 4 || len(w.values) == 0 || int(w.dims[1]) != s.in.Channels {
		return nil, unsupported(n, "its weights are not by channel, channel, row and column, or not for %d channels", s.in.Channels)
	}
	if kernel := n.lists["kernel_shape"]; len(kernel) == 2 && (kernel[0] != w.dims[2] || kernel[1] != w.dims[3]) {
		return nil, unsupported(n, "its window is %v, its weights have the shape %v", kernel, w.dims)
	}
	n.lists["kernel_shape"] = w.dims[2:]
	if err := s.windowed(n); err != nil {
		return nil, err
	}
	out, pixels := int(w.dims[0]), s.window[0]*s.window[1]
	s.b = make([]float64, out)
	for j := range out {
		row := make([]float64, pixels*s.in.Channels)
		for c := range s.in.Channels {
			for at := range pixels {
				row[at*s.in.Channels+c] = w.values[(j*s.in.Channels+c)*pixels+at]
			}
		}
		s.w = append(s.w, row)
	}
	return s, s.finite()
}

// normalisation folds BatchNormalization into the layer before.
func (l *lowering) normalisation(n *node, s *stage) error {
	if s == nil || n.ints["training_mode"] != 0 {
		return unsupported(n, "it does not come after a layer, or trains")
	}
	var c [5][]float64 // none, scale, bias, mean, variance
	for i := 1; i < len(c); i++ {
		v, err := l.constant(n, i)
		if err != nil {
			return err
		}
		if v == nil || len(v.values) != len(s.b) {
			return unsupported(n, "it has not %d numbers of each kind, as the layer has neurons", len(s.b))
		}
		c[i] = v.values
	}
	epsilon := 1e-5
	if v, given := n.floats["epsilon"]; given {
		epsilon = v
	}
	if s.scale != 0 {
		return unsupported(n, "the weights of the layer before are quantised")
	}
	factors, offsets := make([]float64, len(s.b)), make([]float64, len(s.b))
	for j := range s.b {
		factors[j] = c[1][j] / math.Sqrt(c[4][j]+epsilon)
		offsets[j] = c[2][j] - c[3][j]*factors[j]
	}
	if err := s.scaled(n, factors, offsets); err != nil {
		return err
	}
	return s.finite()
}

func (l *lowering) maxPool(n *node, v value) (value, error) {
	s, err := image(n, v, program.MaxPool)
	if err != nil {
		return v, err
	}
	if n.ints["ceil_mode"] != 0 || n.ints["storage_order"] != 0 || len(n.outputs) > 1 {
		return v, unsupported(n, "it has ceil_mode, storage_order or indices")
	}
	if len(n.lists["kernel_shape"]) != 2 {
		return v, unsupported(n, "its window is %v", n.lists["kernel_shape"])
	}
	if err := s.windowed(n); err != nil {
		return v, err
	}
	if s.pad != [4]int{} || s.window == [2]int{1, 1} {
		return v, unsupported(n, "it reaches beyond its image, or takes the largest of one")
	}
	return l.result(s)
}

// average is the mean of each channel.
func (l *lowering) average(n *node, v value) (value, error) {
	s, err := image(n, v, program.Average)
	if err != nil {
		return v, err
	}
	if n.op == "ReduceMean" {
		axes := n.lists["axes"]
		if c, err := l.constant(n, 1); err == nil && c != nil {
			axes = nil
			for _, a := range c.values {
				axes = append(axes, int64(a))
			}
		}
		rows := len(axes) == 2 && (axes[0] == 2 || axes[0] == -2) && (axes[1] == 3 || axes[1] == -1)
		if !rows {
			return v, unsupported(n, "it takes the mean along %v, possible are rows and columns", axes)
		}
	}
	if n.op == "QLinearGlobalAveragePool" {
		if n.ints["channels_last"] != 0 {
			return v, unsupported(n, "it has the channels last")
		}
		if err := l.expects(n, v, 1); err != nil {
			return v, err
		}
		if s.out, err = l.quantisation(n, 3); err != nil {
			return v, err
		}
	}
	return l.result(s)
}

// sum adds two layers' results.
func (l *lowering) sum(n *node, first, second string) (value, error) {
	a, b := l.values[first], l.values[second]
	if a.Image != b.Image || a.flat != b.flat || a.Size() == 0 {
		return a, unsupported(n, "it adds values of %d×%d×%d and %d×%d×%d", a.Height, a.Width, a.Channels, b.Height, b.Width, b.Channels)
	}
	flat := a.flat
	s := &stage{node: n, kind: program.Sum, from: []int{a.from, b.from}, in: a.Image, low: math.Inf(-1), high: math.Inf(1)}
	v, err := l.result(s)
	v.flat = flat
	return v, err
}
