//go:build !linux

package spool

import (
	"time"

	"github.com/atelier-edge/atelier/internal/wire"
)

// ReadClock reads the wall clock; what else there is is not portable.
func ReadClock() wire.Clock { return wire.Clock{Wall: time.Now()} }
