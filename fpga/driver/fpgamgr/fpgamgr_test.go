//go:build linux

package fpgamgr_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/bitstream/bitstreamtest"
	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/driver/drivertest"
	"github.com/atelier-edge/atelier/fpga/driver/fpgamgr"
	"github.com/atelier-edge/atelier/fpga/driver/window"
	"github.com/atelier-edge/atelier/fpga/kernelsim"
	"github.com/atelier-edge/atelier/fpga/program"
)

var geometry = program.Geometry{Lanes: 8, Activations: 10, Biases: 8, Program: 6, Weights: 10, Tables: 9}

// kernel mounts a simulated kernel with an HX8K, which the images become.
func kernel(t *testing.T, vendor bool) (k *kernelsim.Kernel, firmware string, images [2][]byte, designs [2]board.Design) {
	t.Helper()
	known := map[atelier.Digest]board.Design{}
	for i := range images {
		images[i], designs[i] = bitstreamtest.ICE40("hx8k", byte(i+1)), board.Design{Geometry: geometry, UUID: [16]byte{byte(i + 1)}}
		known[atelier.DigestOf(images[i])] = designs[i]
	}
	firmware = t.TempDir()
	k, err := kernelsim.Mount(t.TempDir(), kernelsim.Options{Board: board.New(board.Options{Part: "hx8k", Designs: known}), Firmware: firmware, Vendor: vendor})
	if err != nil {
		if os.Getenv("CI") != "true" && (os.Geteuid() != 0 || errors.Is(err, syscall.ENOENT)) {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if k.Oops() {
			t.Error("the kernel died")
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k, firmware, images, designs
}

func TestConformance(t *testing.T) {
	t.Parallel()
	drivertest.Run(t, func(t *testing.T) drivertest.Bench {
		k, firmware, images, designs := kernel(t, true)
		overlay, err := window.Open(k.Window, 0)
		if err != nil {
			t.Fatal(err)
		}
		d, err := fpgamgr.New(fpgamgr.Options{Class: k.Class, Firmware: firmware, Overlay: overlay})
		if err != nil {
			t.Fatal(err)
		}
		b := drivertest.Bench{Driver: d, Images: images, Bad: bitstreamtest.ICE40("up5k", 1)}
		for i, design := range designs {
			b.Identities[i] = program.Identity{ISA: program.ISA, Geometry: design.Geometry, UUID: design.UUID}
		}
		return b
	})
}

// TestMainline has a kernel that cannot load from a program.
func TestMainline(t *testing.T) {
	t.Parallel()
	k, firmware, _, _ := kernel(t, false)
	if _, err := fpgamgr.New(fpgamgr.Options{Class: k.Class, Firmware: firmware}); atelier.CodeOf(err) != atelier.Unsupported {
		t.Errorf("%v, want unsupported", err)
	}
	if _, err := fpgamgr.New(fpgamgr.Options{Class: k.Class + "1", Firmware: firmware}); atelier.CodeOf(err) != atelier.NotFound {
		t.Errorf("%v, want not found", err)
	}
}

// TestErrnos are the kernel's, as the driver explains them.
func TestErrnos(t *testing.T) {
	t.Parallel()
	k, firmware, images, _ := kernel(t, true)
	d, err := fpgamgr.New(fpgamgr.Options{Class: k.Class, Firmware: firmware})
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := fpgamgr.New(fpgamgr.Options{Class: k.Class, Firmware: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Load(t.Context(), images[0]); !errors.Is(err, syscall.ENOENT) || !strings.Contains(err.Error(), "firmware request error") {
		t.Errorf("an image that the kernel does not find: %v", err)
	}
	if err := d.Load(t.Context(), []byte("x")); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "write complete error") {
		t.Errorf("no image: %v", err)
	}
	if left, err := os.ReadDir(firmware); err != nil || len(left) > 0 {
		t.Errorf("images are left behind: %v, %v", left, err)
	}
	// What others did to the manager does not last.
	if err := os.WriteFile(filepath.Join(k.Class, "flags"), []byte("1\n"), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Load(t.Context(), images[0]); err != nil {
		t.Error(err)
	}
	// What sysfs does not allow root either.
	if _, err := os.ReadFile(filepath.Join(k.Class, "firmware")); !errors.Is(err, syscall.EACCES) {
		t.Errorf("firmware can be read: %v", err)
	}
	if err := os.WriteFile(filepath.Join(k.Class, "state"), []byte("operating\n"), 0); !errors.Is(err, syscall.EACCES) {
		t.Errorf("state can be written: %v", err)
	}
	if err := os.WriteFile(filepath.Join(k.Class, "new"), nil, 0o600); !errors.Is(err, syscall.EACCES) {
		t.Errorf("files can be made: %v", err)
	}
	if err := os.WriteFile(filepath.Join(k.Class, "flags"), []byte("what\n"), 0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("flags that are none: %v", err)
	}
}
