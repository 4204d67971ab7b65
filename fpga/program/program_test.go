package program_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/atelier-edge/atelier/fpga/program"
)

var geometry = program.Geometry{Lanes: 4, Activations: 6, Biases: 4, Program: 3, Weights: 6}

func dense(in, out int) program.Dense {
	d := program.Dense{Bias: make([]int32, out), Multiplier: 1, High: 127}
	for range out {
		d.Weights = append(d.Weights, make([]int8, in))
	}
	return d
}

func place(t *testing.T) *program.Program {
	t.Helper()
	p, err := program.Place(geometry, []program.Dense{dense(5, 6), dense(6, 2)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCycles counts by hand: 4 to fetch, 2 groups of 5, a gap of 9 − 4, a group of 6,
// 8 on the way and 2 results.
func TestCycles(t *testing.T) {
	t.Parallel()
	if got := place(t).Cycles(); got != 4+10+5+6+8+2 {
		t.Errorf("%d cycles are predicted", got)
	}
}

func TestDescriptor(t *testing.T) {
	t.Parallel()
	l := program.Layer{In: 0x0102, Out: 0x0304, Source: 0x0506, Destination: 0x0708, Multiplier: 0x090a, Shift: 11, Zero: -2, Low: -3, High: 4, Gap: 5, Last: true}
	b := l.Append(nil)
	if want := []byte{2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 11, 0xfe, 0xfd, 4, 5, 1}; !bytes.Equal(b, want) {
		t.Errorf("the descriptor is %x, want %x", b, want)
	}
	if got, err := program.ParseLayer(b); err != nil || got != l {
		t.Errorf("%+v, %v", got, err)
	}
	b[15] = 0x11 // another operation
	if _, err := program.ParseLayer(b); err == nil {
		t.Error("an unknown operation is taken")
	}
}

// TestCheckRefuses changes a good program so that its results would not depend on
// its inputs alone.
func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	for says, change := range map[string]func(p *program.Program){
		"at least 4":         func(p *program.Program) { p.Layers[0].In = 3 },
		"has to wait 5":      func(p *program.Program) { p.Layers[1].Gap = 4 },
		"writes where":       func(p *program.Program) { p.Layers[0].Destination = 4 },
		"the one before":     func(p *program.Program) { p.Layers[0].Destination = 20 },
		"marked wrongly":     func(p *program.Program) { p.Layers[1].Last = false },
		"shifts by 41":       func(p *program.Program) { p.Layers[0].Shift = 41 },
		"more than 24 bits":  func(p *program.Program) { p.Biases[0] = 1 << 23 },
		"weights, its":       func(p *program.Program) { p.Weights = p.Weights[4:] },
		"activations":        func(p *program.Program) { p.Layers[1].Source = 60 },
		"words of weights":   func(p *program.Program) { p.Layers[0].In = 30 },
		"neurons":            func(p *program.Program) { p.Layers[1].Out = 20 },
		"host writes":        func(p *program.Program) { p.Inputs = 6 },
		"possible are 4, 8,": func(p *program.Program) { p.Geometry.Lanes = 5 },
	} {
		p := place(t)
		if err := p.Check(); err != nil {
			t.Fatal(err)
		}
		change(p)
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want an error that says %q", err, says)
		}
	}
}

func FuzzParseLayer(f *testing.F) {
	f.Add(make([]byte, program.DescriptorSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := program.ParseLayer(b); err == nil && !bytes.Equal(l.Append(nil), b) {
			t.Errorf("%x is read as %+v and written otherwise", b, l)
		}
	})
}

func FuzzParseIdentity(f *testing.F) {
	f.Add(append([]byte("ATNP\x01\x00\x08\x00\x0a\x08\x06\x0a\x00\x00\x00\x00"), make([]byte, 16)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := program.ParseIdentity(b); err == nil && id.Geometry.Check() != nil {
			t.Errorf("%+v", id)
		}
	})
}
