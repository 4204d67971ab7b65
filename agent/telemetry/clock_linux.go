package telemetry

import (
	"bytes"
	"errors"
	"os"
	"time"

	"github.com/atelier-edge/atelier/internal/spool"
	"github.com/atelier-edge/atelier/internal/wire"
)

// ReadClock reads the device's clocks; see spool.ReadClock.
func ReadClock() wire.Clock { return spool.ReadClock() }

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
