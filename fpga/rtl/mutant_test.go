package rtl_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
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
	{"bias of the neighbour", "drain.v", "take ? at + 1'b1 : at;", "at;"},
	{"settings of the next layer", "drain.v", "c3 <= c2;", "c3 <= held_s[S-1:16];"},
	{"last of equals wins", "drain.v", "y > best", "y >= best"},
	{"largest without its sign", "drain.v", "y > best", "{1'b0, y} > {1'b0, best}"},
	{"a sum goes on", "lanes.v", "first_p ? 24'sd0 : sum", "sum"},
	{"product without its sign", "lanes.v", "{{8{product[15]}}, product}", "{8'b0, product}"},
	{"an accumulator of 23 bits", "lanes.v", "if (valid_p) sum <= sums[24*k+:24];", "if (valid_p) sum <= {sums[24*k+22], sums[24*k+:23]};"},
	{"the largest of all groups", "lanes.v", "!first_p && sum > wide", "sum > wide"},
	{"the smallest wins", "lanes.v", "sum > wide", "sum < wide"},
	{"the table's index has no sign", "drain.v", "y6 ^ 8'h80", "y6"},
	{"the next table", "drain.v", "c6[48:46] - 1'b1", "c6[48:46]"},
	{"a row of results goes on", "drain.v", "turn ? c7", "first ? c7"},
	{"a window's bias goes on", "processor.v", "bias_at <= bias_base;\n                weight_at", "bias_at <= bias_at;\n                weight_at"},
	{"a window's weights go on", "processor.v", "weight_at <= weight_base;\n                column_at", "weight_at <= weight_at + 1'b1;\n                column_at"},
	{"the last row is left out", "processor.v", "rows_left <= next_window ? next[183:176] - 1'b1 : 0;", "rows_left <= next_window && next[183:176] > 1 ? next[183:176] - 2'd2 : 0;"},
	{"runs follow each other", "processor.v", "at <= next_run;\n                run_at", "at <= at + step;\n                run_at"},
	{"columns follow each other", "processor.v", "column_at + column_step", "column_at + 1'b1"},
	{"the gap is one short", "processor.v", "gap <= next[119:112];", "gap <= next[119:112] == 0 ? 8'd0 : next[119:112] - 1'b1;"},
	{"a group is one input short", "processor.v", "next[15:0]) - 1'b1;", "next[15:0]) - 2'd2;"},
	{"the last group is whole", "processor.v", "last_group ? left[5:0] : N;", "N;"},
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
	for range 30 {
		n := networktest.RandomImages(r, g)
		all = append(all, vector{n, inputs(r, 2, n.Layers[0].Inputs())})
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

// herd writes a module that holds the design and all mutants, of which the plusarg
// +which tells the one with a clock: one compilation instead of two dozen.
func herd(t *testing.T, g program.Geometry) string {
	t.Helper()
	modules := regexp.MustCompile(`\b(ram|weight_ram|lanes|products|drain|processor|overlay)\b`)
	var all strings.Builder
	parameters := fmt.Sprintf("#(.N(%d), .ACTIVATIONS(%d), .BIASES(%d), .PROGRAM(%d), .WEIGHTS(%d), .TABLES(%d))", g.Lanes, g.Activations, g.Biases, g.Program, g.Weights, g.Tables)
	var instances, answers, bytesRead, busies strings.Builder
	for k := range len(mutants) + 1 {
		found := k == 0
		for _, name := range []string{"ram.v", "lanes.v", "drain.v", "processor.v", "overlay.v"} {
			b, err := rtl.Sources.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			source := string(b)
			if k > 0 && mutants[k-1].file == name {
				found = strings.Count(source, mutants[k-1].old) == 1
				source = strings.Replace(source, mutants[k-1].old, mutants[k-1].new, 1)
			}
			all.WriteString(modules.ReplaceAllString(source, fmt.Sprintf("${1}_%d", k)))
		}
		if !found {
			t.Fatalf("%s does not hold %q once", mutants[k-1].file, mutants[k-1].old)
		}
		fmt.Fprintf(&instances, `
    wire ack_%[1]d, busy_%[1]d;
    wire [7:0] rdata_%[1]d;
    overlay_%[1]d %[2]s m_%[1]d (.clk(clk && which == %[1]d), .req(req), .we(we), .addr(addr), .wdata(wdata),
        .ack(ack_%[1]d), .rdata(rdata_%[1]d), .busy(busy_%[1]d));
`, k, parameters)
		fmt.Fprintf(&answers, "which == %[1]d ? ack_%[1]d : ", k)
		fmt.Fprintf(&bytesRead, "which == %[1]d ? rdata_%[1]d : ", k)
		fmt.Fprintf(&busies, "which == %[1]d ? busy_%[1]d : ", k)
	}
	fmt.Fprintf(&all, `
module herd (input wire clk, input wire req, input wire we, input wire [23:0] addr, input wire [7:0] wdata,
    output wire ack, output wire [7:0] rdata, output wire busy);
    integer which = 0;
    initial if (!$value$plusargs("which=%%d", which)) which = 0;
%s
    assign ack = %s 1'b0;
    assign rdata = %s 8'b0;
    assign busy = %s 1'b0;
endmodule
`, &instances, &answers, &bytesRead, &busies)
	path := filepath.Join(t.TempDir(), "herd.v")
	if err := os.WriteFile(path, []byte(all.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestMutantsAreCaught breaks the RTL in many ways; none may pass the vectors.
func TestMutantsAreCaught(t *testing.T) {
	t.Parallel()
	g := hx8k(4)
	g.Weights = 11
	path := build(t, rtl.Design{Netlist: []string{herd(t, g)}, Top: "herd"})
	for k := range len(mutants) + 1 {
		diff := caught(t, start(t, path, fmt.Sprintf("+which=%d", k)), g)
		switch {
		case k == 0 && diff != "":
			t.Fatalf("the design itself fails the vectors: %s", diff)
		case k > 0 && diff == "":
			t.Errorf("%s: the vectors do not tell the mutant from the design", mutants[k-1].name)
		case k > 0:
			t.Logf("%s: %.150s", mutants[k-1].name, diff)
		}
	}
}
