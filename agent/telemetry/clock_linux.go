package telemetry

import (
	"bytes"
	"errors"
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

// descriptors returns how many file descriptors the program holds open.
func descriptors() (int, bool) {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0, false
	}
	names, err := dir.Readdirnames(-1)
	if err := errors.Join(err, dir.Close()); err != nil {
		return 0, false
	}
	return len(names) - 1, true // without the one that read the list
}

// Uptime is the time since boot, with that in which the machine was suspended.
func Uptime() time.Duration { return ReadClock().Monotone }

// resident returns the program's own resident size in bytes, from
// /proc/self/statm (proc(5): the second number, in pages).
func resident() (int64, bool) {
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	fields := bytes.Fields(b)
	if len(fields) < 2 {
		return 0, false
	}
	var pages int64
	for _, c := range fields[1] {
		if c < '0' || c > '9' {
			return 0, false
		}
		pages = pages*10 + int64(c-'0')
	}
	return pages * int64(os.Getpagesize()), true
}
