//go:build unix

// Package window reaches an overlay's address space through a file: mapped into memory,
// as UIO and PCI devices offer it, or read and written at offsets.
package window

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/driver"
)

// Size is the overlay's address space, in bytes.
const Size = 1 << 24

// busyTime bounds an inference.
const busyTime = 10 * time.Second

// File is an address space that is read and written at offsets. It implements
// program.Device.
type File struct {
	file *os.File
	base int64
}

// Open opens the file at path, in which the overlay's space begins at base.
func Open(path string, base int64) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, unreachable(path, err)
	}
	return &File{f, base}, nil
}

// Write implements program.Device.
func (f *File) Write(address uint32, b []byte) error {
	_, err := f.file.WriteAt(b, f.base+int64(address))
	return err
}

// Read implements program.Device.
func (f *File) Read(address uint32, b []byte) error {
	_, err := f.file.ReadAt(b, f.base+int64(address))
	return err
}

// Wait implements program.Device.
func (f *File) Wait() error { return driver.Await(f, busyTime) }

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

// Map is an address space that is mapped into memory. It implements program.Device.
type Map struct{ memory []byte }

// NewMap maps Size bytes of the file at path from base on, a multiple of the page's size:
// of /dev/uio0, or of a resource0 of a PCI device.
func NewMap(path string, base int64) (*Map, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		return nil, unreachable(path, err)
	}
	defer f.Close()
	memory, err := unix.Mmap(int(f.Fd()), base, Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, unreachable(path, err)
	}
	return &Map{memory}, nil
}

func unreachable(path string, err error) error {
	return atelier.Errorf(atelier.Unavailable, "the overlay's address space cannot be reached through %s: %w", path, err).
		WithRemedy("Check that the device is there, and that this program may use it.")
}

// Write implements program.Device: whole words of 32 bits where there are any, single
// bytes at the ends.
func (m *Map) Write(address uint32, b []byte) error {
	return m.guarded(address, len(b), func() {
		for i := 0; i < len(b); {
			if at := int(address) + i; at%4 == 0 && len(b)-i >= 4 {
				atomic.StoreUint32(m.word(at), uint32(b[i])|uint32(b[i+1])<<8|uint32(b[i+2])<<16|uint32(b[i+3])<<24)
				i += 4
			} else {
				m.memory[at] = b[i]
				i++
			}
		}
	})
}

// Read implements program.Device, in whole words.
func (m *Map) Read(address uint32, b []byte) error {
	return m.guarded(address, len(b), func() {
		for i := 0; i < len(b); {
			at := int(address) + i
			word := atomic.LoadUint32(m.word(at &^ 3))
			for ; i < len(b) && int(address)+i < at&^3+4; i++ {
				b[i] = byte(word >> (8 * ((int(address) + i) % 4)))
			}
		}
	})
}

func (m *Map) word(at int) *uint32 { return (*uint32)(unsafe.Pointer(&m.memory[at])) }

// guarded turns the fault that a bus without an answer ends in into an error.
func (m *Map) guarded(address uint32, n int, access func()) (err error) {
	if int64(address)+int64(n) > int64(len(m.memory)) {
		return fmt.Errorf("%d bytes at %#x are outside of the overlay's address space", n, address)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if fault, ok := r.(interface{ Addr() uintptr }); ok {
				err = atelier.Errorf(atelier.Unavailable, "the device does not answer at %#x of its address space (%#x)", address, fault.Addr()).
					WithRemedy("Program the overlay anew; when it happens again, the link or the device is faulty.")
				return
			}
			panic(r)
		}
	}()
	access()
	return nil
}

// Wait implements program.Device.
func (m *Map) Wait() error { return driver.Await(m, busyTime) }

// Close unmaps the memory.
func (m *Map) Close() error {
	err := unix.Munmap(m.memory)
	m.memory = nil
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}
