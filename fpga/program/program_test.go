package program_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/atelier-edge/atelier/fpga/program"
)

var geometry = program.Geometry{Lanes: 4, Activations: 6, Biases: 4, Program: 3, Weights: 6, Tables: 9}

func dense(in, out int) program.Operation {
	d := program.Operation{Bias: make([]int32, out), Multiplier: 1, High: 127}
	for range out {
		d.Weights = append(d.Weights, bytesOf(1, in))
	}
	return d
}

func bytesOf(v int8, n int) []int8 {
	return slices.Repeat([]int8{v}, n)
}

func place(t *testing.T) *program.Program {
	t.Helper()
	p, err := program.Place(geometry, []program.Operation{dense(5, 6), dense(6, 2)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCycles counts by hand: 4 to fetch, 2 groups of 5, a gap of 10 − 4, a group of 6,
// 9 on the way and 2 results.
func TestCycles(t *testing.T) {
	t.Parallel()
	if got := place(t).Cycles(); got != 4+10+6+6+9+2 {
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
	if got, rest, err := program.ParseLayer(b); err != nil || got != l || len(rest) > 0 {
		t.Errorf("%+v, %v", got, err)
	}
	b[15] = 0x41 // a flag that only windows have
	if _, _, err := program.ParseLayer(b); err == nil {
		t.Error("a dense layer with a flag of windows is taken")
	}
	l.Table, l.Window = 3, &program.Window{Run: 0x0102, Step: -3, Runs: 4, RunStep: -6, Columns: 7, Rows: 8, ColumnStep: 9, RowStep: 10, ToStep: 11, Channelwise: true, Max: true}
	b = l.Append(nil)
	if want := []byte{5, 0xb7, 2, 1, 0xfd, 0xff, 4, 7, 8, 0, 0xfa, 0xff, 9, 0, 10, 0, 11, 0}; !bytes.Equal(b[14:], want) {
		t.Errorf("the window is %x, want %x", b[14:], want)
	}
	if got, rest, err := program.ParseLayer(b); err != nil || *got.Window != *l.Window || got.Table != 3 || len(rest) > 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

// TestCheckRefuses changes a good program so that its results would not depend on
// its inputs alone.
func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	for says, change := range map[string]func(p *program.Program){
		"at a time, 4":       func(p *program.Program) { p.Layers[0].In = 3 },
		"has to wait 6":      func(p *program.Program) { p.Layers[1].Gap = 4 },
		"writes where":       func(p *program.Program) { p.Layers[0].Destination = 4 },
		"nothing was":        func(p *program.Program) { p.Layers[0].Destination = 20 },
		"marked wrongly":     func(p *program.Program) { p.Layers[1].Last = false },
		"shifts by 41":       func(p *program.Program) { p.Layers[0].Shift = 41 },
		"more than 24 bits":  func(p *program.Program) { p.Biases[0] = 1 << 23 },
		"weights, its":       func(p *program.Program) { p.Weights = p.Weights[4:] },
		"activations":        func(p *program.Program) { p.Layers[1].Destination = 63 },
		"words of weights":   func(p *program.Program) { p.Layers[0].In = 30 },
		"neurons":            func(p *program.Program) { p.Layers[1].Out = 20 },
		"host writes":        func(p *program.Program) { p.Input.Rows = 0 },
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
	f.Add(append(append(make([]byte, 15), 0xff), make([]byte, program.DescriptorSize)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, rest, err := program.ParseLayer(b); err == nil && !bytes.Equal(append(l.Append(nil), rest...), b) {
			t.Errorf("%x is read as %+v and written otherwise", b, l)
		}
	})
}

func FuzzParseIdentity(f *testing.F) {
	f.Add(append([]byte("ATNP\x02\x00\x08\x00\x0a\x08\x06\x0a\x09\x00\x00\x00"), make([]byte, 16)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := program.ParseIdentity(b); err == nil && id.Geometry.Check() != nil {
			t.Errorf("%+v", id)
		}
	})
}
