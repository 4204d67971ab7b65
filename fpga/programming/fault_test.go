//go:build linux

package programming_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/artifact"
	"github.com/atelier-edge/atelier/fpga/artifact/artifacttest"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/bitstream/bitstreamtest"
	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/driver/fpgamgr"
	"github.com/atelier-edge/atelier/fpga/driver/window"
	"github.com/atelier-edge/atelier/fpga/kernelsim"
	"github.com/atelier-edge/atelier/fpga/programming"
	"github.com/atelier-edge/atelier/internal/trust"
)

// world is a device behind a simulated kernel, with packages for it: golden, and two more.
type world struct {
	board    *board.Board
	kernel   *kernelsim.Kernel
	firmware string
	dir      string
	target   artifact.Target
	signer   trust.Signer
	keys     trust.KeySet
	golden   programming.Package
	a, b     programming.Package
	designs  map[atelier.Digest]board.Design
}

const shell = "69528db6-eb31-577a-8c36-68f9faa081f6"

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// sign makes a package of an image, with what change does to its manifest.
func (w *world) sign(t *testing.T, image []byte, uuid artifact.UUID, change func(*artifact.Overlay)) programming.Package {
	t.Helper()
	_, model := artifacttest.Model(t, uuid, uint64(uuid[0]))
	format := bitstream.ICE40
	switch {
	case w.target.Shell != (artifact.UUID{}):
		format = bitstream.GBS
	case w.target.Part == bitstream.SimulatedPart:
		format = bitstream.Simulation
	}
	o := artifacttest.Overlay(format, w.target.Part, uuid, image, model)
	o.Shell = w.target.Shell
	if change != nil {
		change(o)
	}
	manifest, err := o.Sign(w.signer)
	if err != nil {
		t.Fatal(err)
	}
	return programming.Package{Manifest: manifest, Image: image, Model: model}
}

// hx8k are images that are made once, since their checksums take a while.
var hx8k = sync.OnceValue(func() (images [3][]byte) {
	for i := range images {
		images[i] = bitstreamtest.ICE40("hx8k", byte(i+1))
	}
	return images
})

// packages makes the packages for the world's target.
func packages(t *testing.T, w *world) {
	t.Helper()
	w.signer, w.keys = artifacttest.Key(t)
	w.designs = map[atelier.Digest]board.Design{}
	for i, p := range []*programming.Package{&w.golden, &w.a, &w.b} {
		uuid := artifact.UUID{byte(i + 1)}
		design := board.Design{Geometry: artifacttest.Geometry, UUID: uuid}
		var image []byte
		switch {
		case w.target.Shell != (artifact.UUID{}):
			image = bitstreamtest.GBS(shell, 1000*(i+1))
		case w.target.Part == bitstream.SimulatedPart:
			image = design.Image()
		default:
			image = hx8k()[i]
		}
		w.designs[atelier.DigestOf(image)] = design
		*p = w.sign(t, image, uuid, nil)
	}
}

// newWorld has an HX8K, or with a shell a device whose images are for one.
func newWorld(t *testing.T, withShell bool) *world {
	t.Helper()
	w := &world{firmware: t.TempDir(), dir: t.TempDir(), target: artifact.Target{Part: "hx8k"}}
	var boardShell bitstream.UUID
	if withShell {
		if err := w.target.Shell.UnmarshalText([]byte(shell)); err != nil {
			t.Fatal(err)
		}
		w.target.Part, boardShell = "d5005", bitstream.UUID(w.target.Shell)
	}
	packages(t, w)
	w.board = board.New(board.Options{Part: w.target.Part, Shell: boardShell, Designs: w.designs})
	k, err := kernelsim.Mount(t.TempDir(), kernelsim.Options{Board: w.board, Firmware: w.firmware, Vendor: true})
	if err != nil {
		if os.Getenv("CI") != "true" && (os.Geteuid() != 0 || errors.Is(err, syscall.ENOENT)) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	w.kernel = k
	t.Cleanup(func() {
		if k.Oops() {
			t.Error("the kernel died")
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func openAt(ctx context.Context, dir, class, windowPath, firmware string, o programming.Options) (*programming.Programmer, error) {
	overlay, err := window.Open(windowPath, 0)
	if err != nil {
		return nil, err
	}
	d, err := fpgamgr.New(fpgamgr.Options{Class: class, Firmware: firmware, Overlay: overlay})
	if err != nil {
		return nil, err
	}
	o.Dir, o.Driver, o.Log = dir, driver.NewGuard(d), quiet()
	p, err := programming.Open(ctx, o)
	if err != nil {
		err = errors.Join(err, o.Driver.Close(ctx))
	}
	return p, err
}

func (w *world) open(t *testing.T, limits programming.Limits) *programming.Programmer {
	t.Helper()
	p, err := openAt(t.Context(), w.dir, w.kernel.Class, w.kernel.Window, w.firmware,
		programming.Options{Target: w.target, Keys: w.keys, Golden: w.golden, Limits: limits})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func closing(t *testing.T, p *programming.Programmer) {
	t.Helper()
	t.Cleanup(func() {
		if err := p.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// runs sees that the device holds the package, says so, and computes what its model computes.
func (w *world) runs(t *testing.T, p *programming.Programmer, pkg programming.Package, place programming.Place) {
	t.Helper()
	s := p.Status()
	held, _ := w.board.Loaded()
	if s.On != place || s.Image != atelier.DigestOf(pkg.Image) || s.Model != atelier.DigestOf(pkg.Model) || held != s.Image {
		t.Errorf("the device is said to be on %q with the image %s, and holds %s; want %q with %s", s.On, s.Image.Short(), held.Short(), place, atelier.DigestOf(pkg.Image).Short())
		return
	}
	m := p.Model()
	for _, g := range m.Golden {
		got, err := p.Infer(t.Context(), m, g.Input)
		if err != nil || !slices.Equal(got.Outputs, g.Output) {
			t.Errorf("it gives %v (%v), want %v", got.Outputs, err, g.Output)
		}
	}
}

// TestFaults is the table of what goes wrong: where the device ends, and why.
func TestFaults(t *testing.T) {
	t.Parallel()
	foreign, _ := artifacttest.Key(t)
	for _, c := range []struct {
		name   string
		shell  bool
		breaks []board.Fault
		pkg    func(t *testing.T, w *world) programming.Package
		reason atelier.Reason
		step   programming.Step
		on     programming.Place // what the failure says
	}{
		{name: "good"},
		{name: "good, with a shell", shell: true},
		{name: "corrupt digest", reason: atelier.ReasonDigestMismatch, step: programming.Verify, on: programming.Unchanged,
			pkg: func(_ *testing.T, w *world) programming.Package {
				w.b.Image = slices.Clone(w.b.Image)
				w.b.Image[5000] ^= 1
				return w.b
			}},
		{name: "truncated", reason: atelier.ReasonDigestMismatch, step: programming.Verify, on: programming.Unchanged,
			pkg: func(_ *testing.T, w *world) programming.Package {
				w.b.Image = w.b.Image[:len(w.b.Image)/2]
				return w.b
			}},
		{name: "truncated before it was signed", reason: atelier.ReasonImageInvalid, step: programming.Check, on: programming.Unchanged,
			pkg: func(t *testing.T, w *world) programming.Package {
				return w.sign(t, w.b.Image[:len(w.b.Image)/2], artifact.UUID{3}, nil)
			}},
		{name: "bad CRC", reason: atelier.ReasonImageInvalid, step: programming.Check, on: programming.Unchanged,
			pkg: func(t *testing.T, w *world) programming.Package {
				image := slices.Clone(w.b.Image)
				image[5000] ^= 1
				return w.sign(t, image, artifact.UUID{3}, nil)
			}},
		{name: "foreign signature", reason: atelier.ReasonKeyUnknown, step: programming.Verify, on: programming.Unchanged,
			pkg: func(t *testing.T, w *world) programming.Package {
				w.signer = foreign
				return w.sign(t, w.b.Image, artifact.UUID{3}, nil)
			}},
		{name: "wrong part", reason: atelier.ReasonDeviceMismatch, step: programming.Check, on: programming.Unchanged,
			pkg: func(t *testing.T, w *world) programming.Package {
				return w.sign(t, bitstreamtest.ICE40("up5k", 3), artifact.UUID{3}, func(o *artifact.Overlay) { o.Part = "up5k" })
			}},
		{name: "part that the image contradicts", reason: atelier.ReasonImageInvalid, step: programming.Check, on: programming.Unchanged,
			pkg: func(t *testing.T, w *world) programming.Package {
				return w.sign(t, bitstreamtest.ICE40("up5k", 3), artifact.UUID{3}, nil)
			}},
		{name: "wrong shell", shell: true, reason: atelier.ReasonDeviceMismatch, step: programming.Check, on: programming.Unchanged,
			pkg: func(t *testing.T, w *world) programming.Package {
				const other = "11111111-eb31-577a-8c36-68f9faa081f6"
				return w.sign(t, bitstreamtest.GBS(other, 3000), artifact.UUID{3}, func(o *artifact.Overlay) {
					if err := o.Shell.UnmarshalText([]byte(other)); err != nil {
						t.Fatal(err)
					}
				})
			}},
		{name: "model for another overlay", reason: atelier.ReasonDeviceMismatch, step: programming.Check, on: programming.Unchanged,
			pkg: func(_ *testing.T, w *world) programming.Package { w.b.Model = w.a.Model; return w.b }},
		{name: "corrupted in flight", breaks: []board.Fault{board.Corrupt}, reason: atelier.ReasonProgrammingFailed, step: programming.Load, on: programming.LastGood},
		{name: "dead after load", breaks: []board.Fault{board.Dead}, reason: atelier.ReasonProgrammingFailed, step: programming.Identify, on: programming.LastGood},
		{name: "wrong overlay after load", breaks: []board.Fault{board.Identity}, reason: atelier.ReasonProgrammingFailed, step: programming.Identify, on: programming.LastGood},
		{name: "computes wrongly", breaks: []board.Fault{board.Wrong}, reason: atelier.ReasonGoldenFailed, step: programming.Golden, on: programming.LastGood},
		{name: "and the last good one once", breaks: []board.Fault{board.Dead, board.Dead}, reason: atelier.ReasonProgrammingFailed, step: programming.Identify, on: programming.LastGood},
		{name: "and the last good one", breaks: []board.Fault{board.Dead, board.Dead, board.Corrupt}, reason: atelier.ReasonProgrammingFailed, step: programming.Identify, on: programming.GoldenOnly},
		{name: "and everything", breaks: []board.Fault{board.Dead, board.Dead, board.Dead, board.Dead, board.Dead}, reason: atelier.ReasonProgrammingFailed, step: programming.Identify, on: programming.Nowhere},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.shell)
			p := w.open(t, programming.Limits{})
			defer func() {
				if err := p.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			w.runs(t, p, w.golden, programming.GoldenOnly)
			if err := p.Program(t.Context(), w.a, nil); err != nil {
				t.Fatal(err)
			}
			w.runs(t, p, w.a, programming.New)
			_, loads := w.board.Loaded()
			w.board.Break(c.breaks...)
			pkg := w.b
			if c.pkg != nil {
				pkg = c.pkg(t, w)
			}
			begin := time.Now()
			err := p.Program(t.Context(), pkg, nil)
			took := time.Since(begin)
			if c.reason == "" {
				if err != nil {
					t.Fatal(err)
				}
				w.runs(t, p, w.b, programming.New)
				t.Logf("programmed after %v", took)
				return
			}
			var f *programming.Failure
			if !errors.As(err, &f) || f.Reason != c.reason || f.Step != c.step || f.On != c.on {
				t.Fatalf("%+v, want %s at %q and then %q", err, c.reason, c.step, c.on)
			}
			t.Logf("%s after %v: %v", c.on, took, err)
			switch c.on {
			case programming.Unchanged:
				if _, now := w.board.Loaded(); now != loads {
					t.Errorf("%d images were loaded", now-loads)
				}
				w.runs(t, p, w.a, programming.New)
			case programming.LastGood:
				w.runs(t, p, w.a, programming.LastGood)
			case programming.GoldenOnly:
				w.runs(t, p, w.golden, programming.GoldenOnly)
			case programming.Nowhere:
				w.quarantined(t, p)
			}
		})
	}
}

// quarantined sees that nobody uses the device, and that a new process brings it back to its
// golden image.
func (w *world) quarantined(t *testing.T, p *programming.Programmer) {
	t.Helper()
	if q := p.Status().Quarantine; q == nil || q.Reason() != atelier.ReasonQuarantined || p.Model() != nil {
		t.Errorf("the status is %+v", p.Status())
	}
	var f *programming.Failure
	if err := p.Program(t.Context(), w.a, nil); !errors.As(err, &f) || f.Reason != atelier.ReasonQuarantined {
		t.Errorf("a device in quarantine is programmed: %v", err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := w.open(t, programming.Limits{})
	closing(t, again)
	w.runs(t, again, w.golden, programming.GoldenOnly)
	if err := again.Program(t.Context(), w.a, nil); err != nil {
		t.Error(err)
	}
}

// TestHang has a driver that hangs for a while, and one that hangs for good.
func TestHang(t *testing.T) {
	t.Parallel()
	for _, forGood := range []bool{false, true} {
		t.Run(fmt.Sprint(forGood), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, false)
			limits := programming.Limits{Load: 2 * time.Second, Patience: time.Minute}
			if forGood {
				limits = programming.Limits{Load: time.Second, Patience: 100 * time.Millisecond}
			}
			p := w.open(t, limits)
			if err := p.Program(t.Context(), w.a, nil); err != nil {
				t.Fatal(err)
			}
			w.board.Break(board.Hang)
			release := sync.OnceFunc(w.board.Release)
			defer release()
			result := make(chan error, 1)
			go func() { result <- p.Program(t.Context(), w.b, nil) }()
			for w.board.Phase() != board.Loading {
				time.Sleep(time.Millisecond)
			}
			// Whoever asks is answered meanwhile.
			if s := p.Status(); s.Quarantine != nil {
				t.Error(s)
			}
			if !forGood {
				time.Sleep(limits.Load + limits.Load/2) // beyond the deadline: this is what is tested
				release()
			}
			err := <-result
			var f *programming.Failure
			if !errors.As(err, &f) || f.Reason != atelier.ReasonDriverDown || f.Step != programming.Load {
				t.Fatalf("%v", err)
			}
			if forGood {
				if f.On != programming.Nowhere || p.Status().Quarantine == nil {
					t.Errorf("%v, %+v", err, p.Status())
				}
				release()
				w.quarantined(t, p)
				return
			}
			closing(t, p)
			if f.On != programming.LastGood {
				t.Errorf("%v", err)
			}
			w.runs(t, p, w.a, programming.LastGood)
		})
	}
}

// TestManyAtOnce lets 16 program the same device.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, false)
	p := w.open(t, programming.Limits{})
	closing(t, p)
	const many = 16
	refused := make(chan struct{}, many)
	results := make(chan error, many)
	for range many {
		go func() {
			err := p.Program(t.Context(), w.a, func(context.Context) error {
				for range many - 1 { // the one that has it waits until the others were refused
					<-refused
				}
				return nil
			})
			if err != nil {
				refused <- struct{}{}
			}
			results <- err
		}()
	}
	won := 0
	for range many {
		switch err := <-results; atelier.CodeOf(err) {
		case atelier.InUse:
		default:
			won++
			if err != nil {
				t.Error(err)
			}
		}
	}
	if won != 1 {
		t.Errorf("%d of %d have programmed the device", won, many)
	}
	w.runs(t, p, w.a, programming.New)
	// Another process does not get the device either.
	_, err := openAt(t.Context(), w.dir, w.kernel.Class, w.kernel.Window, w.firmware, programming.Options{Target: w.target, Keys: w.keys, Golden: w.golden})
	if atelier.CodeOf(err) != atelier.InUse {
		t.Errorf("%v, want in use", err)
	}
}

// TestPowerOfTheDevice empties the device between two processes: it takes again what it ran.
func TestPowerOfTheDevice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, false)
	p := w.open(t, programming.Limits{})
	if err := p.Program(t.Context(), w.a, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, loads := w.board.Loaded()
	p = w.open(t, programming.Limits{}) // it runs still: nothing is loaded
	w.runs(t, p, w.a, programming.LastGood)
	if _, now := w.board.Loaded(); now != loads {
		t.Errorf("%d images were loaded though the device runs what it should", now-loads)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.kernel.CutPower()
	p = w.open(t, programming.Limits{})
	closing(t, p)
	w.runs(t, p, w.a, programming.LastGood)
	if files, err := os.ReadDir(filepath.Join(w.dir, "parts")); err != nil || len(files) != 6 {
		t.Errorf("the directory has %d parts (%v), want those of two packages", len(files), err)
	}
	// A journal that cannot be read tells nothing.
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "journal.json"), []byte(`{"format":1,"current":`), 0o600); err != nil {
		t.Fatal(err)
	}
	p = w.open(t, programming.Limits{})
	closing(t, p)
	w.runs(t, p, w.golden, programming.GoldenOnly)
	if err := p.Program(t.Context(), w.a, nil); err != nil {
		t.Fatal(err)
	}
	// The same overlay with another model: no image is loaded.
	_, loads = w.board.Loaded()
	other := w.a
	_, other.Model = artifacttest.Model(t, artifact.UUID{2}, 99)
	if err := p.Program(t.Context(), other, nil); err != nil {
		t.Fatal(err)
	}
	w.runs(t, p, other, programming.New)
	if _, now := w.board.Loaded(); now != loads {
		t.Errorf("%d images were loaded for another model of the same overlay", now-loads)
	}
}
