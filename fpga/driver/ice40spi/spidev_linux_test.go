package ice40spi

import (
	"testing"
	"unsafe"
)

// TestSizes compares the structures with the sizes that are in the numbers of the requests:
// bits 16 to 29 (include/uapi/asm-generic/ioctl.h).
func TestSizes(t *testing.T) {
	t.Parallel()
	for request, size := range map[uint32]uintptr{
		spiMessage: unsafe.Sizeof(transfer{}), gpioGetLine: unsafe.Sizeof(lineRequest{}), gpioGet: unsafe.Sizeof(lineValues{}), gpioSet: unsafe.Sizeof(lineValues{}),
	} {
		if want := uintptr(request >> 16 & 0x3fff); size != want {
			t.Errorf("the structure of the request %#x has %d bytes, want %d", request, size, want)
		}
	}
	if _, err := Open(Pins{SPI: "/dev/null/spi"}); err == nil {
		t.Error("a device that is not there was opened")
	}
}
