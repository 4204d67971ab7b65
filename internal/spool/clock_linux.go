package spool

import (
	"bytes"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atelier-edge/atelier/internal/wire"
)

var bootID = sync.OnceValue(func() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // the hub then relies on the wall clock alone
	}
	return string(bytes.TrimSpace(b))
})

// ReadClock reads the device's clocks. The monotonic one counts from boot, and
// goes on while the machine is suspended (CLOCK_BOOTTIME).
func ReadClock() wire.Clock {
	c := wire.Clock{BootID: bootID(), Wall: time.Now()}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return wire.Clock{Wall: c.Wall}
	}
	c.Monotone = time.Duration(ts.Nano())
	return c
}
