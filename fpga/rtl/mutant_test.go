package rtl_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/atelier-edge/atelier/fpga/networktest"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/reference"
	"github.com/atelier-edge/atelier/fpga/rtl"
)

// mutants are faults as a slip of the pen would make them.
var mutants = []struct{ name, file, old, new string }{
	{"ties go down", "drain.v", "(p5 + 12'sd1) >>> 1", "p5 >>> 1"},
	{"rounding off by one", "drain.v", "(p5 + 12'sd1) >>> 1", "(p5 + 12'sd2) >>> 1"},
	{"no upper clamp", "drain.v", "if (q > high12) y6 <= high;", "if (q > 127) y6 <= 127;"},
	{"no lower clamp", "drain.v", "else if (q < low12) y6 <= low;", "else if (q < -128) y6 <= -128;"},
	{"cut too early below", "drain.v", "fine < -41'sd1024", "fine < -41'sd256"},
	{"wraps instead of saturating", "drain.v", "if (fine > 41'sd1023) p5 <= 11'sd1023;", "if (0) p5 <= 0;"},
	{"shift without its sign", "drain.v", "p4 <= p3 >>> {c3[21:19], 3'b0};", "p4 <= p3 >> {c3[21:19], 3'b0};"},
	{"fine shift loses a bit", "drain.v", "p4 >>> c4[18:16]", "p4 >>> c4[17:16]"},
	{"coarse shift loses a bit", "drain.v", "p3 >>> {c3[21:19], 3'b0}", "p3 >>> {c3[20:19], 3'b0}"},
	{"half of the multiplier is signed", "drain.v", "s1 * $signed({1'b0, c1[15:8]})", "s1 * $signed({c1[15], c1[15:8]})"},
	{"zero point without its sign", "drain.v", "$signed({{4{zero[7]}}, zero})", "$signed({4'b0, zero})"},
	{"bias of the neighbour", "drain.v", "take ? at + 1'b1 : at", "at"},
	{"settings of the next layer", "drain.v", "c3 <= c2;", "c3 <= held_s[S-1:16];"},
	{"last of equals wins", "drain.v", "y6 > best", "y6 >= best"},
	{"largest without its sign", "drain.v", "y6 > best", "{1'b0, y6} > {1'b0, best}"},
	{"a sum goes on", "lanes.v", "first_p ? 24'sd0 : sum", "sum"},
	{"product without its sign", "lanes.v", "{{8{product[15]}}, product}", "{8'b0, product}"},
	{"an accumulator of 23 bits", "lanes.v", "if (valid_p) sum <= next;", "if (valid_p) sum <= {next[22], next[22:0]};"},
	{"the gap is one short", "processor.v", "gap <= next[119:112];", "gap <= next[119:112] == 0 ? 8'd0 : next[119:112] - 1'b1;"},
	{"a group is one input short", "processor.v", "in_minus_1 <= next[15:0] - 1'b1;", "in_minus_1 <= next[15:0] - 2'd2;"},
	{"the last group is whole", "processor.v", "last_group ? left[5:0] : N", "N"},
	{"a cycle is not counted", "processor.v", "if (busy) cycles", "if (busy && fetch != LATCH) cycles"},
}

// vectors are the committed networks and inputs that must tell every mutant from the
// design: ties and saturation, shifts of all sizes, short and long layers.
type vector struct {
	network *reference.Network
	inputs  [][]int8
}

func vectors(g program.Geometry) (all []vector) {
	var every [][]int8
	for x := -128; x < 128; x += 5 {
		every = append(every, []int8{int8(x)})
	}
	every = append(every, []int8{127}, []int8{-128})
	for _, c := range [][3]int8{{0, -128, 127}, {-100, -128, 127}, {-5, -5, 100}, {20, -30, 30}} {
		all = append(all, vector{networktest.Ties(c[0], c[1], c[2]), every})
	}
	r := rand.New(rand.NewPCG(77, 1))
	for range 24 {
		n := networktest.Random(r, networktest.RandomWidths(r, g)...)
		all = append(all, vector{n, inputs(r, 4, n.Layers[0].Inputs())})
	}
	all = append(all, vector{networktest.Widest(), [][]int8{networktest.Inputs(r, 510), bytesOf(127, 510), bytesOf(-128, 510)}})
	return all
}

func bytesOf(v int8, n int) []int8 {
	all := make([]int8, n)
	for i := range all {
		all[i] = v
	}
	return all
}

// caught runs the vectors, and returns what the first difference is, or "".
func caught(t *testing.T, d program.Device, g program.Geometry) string {
	t.Helper()
	for _, v := range vectors(g) {
		p, err := networktest.Place(g, v.network)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Load(d); err != nil {
			return err.Error()
		}
		if diff := differs(d, p, v.network, v.inputs); diff != "" {
			return diff
		}
	}
	return ""
}

// TestMutantsAreCaught breaks the RTL in many ways; none may pass the vectors.
func TestMutantsAreCaught(t *testing.T) {
	t.Parallel()
	g := hx8k(4)
	if diff := caught(t, start(t, build(t, rtl.Design{Geometry: g, UUID: uuid})), g); diff != "" {
		t.Fatalf("the design itself fails the vectors: %s", diff)
	}
	for _, m := range mutants[:amount(2, len(mutants))] {
		t.Run(m.name, func(t *testing.T) {
			found := false
			path := build(t, rtl.Design{Geometry: g, UUID: uuid, Change: func(name string, source []byte) []byte {
				if name != m.file {
					return source
				}
				found = bytes.Count(source, []byte(m.old)) == 1
				return bytes.Replace(source, []byte(m.old), []byte(m.new), 1)
			}})
			if !found {
				t.Fatalf("%s does not hold %q once", m.file, m.old)
			}
			diff := caught(t, start(t, path), g)
			if diff == "" {
				t.Error("the vectors do not tell the mutant from the design")
			}
			if len(diff) > 160 {
				diff = diff[:160]
			}
			t.Log(diff)
		})
	}
}
