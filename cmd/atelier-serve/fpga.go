package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/artifact"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/driver/fpgamgr"
	"github.com/atelier-edge/atelier/fpga/driver/ice40spi"
	"github.com/atelier-edge/atelier/fpga/driver/sim"
	"github.com/atelier-edge/atelier/fpga/driver/vendor"
	"github.com/atelier-edge/atelier/fpga/driver/window"
	"github.com/atelier-edge/atelier/fpga/programming"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/serving"
	"github.com/atelier-edge/atelier/serving/onnxruntime"
	"github.com/atelier-edge/atelier/targets/fpgahost"
)

// fpgaConfig says how a model is served from an FPGA.
type fpgaConfig struct {
	driver, model, overlay, golden, keys, state string
	part, shell, idcode                         string
	class, firmware, window                     string
	card                                        string
	pins                                        ice40spi.Pins
}

// The drivers that can be named.
const (
	fpgaSim     = "sim"
	fpgaManager = "fpgamgr"
	fpgaSPI     = "ice40spi"
	fpgaXRT     = "xrt"
	fpgaOPAE    = "opae"
)

var fpgaDrivers = []string{fpgaSim, fpgaManager, fpgaSPI, fpgaXRT, fpgaOPAE}

func (c *fpgaConfig) flags(flags *flag.FlagSet) {
	flags.StringVar(&c.driver, "fpga", "", "serve from an FPGA with this `DRIVER`: sim (the cycle model, no device); fpgamgr (Linux' FPGA manager), ice40spi, xrt, opae (none of them has run on a board yet)")
	flags.StringVar(&c.model, "fpga-model", "", "the model compiled for the overlay, a `FILE`; --model and --runtime are then for the CPU, which answers when the FPGA is out of use (none: nothing does)")
	flags.StringVar(&c.overlay, "fpga-overlay", "", "the overlay's package, a `DIRECTORY` with "+artifact.ManifestPath+", "+artifact.ImagePath+" and "+artifact.GoldenPath)
	flags.StringVar(&c.golden, "fpga-golden", "", "the package to go back to when nothing else works, a `DIRECTORY` (default that of --fpga-overlay)")
	flags.StringVar(&c.keys, "fpga-keys", "", "public keys that may sign overlays, a JSON `FILE`: a list of SubjectPublicKeyInfos in base64")
	flags.StringVar(&c.state, "fpga-state", "", "`DIRECTORY` for the journal of the device")
	flags.StringVar(&c.part, "fpga-part", "", "the device's `PART`, such as hx8k (default sim with --fpga sim)")
	flags.StringVar(&c.shell, "fpga-shell", "", "the `UUID` of the device's shell, where it has one")
	flags.StringVar(&c.idcode, "fpga-idcode", "", "the device's JTAG identification, such as 0x0362d093, where it has one")
	flags.StringVar(&c.class, "fpga-class", "/sys/class/fpga_manager/fpga0", "the FPGA manager's `DIRECTORY`, with --fpga fpgamgr")
	flags.StringVar(&c.firmware, "fpga-firmware", "/lib/firmware", "`DIRECTORY` in which the kernel looks for images, with --fpga fpgamgr")
	flags.StringVar(&c.window, "fpga-window", "/dev/uio0", "`FILE` to map the overlay's address space from, with --fpga fpgamgr, xrt and opae")
	flags.StringVar(&c.card, "fpga-card", "", "the card's `FUNCTION` on the bus, such as 0000:b3:00.1, with --fpga xrt and opae")
	flags.StringVar(&c.pins.SPI, "fpga-spi", "/dev/spidev0.0", "the SPI `DEVICE`, with --fpga ice40spi")
	flags.StringVar(&c.pins.GPIO, "fpga-gpio", "/dev/gpiochip0", "the GPIO `DEVICE` of CRESET_B and CDONE, with --fpga ice40spi")
	c.pins.Hertz = 1_000_000
	for name, to := range map[string]*uint32{"hertz": &c.pins.Hertz, "reset-line": &c.pins.Reset, "done-line": &c.pins.Done} {
		flags.Func("fpga-"+name, "`NUMBER` for --fpga ice40spi", func(s string) error {
			v, err := strconv.ParseUint(s, 10, 32)
			*to = uint32(v)
			return err
		})
	}
}

func (c *fpgaConfig) given() bool { return c.driver != "" }

func (c *fpgaConfig) check(all *config) error {
	if !slices.Contains(fpgaDrivers, c.driver) {
		return fmt.Errorf("--fpga is %q, expected was one of %v", c.driver, fpgaDrivers)
	}
	if all.predictor.given() || all.script.script != "" {
		return errors.New("--fpga goes with ONNX models only")
	}
	if c.part == "" && c.driver == fpgaSim {
		c.part = bitstream.SimulatedPart
	}
	for name, value := range map[string]string{"--fpga-model": c.model, "--fpga-overlay": c.overlay, "--fpga-keys": c.keys, "--fpga-state": c.state, "--fpga-part": c.part} {
		if value == "" {
			return fmt.Errorf("%s is missing; see atelier-serve --help", name)
		}
	}
	if (all.model == "") != (all.runtime == "") {
		return errors.New("--model and --runtime go together")
	}
	return nil
}

// overlayPackage reads an overlay's package, with its golden model.
func overlayPackage(dir string) (programming.Package, error) {
	var p programming.Package
	for name, to := range map[string]*[]byte{artifact.ManifestPath: &p.Manifest, artifact.ImagePath: &p.Image, artifact.GoldenPath: &p.Model} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return p, err
		}
		*to = b
	}
	return p, nil
}

// options are what the programmer needs.
func (c *fpgaConfig) options(log *slog.Logger) (o programming.Options, err error) {
	o = programming.Options{Dir: c.state, Target: artifact.Target{Part: c.part}, Log: log}
	if c.shell != "" {
		err = o.Target.Shell.UnmarshalText([]byte(c.shell))
	}
	if c.idcode != "" {
		err = errors.Join(err, o.Target.IDCode.UnmarshalText([]byte(c.idcode)))
	}
	b, failed := os.ReadFile(c.keys)
	var keys []trust.PublicKey
	if err = errors.Join(err, failed); err == nil {
		err = json.Unmarshal(b, &keys)
	}
	if err != nil {
		return o, err
	}
	o.Keys = trust.NewKeySet(keys...)
	golden := c.golden
	if golden == "" {
		golden = c.overlay
	}
	if o.Golden, err = overlayPackage(golden); err != nil {
		return o, err
	}
	d, err := c.open(bitstream.UUID(o.Target.Shell))
	if err != nil {
		return o, err
	}
	o.Driver = driver.NewGuard(d)
	return o, nil
}

// open opens the driver.
func (c *fpgaConfig) open(shell bitstream.UUID) (driver.Driver, error) {
	switch c.driver {
	case fpgaSim:
		return sim.New(fpgaSim, board.New(board.Options{Part: c.part, Shell: shell})), nil
	case fpgaSPI:
		bus, err := ice40spi.Open(c.pins)
		if err != nil {
			return nil, err
		}
		return ice40spi.New(bus), nil
	}
	overlay, err := window.NewMap(c.window, 0)
	if err != nil {
		return nil, err
	}
	if c.driver == fpgaManager {
		return fpgamgr.New(fpgamgr.Options{Class: c.class, Firmware: c.firmware, Overlay: overlay})
	}
	card, err := vendor.ParseCard(c.card)
	if err != nil {
		return nil, err
	}
	v := vendor.Options{Card: card, Overlay: overlay}
	if c.driver == fpgaXRT {
		return vendor.NewXRT(v), nil
	}
	return vendor.NewOPAE(v), nil
}

// loadFPGA programs the device, and proves model and device: golden inputs on the FPGA bit for
// bit, and against the CPU within the model's tolerance.
func loadFPGA(ctx context.Context, c config, log *slog.Logger) (*serving.Model, error) {
	text, err := os.ReadFile(c.fpga.model)
	if err != nil {
		return nil, &exitError{exitModel, err}
	}
	compiled, err := artifact.ParseModel(text)
	if err != nil {
		return nil, &exitError{exitModel, err}
	}
	var cpu serving.Engine
	if c.model != "" {
		library, err := onnxruntime.Load(c.runtime)
		if err != nil {
			return nil, &exitError{exitRuntime, err}
		}
		if cpu, err = library.Open(c.model, onnxruntime.Options{Threads: c.threads, Spin: c.spin}); err != nil {
			return nil, &exitError{exitModel, err}
		}
	}
	closing := func(err error, code int) error {
		if cpu != nil {
			err = errors.Join(err, cpu.Close())
		}
		return &exitError{code, err}
	}
	if err := fpgahost.Compare(ctx, compiled, cpu); err != nil {
		return nil, closing(err, exitGolden)
	}
	pkg, err := overlayPackage(c.fpga.overlay)
	if err != nil {
		return nil, closing(err, exitModel)
	}
	pkg.Model = text
	device, err := programDevice(ctx, c, pkg, log)
	why := ""
	if err != nil {
		if cpu == nil {
			if device != nil {
				err = errors.Join(err, device.Close(context.WithoutCancel(ctx)))
			}
			return nil, closing(err, exitRuntime)
		}
		why = err.Error()
		log.Error("the CPU serves", "reason", atelier.ReasonCPUFallback, "because", programming.WhyOf(err))
	}
	// The device may have run the same model from before: what it runs is what was programmed last.
	serve := compiled
	if why == "" {
		if now := device.Model(); now != nil {
			serve = now
		}
	}
	engine := fpgahost.New(device, serve, cpu, why, log)
	model := serving.NewModel(c.name, c.version, engine, concurrency(c, 1))
	model.Deadline = c.deadline
	if err := prove(ctx, c, model, log); err != nil {
		return nil, errors.Join(err, model.Close())
	}
	s := engine.Status()
	log.Info("loaded", "provider", s.Provider, "driver", c.fpga.driver, "on", s.On, "image", s.Image.Short(), "overlay", s.Overlay, "cycles", serve.Cycles,
		"loads", s.Loads, "rollbacks", s.Rollbacks, "took", total(s.Took))
	return model, nil
}

// programDevice takes the device and puts the package on it. Where that fails, the device may be
// there all the same.
func programDevice(ctx context.Context, c config, pkg programming.Package, log *slog.Logger) (*programming.Programmer, error) {
	o, err := c.fpga.options(log)
	if err != nil {
		return nil, err
	}
	device, err := programming.Open(ctx, o)
	if err != nil {
		return nil, errors.Join(err, o.Driver.Close(ctx))
	}
	return device, device.Program(ctx, pkg, nil) // nobody asks it anything yet
}

func total(took map[programming.Step]time.Duration) (sum time.Duration) {
	for _, d := range took {
		sum += d
	}
	return sum
}

// fpgaRoute answers GET /v2/fpga with what is known of the device, and leaves everything
// else to next.
type fpgaRoute struct {
	next  http.Handler
	model atomic.Pointer[serving.Model]
}

func (f *fpgaRoute) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m := f.model.Load()
	if m == nil || r.Method != http.MethodGet || r.URL.Path != "/v2/fpga" {
		f.next.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if e, ok := m.Engine.(*fpgahost.Engine); ok {
		_ = json.NewEncoder(w).Encode(e.Status()) // a client that is gone misses it
	}
}
