package ice40spi

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
)

// Pins name an SPI device and two lines of a GPIO chip.
type Pins struct {
	SPI         string // such as /dev/spidev0.0
	Hertz       uint32 // of SCK: 1 to 25 MHz for an image (ice40-spi.c), an eighth of the overlay's clock afterwards
	GPIO        string // such as /dev/gpiochip0
	Reset, Done uint32 // the lines of CRESET_B and CDONE
}

// transfer is struct spi_ioc_transfer of include/uapi/linux/spi/spidev.h.
type transfer struct {
	tx, rx                     uint64
	length, speed              uint32
	delay                      uint16
	bits, change, txN, rxN, wd uint8
	_                          uint8
}

// lineRequest is struct gpio_v2_line_request of include/uapi/linux/gpio.h, with its
// gpio_v2_line_config and one of its attributes.
type lineRequest struct {
	offsets  [64]uint32
	consumer [32]byte
	flags    uint64
	attrs    uint32
	_        [5]uint32
	attr     [10]struct {
		id, _ uint32
		value uint64
		mask  uint64
	}
	lines, buffer uint32
	_             [5]uint32
	fd            int32
}

// lineValues is struct gpio_v2_line_values.
type lineValues struct{ bits, mask uint64 }

// The requests, and what is in them.
const (
	spiMessage   = 0x40206b00 // SPI_IOC_MESSAGE(1)
	gpioGetLine  = 0xc250b407 // GPIO_V2_GET_LINE_IOCTL
	gpioGet      = 0xc010b40e // GPIO_V2_LINE_GET_VALUES_IOCTL
	gpioSet      = 0xc010b40f // GPIO_V2_LINE_SET_VALUES_IOCTL
	flagInput    = 1 << 2     // GPIO_V2_LINE_FLAG_INPUT
	flagOutput   = 1 << 3     // GPIO_V2_LINE_FLAG_OUTPUT
	outputValues = 2          // GPIO_V2_LINE_ATTR_ID_OUTPUT_VALUES
)

// spidev is a Bus of the kernel's devices.
type spidev struct {
	spi         *os.File
	reset, done int
	hertz       uint32
}

// Open opens the devices. CRESET_B stays high: a device keeps its configuration.
func Open(p Pins) (Bus, error) {
	failed := func(path string, err error) (Bus, error) {
		return nil, atelier.Errorf(atelier.Unavailable, "the FPGA's pins cannot be reached through %s: %w", path, err).
			WithRemedy("Check that the device is there, that no driver of the kernel holds it, and that this program may use it.")
	}
	spi, err := os.OpenFile(p.SPI, os.O_RDWR, 0)
	if err != nil {
		return failed(p.SPI, err)
	}
	s := &spidev{spi: spi, hertz: p.Hertz, reset: -1, done: -1}
	if s.reset, err = line(p.GPIO, p.Reset, flagOutput); err == nil {
		s.done, err = line(p.GPIO, p.Done, flagInput)
	}
	if err != nil {
		_ = s.Close() // it was of no use
		return failed(p.GPIO, err)
	}
	return s, nil
}

// line requests a line; an output is high from the beginning.
func line(chip string, offset uint32, flags uint64) (int, error) {
	f, err := os.Open(chip)
	if err != nil {
		return -1, err
	}
	defer f.Close()
	r := lineRequest{flags: flags, lines: 1}
	r.offsets[0] = offset
	copy(r.consumer[:], "atelier")
	if flags == flagOutput {
		r.attrs, r.attr[0].id, r.attr[0].value, r.attr[0].mask = 1, outputValues, 1, 1
	}
	if err := ioctl(int(f.Fd()), gpioGetLine, unsafe.Pointer(&r)); err != nil {
		return -1, err
	}
	return int(r.fd), nil
}

func ioctl(fd int, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// message is one transfer; with hold, SS_B stays low afterwards (cs_change of the last one).
func (s *spidev) message(out, in []byte, hold bool) error {
	t := transfer{length: uint32(len(out)), speed: s.hertz, bits: 8}
	var pinned runtime.Pinner
	defer pinned.Unpin()
	if len(out) > 0 {
		pinned.Pin(&out[0])
		pinned.Pin(&in[0])
		t.tx, t.rx = uint64(uintptr(unsafe.Pointer(&out[0]))), uint64(uintptr(unsafe.Pointer(&in[0])))
	}
	if hold {
		t.change = 1
	}
	return ioctl(int(s.spi.Fd()), spiMessage, unsafe.Pointer(&t))
}

// Select implements Bus, by a transfer of nothing.
func (s *spidev) Select(low bool) error { return s.message(nil, nil, low) }

// Transfer implements Bus.
func (s *spidev) Transfer(out []byte) ([]byte, error) {
	in := make([]byte, len(out))
	return in, s.message(out, in, true)
}

// Reset implements Bus.
func (s *spidev) Reset(low bool) error {
	v := lineValues{mask: 1}
	if !low {
		v.bits = 1
	}
	return ioctl(s.reset, gpioSet, unsafe.Pointer(&v))
}

// Done implements Bus.
func (s *spidev) Done() (bool, error) {
	v := lineValues{mask: 1}
	err := ioctl(s.done, gpioGet, unsafe.Pointer(&v))
	return v.bits&1 != 0, err
}

// Close implements Bus.
func (s *spidev) Close() error {
	for _, fd := range []int{s.reset, s.done} {
		if fd >= 0 {
			_ = unix.Close(fd) // a line has nothing to lose
		}
	}
	return s.spi.Close()
}
