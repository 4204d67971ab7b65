//go:build !linux

package telemetry

import (
	"time"

	"github.com/atelier-edge/atelier/internal/wire"
)

// ReadClock reads the wall clock; what else there is is not portable.
func ReadClock() wire.Clock { return wire.Clock{Wall: time.Now()} }

var started = time.Now()

// Uptime is the time since the program started.
func Uptime() time.Duration { return time.Since(started) }

func resident() (int64, bool) { return 0, false }

func descriptors() (int, bool) { return 0, false }
