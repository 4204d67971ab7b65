//go:build linux

// Package fpgamgr drives a device through the FPGA manager of Linux.
//
// What the kernel has is looked for, not assumed: `name` and `state` (and mostly `status`)
// are in every kernel (Documentation/ABI/testing/sysfs-class-fpga-manager); `firmware`,
// `flags` and `key`, which let a program load an image, are in the kernels of a vendor
// only (drivers/fpga/fpga-mgr.c there, firmware_store, flags_store and key_store).
//
// It has met a simulated kernel (package kernelsim), and not yet a board.
package fpgamgr

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/program"
)

// Options say where things are.
type Options struct {
	// Class is the device's directory, such as /sys/class/fpga_manager/fpga0.
	Class string
	// Firmware is where the kernel looks for images, such as /lib/firmware.
	Firmware string
	// Overlay is the way to the overlay's address space; see package window.
	Overlay program.Device
}

// Driver drives one FPGA manager.
type Driver struct {
	options Options
	name    string
}

// maxName bounds the name of an image: firmware_store copies what it is given into a
// buffer of NAME_MAX bytes without looking at its length.
const maxName = 64

// maxAttribute is the size of the page that sysfs reads an attribute into.
const maxAttribute = 4096

// New looks for what the kernel has. An FPGA manager that cannot load gives an error with
// the code Unsupported.
func New(o Options) (*Driver, error) {
	d := &Driver{options: o}
	name, err := d.attribute("name")
	if err != nil {
		return nil, atelier.Errorf(atelier.NotFound, "there is no FPGA manager at %s: %w", o.Class, err).
			WithRemedy("Load the kernel's driver of the device, and look below /sys/class/fpga_manager.")
	}
	d.name = name
	if _, err := os.Stat(d.path("firmware")); err != nil {
		return nil, atelier.Errorf(atelier.Unsupported, "the FPGA manager %q of this kernel has no attribute 'firmware': it cannot be loaded from a program", name).
			WithRemedy("Use the kernel of the device's vendor, or another driver.")
	}
	return d, nil
}

func (d *Driver) path(attribute string) string { return filepath.Join(d.options.Class, attribute) }

func (d *Driver) attribute(name string) (string, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, maxAttribute)
	n, err := f.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return string(bytes.TrimRight(b[:n], "\n")), nil
}

// Kind implements driver.Driver.
func (d *Driver) Kind() string { return "fpgamgr" }

// Load implements driver.Driver. The kernel loads within one write(2), which nothing can
// interrupt.
func (d *Driver) Load(ctx context.Context, image []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name := "atelier-" + atelier.DigestOf(image).Short() + ".bin"
	if len(name) > maxName {
		return atelier.Errorf(atelier.Internal, "the image's name has %d bytes, at most %d are safe", len(name), maxName)
	}
	path := filepath.Join(d.options.Firmware, name)
	// The kernel reads it before the write below returns: nothing needs to be durable.
	if err := os.WriteFile(path, image, 0o600); err != nil {
		return atelier.Errorf(atelier.Unavailable, "cannot put the image where the kernel looks for it: %w", err)
	}
	defer os.Remove(path) // what stays is written over, and no larger than an image
	if _, err := os.Stat(d.path("flags")); err == nil {
		// Whatever somebody left there, such as partial reconfiguration, is not meant for this image.
		if err := d.set("flags", "0"); err != nil {
			return d.explain("set the flags of", err)
		}
	}
	if err := d.set("firmware", name); err != nil {
		return d.explain("load an image into", err)
	}
	return nil
}

// set writes an attribute at once, as sysfs wants it.
func (d *Driver) set(attribute, value string) error {
	f, err := os.OpenFile(d.path(attribute), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write([]byte(value + "\n"))
	return errors.Join(err, f.Close())
}

func (d *Driver) explain(doing string, err error) error {
	code, remedy := atelier.Unavailable, "Look at the kernel's log on the device."
	switch {
	case errors.Is(err, syscall.ENOENT):
		remedy = "Check that " + d.options.Firmware + " is where the kernel looks for firmware."
	case errors.Is(err, syscall.EINVAL):
		code, remedy = atelier.Invalid, "The device does not take this image: check that it is for this part."
	case errors.Is(err, syscall.ETIMEDOUT):
		code = atelier.Timeout
	case errors.Is(err, syscall.EBUSY):
		code, remedy = atelier.InUse, "Another program uses the FPGA manager."
	case errors.Is(err, fs.ErrPermission):
		code, remedy = atelier.Forbidden, "Run the program as a user who may write below "+d.options.Class+"."
	}
	state, _ := d.State(context.Background()) // for the message only
	return atelier.Errorf(code, "cannot %s the FPGA manager %q (state %q): %w", doing, d.name, state.Detail, err).WithRemedy("%s", remedy)
}

// phases are the words of Documentation/ABI/testing/sysfs-class-fpga-manager. What ends in
// "error" has failed.
var phases = map[string]driver.Phase{
	"power off": driver.Empty, "power up": driver.Empty, "reset": driver.Empty,
	"firmware request": driver.Loading, "write init": driver.Loading, "write": driver.Loading, "write complete": driver.Loading,
	"parse header": driver.Loading, "operating": driver.Operating,
}

// State implements driver.Driver.
func (d *Driver) State(context.Context) (driver.State, error) {
	word, err := d.attribute("state")
	if err != nil {
		return driver.State{Phase: driver.Unknown}, err
	}
	s := driver.State{Phase: phases[word], Detail: word}
	if strings.HasSuffix(word, " error") {
		s.Phase = driver.Failed
	}
	if s.Phase == "" {
		s.Phase = driver.Unknown
	}
	if status, err := d.attribute("status"); err == nil && status != "" {
		s.Detail += "; " + strings.ReplaceAll(status, "\n", "; ")
	}
	return s, nil
}

// Overlay implements driver.Driver.
func (d *Driver) Overlay() program.Device { return d.options.Overlay }

// Close implements driver.Driver.
func (d *Driver) Close() error {
	if c, ok := d.options.Overlay.(interface{ Close() error }); ok {
		return c.Close()
	}
	return nil
}
