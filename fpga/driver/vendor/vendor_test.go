package vendor_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/bitstream/bitstreamtest"
	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/driver/drivertest"
	"github.com/atelier-edge/atelier/fpga/driver/vendor"
	"github.com/atelier-edge/atelier/fpga/program"
)

var card = vendor.Card{Bus: 0xb3, Function: 1}

const shell = "69528db6-eb31-577a-8c36-68f9faa081f6"

// TestConformance has a card behind a tool that takes the image from the file that it is told.
func TestConformance(t *testing.T) {
	t.Parallel()
	for kind, c := range map[string]struct {
		open func(vendor.Options) *vendor.Driver
		args []string // as the tool's document has them, but for the file
	}{
		// xbutil.rst: "xbutil program --device 0000:b3:00.1 --user ./my_kernel.xclbin"
		"xrt": {vendor.NewXRT, []string{"xbutil", "program", "--device", "0000:b3:00.1", "--user"}},
		// fpgaconf.c, longopts: segment, bus, device, function take a number of any base (strtoul
		// with 0); the first argument that is no option is the GBS.
		"opae": {vendor.NewOPAE, []string{"fpgaconf", "--segment", "0x0", "--bus", "0xb3", "--device", "0x0", "--function", "0x1"}},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			drivertest.Run(t, func(t *testing.T) drivertest.Bench {
				var id [16]byte
				copy(id[:], []byte{0x69, 0x52, 0x8d, 0xb6, 0xeb, 0x31, 0x57, 0x7a, 0x8c, 0x36, 0x68, 0xf9, 0xfa, 0xa0, 0x81, 0xf6})
				known := map[atelier.Digest]board.Design{}
				bench := drivertest.Bench{Bad: []byte("no image")}
				for i := range bench.Images {
					d := board.Design{Geometry: program.Geometry{Lanes: 8, Activations: 10, Biases: 8, Program: 6, Weights: 10, Tables: 9}, UUID: [16]byte{byte(i + 1)}}
					bench.Images[i] = bitstreamtest.GBS(shell, 1000*(i+1))
					bench.Identities[i] = program.Identity{ISA: program.ISA, Geometry: d.Geometry, UUID: d.UUID}
					known[atelier.DigestOf(bench.Images[i])] = d
				}
				b := board.New(board.Options{Shell: bitstream.UUID(id), Designs: known})
				bench.Driver = c.open(vendor.Options{Card: card, Overlay: b, Dir: t.TempDir(), Run: func(_ context.Context, name string, args ...string) ([]byte, error) {
					got := append([]string{name}, args...)
					if !slices.Equal(got[:len(got)-1], c.args) {
						t.Errorf("the command is %q, want %q and a file", got, c.args)
					}
					image, err := os.ReadFile(got[len(got)-1])
					if err != nil {
						return nil, err
					}
					if err := b.Configure(image); err != nil {
						return []byte("Error: " + err.Error()), errors.New("exit status 1")
					}
					return nil, nil
				}})
				return bench
			})
		})
	}
}

func TestTools(t *testing.T) {
	t.Parallel()
	load := func(ctx context.Context, run func(ctx context.Context, name string, args ...string) ([]byte, error)) error {
		return vendor.NewXRT(vendor.Options{Card: card, Dir: t.TempDir(), Run: run}).Load(ctx, []byte("x"))
	}
	if err := load(t.Context(), func(context.Context, string, ...string) ([]byte, error) {
		return []byte("some\nlines\nERROR: no such device\n"), errors.New("exit status 1")
	}); err == nil || !strings.Contains(err.Error(), "xbutil program failed (exit status 1): ERROR: no such device") {
		t.Errorf("%v", err)
	}
	if err := load(t.Context(), func(context.Context, string, ...string) ([]byte, error) { return nil, exec.ErrNotFound }); atelier.CodeOf(err) != atelier.Unsupported {
		t.Errorf("a tool that is missing: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := load(ctx, func(ctx context.Context, _ string, _ ...string) ([]byte, error) {
		return exec.CommandContext(ctx, "sleep", "60").CombinedOutput()
	}); atelier.CodeOf(err) != atelier.Timeout {
		t.Errorf("a tool that hangs: %v", err)
	}
	for _, s := range []string{"", "b3:00.1", "0000:b3:00.8x", "0000:B3:00.1", "0000:b3:00.1 --force"} {
		if c, err := vendor.ParseCard(s); err == nil {
			t.Errorf("%q is read as %v", s, c)
		}
	}
	if c, err := vendor.ParseCard("0000:b3:00.1"); err != nil || c != card {
		t.Errorf("%v, %v", c, err)
	}
}
