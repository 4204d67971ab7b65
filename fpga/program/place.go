package program

// Dense is what Place lays out: a dense layer by its numbers.
type Dense struct {
	Weights         [][]int8 // by neuron, then by input
	Bias            []int32
	Multiplier      uint16
	Shift           uint8
	Zero, Low, High int8
}

// Place lays a chain of dense layers out for the geometry, and checks the result. A
// layer's activations lie at the start of the memory and at its end, in turns.
func Place(g Geometry, layers []Dense) (*Program, error) {
	if err := g.Check(); err != nil {
		return nil, err
	}
	p := &Program{Geometry: g}
	source, room := 0, 1<<g.Activations
	for k, d := range layers {
		if len(d.Weights) == 0 || len(d.Weights[0]) == 0 || len(d.Bias) != len(d.Weights) {
			return nil, invalid("layer %d has no weights, or not a bias for each neuron", k)
		}
		in := max(len(d.Weights[0]), g.Lanes)
		// What the next layer reads begins here and goes on for at least a group.
		span := max(len(d.Weights), g.Lanes)
		if in+span > room {
			return nil, p.tooLarge("activations at once", in+span, room)
		}
		destination := 0
		if k%2 == 0 {
			destination = room - span
		}
		l := Layer{In: uint16(in), Out: uint16(len(d.Weights)), Source: uint16(source), Destination: uint16(destination),
			Multiplier: d.Multiplier, Shift: d.Shift, Zero: d.Zero, Low: d.Low, High: d.High, Last: k == len(layers)-1}
		if k == 0 {
			p.Inputs = len(d.Weights[0])
		} else {
			before := p.Layers[k-1]
			if int(before.Out) != len(d.Weights[0]) {
				return nil, invalid("layer %d takes %d values, the one before gives %d", k, len(d.Weights[0]), before.Out)
			}
			l.Gap = uint8(before.gap(g.Lanes))
		}
		for group := 0; group < len(d.Weights); group += g.Lanes {
			at := len(p.Weights)
			p.Weights = append(p.Weights, make([]byte, in*g.Lanes)...)
			for lane, row := range d.Weights[group:min(group+g.Lanes, len(d.Weights))] {
				for i, w := range row {
					p.Weights[at+i*g.Lanes+lane] = byte(w)
				}
			}
		}
		p.Biases = append(p.Biases, d.Bias...)
		p.Layers = append(p.Layers, l)
		source = destination
	}
	return p, p.Check()
}
