// Package rtl holds the overlay in Verilog, and simulates it with Verilator: the
// sources themselves, a netlist made of them, or what a packed bitstream unpacks to.
// docs/fpga.md describes the processor.
package rtl

import (
	"bufio"
	"context"
	"embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/program"
)

// Sources are the Verilog files.
//
//go:embed *.v
var Sources embed.FS

//go:embed harness/harness.cpp
var harness []byte

// files in the order in which tools read them.
var files = []string{"ram.v", "lanes.v", "drain.v", "processor.v", "overlay.v", "spi.v", "axilite.v"}

// Front is what stands between a host and the overlay.
type Front int

// The fronts. Bus is the bare bus of bytes, for simulations that are to be fast.
const (
	Bus Front = iota
	SPI
	AXILite
)

func (f Front) top() string {
	return [...]string{"overlay", "overlay_spi", "overlay_axilite"}[f]
}

// Design says what is simulated.
type Design struct {
	Front    Front
	Geometry program.Geometry
	UUID     [16]byte
	// Netlist, if it is set, lists Verilog files to be simulated instead of the sources, and Top is
	// their module with the front's pins.
	Netlist []string
	Top     string
	// Fast takes longer to build and less to run.
	Fast bool
}

// Installed reports whether Verilator and a C++ compiler are there.
func Installed() bool {
	for _, tool := range []string{"verilator", "g++", "make"} {
		if _, err := exec.LookPath(tool); err != nil {
			return false
		}
	}
	return true
}

// Build compiles a simulator of the design below the directory, and returns its path.
func Build(ctx context.Context, dir string, d Design) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "harness.cpp"), harness, 0o644); err != nil {
		return "", err
	}
	optimise := "-O0"
	if d.Fast {
		optimise = "-O2"
	}
	args := []string{"--cc", "--exe", "--build", "-Wno-fatal", "-Wno-lint", "-Wno-style", "-Wno-MULTITOP", "-Wno-UNOPTFLAT", "-DNO_ICE40_DEFAULT_ASSIGNMENTS", "--prefix", "Vdut", "-Mdir", "build",
		"-CFLAGS", fmt.Sprintf("%s -DFRONT=%d", optimise, d.Front), "-MAKEFLAGS", "OPT_FAST=" + optimise + " OPT_SLOW=-O0 OPT_GLOBAL=" + optimise,
		"--x-assign", "fast", "--x-initial", "fast", "-o", "simulator", "harness.cpp"}
	if len(d.Netlist) > 0 {
		args = append(args, "--top-module", d.Top)
		args = append(args, d.Netlist...)
	} else {
		g := d.Geometry
		args = append(args, "--top-module", d.Front.top(), fmt.Sprintf("-GN=%d", g.Lanes), fmt.Sprintf("-GACTIVATIONS=%d", g.Activations),
			fmt.Sprintf("-GBIASES=%d", g.Biases), fmt.Sprintf("-GPROGRAM=%d", g.Program), fmt.Sprintf("-GWEIGHTS=%d", g.Weights), fmt.Sprintf("-GTABLES=%d", g.Tables),
			"-GUUID=128'h"+hex.EncodeToString(d.UUID[:]))
		for _, name := range files {
			source, err := Sources.ReadFile(name)
			if err != nil {
				return "", err
			}
			if err := os.WriteFile(filepath.Join(dir, name), source, 0o644); err != nil {
				return "", err
			}
			args = append(args, name)
		}
	}
	cmd := exec.CommandContext(ctx, "verilator", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("verilator: %w\n%s", err, out)
	}
	return filepath.Join(dir, "build", "simulator"), nil
}

// Simulator is a process that simulates a design. It implements program.Device.
type Simulator struct {
	cmd *exec.Cmd
	in  *bufio.Writer
	end io.Closer
	out *bufio.Reader
}

// Start starts what Build made, with plusargs for its design. It ends with Close, or when ctx is done.
func Start(ctx context.Context, path string, args ...string) (*Simulator, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &Simulator{cmd: cmd, in: bufio.NewWriterSize(in, 64<<10), end: in, out: bufio.NewReaderSize(out, 64<<10)}, nil
}

// Close ends the process.
func (s *Simulator) Close() error {
	return errors.Join(s.in.Flush(), s.end.Close(), s.cmd.Wait())
}

// chunk is how much a command reads or writes at most.
const chunk = 32 << 10

func (s *Simulator) command(op byte, address uint32, n int) {
	b := append(make([]byte, 0, 9), op)
	b = binary.LittleEndian.AppendUint32(b, address)
	s.in.Write(binary.LittleEndian.AppendUint32(b, uint32(n))) //nolint:errcheck // Flush returns it
}

// Write implements program.Device. Errors may come with a later call only.
func (s *Simulator) Write(address uint32, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), chunk)
		s.command('W', address, n)
		if _, err := s.in.Write(b[:n]); err != nil {
			return err
		}
		address, b = address+uint32(n), b[n:]
	}
	return nil
}

// Read implements program.Device.
func (s *Simulator) Read(address uint32, b []byte) error {
	for len(b) > 0 {
		n := min(len(b), chunk)
		s.command('R', address, n)
		if err := s.in.Flush(); err != nil {
			return err
		}
		if _, err := io.ReadFull(s.out, b[:n]); err != nil {
			return err
		}
		address, b = address+uint32(n), b[n:]
	}
	return nil
}

// Wait implements program.Device: a processor may run for 2^24 cycles.
func (s *Simulator) Wait() error {
	s.in.WriteByte('P') //nolint:errcheck // Flush returns it
	if err := s.in.Flush(); err != nil {
		return err
	}
	late, err := s.out.ReadByte()
	if err == nil && late != 0 {
		err = atelier.Errorf(atelier.Unavailable, "the simulated overlay still runs after 2^24 cycles").
			WithRemedy("Check the program: its last layer must be marked as such.")
	}
	return err
}

// Cycles returns how many cycles the clock has made, those of the link included.
func (s *Simulator) Cycles() (uint64, error) {
	s.in.WriteByte('C') //nolint:errcheck // Flush returns it
	if err := s.in.Flush(); err != nil {
		return 0, err
	}
	var b [8]byte
	_, err := io.ReadFull(s.out, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}
