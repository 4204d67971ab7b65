package networktest

import (
	"fmt"

	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/reference"
)

// Place lays a network out for a geometry.
func Place(g program.Geometry, n *reference.Network) (*program.Program, error) {
	var operations []program.Operation
	for k, l := range n.Layers {
		o := program.Operation{}
		if k < len(n.From) {
			o.From = n.From[k]
		}
		var q reference.Requantisation
		switch l := l.(type) {
		case *reference.Dense:
			o.Weights, o.Bias, q = l.Weights, l.Bias, l.Requantisation
			if k > 0 {
				o.In = shape(n, k)
			}
		case *reference.Convolution:
			o.Kind, o.In, o.Padding, o.Weights, o.Bias, q = program.Convolution, program.Image(l.In), l.Padding, l.Weights, l.Bias, l.Requantisation
			window(&o, l.Window)
		case *reference.MaxPool:
			o.Kind, o.In, q = program.MaxPool, program.Image(l.In), l.Requantisation
			window(&o, l.Window)
		case *reference.Average:
			o.Kind, o.In, o.Bias, q = program.Average, program.Image(l.In), []int32{l.Bias}, l.Requantisation
		case *reference.Sum:
			o.Kind, o.In, o.Weights, o.Bias, q = program.Sum, program.Image(l.In), [][]int8{{l.First, l.Second}}, []int32{l.Bias}, l.Requantisation
		default:
			return nil, fmt.Errorf("layer %d is of a kind that has no place", k)
		}
		o.Multiplier, o.Shift, o.Zero, o.Low, o.High, o.Table = q.Multiplier, q.Shift, q.Zero, q.Low, q.High, q.Table
		operations = append(operations, o)
	}
	return program.Place(g, operations)
}

func window(o *program.Operation, w reference.Window) {
	o.Window, o.Stride, o.Pad = [2]int{w.Height, w.Width}, [2]int{w.StrideY, w.StrideX}, [4]int{w.Top, w.Left, w.Bottom, w.Right}
}

// shape is that of the value that dense layer k takes.
func shape(n *reference.Network, k int) program.Image {
	from := k
	if k < len(n.From) && len(n.From[k]) > 0 {
		from = n.From[k][0]
	}
	if from > 0 {
		switch l := n.Layers[from-1].(type) {
		case *reference.Convolution:
			rows, columns := l.Over(l.In)
			return program.Image{Height: rows, Width: columns, Channels: len(l.Weights)}
		case *reference.MaxPool:
			rows, columns := l.Over(l.In)
			return program.Image{Height: rows, Width: columns, Channels: l.In.Channels}
		case *reference.Sum:
			return program.Image(l.In)
		}
	}
	return program.Image{Height: 1, Width: 1, Channels: n.Layers[k].Inputs()}
}
