package agent

import (
	"context"
	"runtime/debug"
	"time"
)

// Giving memory back: the runtime keeps what the start needed for minutes, and
// the kernel what of the program it ran. An agent that only waits would hold both
// all the time.
const (
	settled   = 20 * time.Second
	giveEvery = time.Minute
)

// slim gives memory that is not needed back to the system.
func slim(ctx context.Context) {
	timer := time.NewTimer(settled)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			giveBack()
			timer.Reset(giveEvery)
		}
	}
}

// giveBack collects what nobody uses and gives it back to the system: it takes some
// milliseconds.
func giveBack() {
	debug.FreeOSMemory()
	releaseProgram()
}
