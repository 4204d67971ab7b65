package process

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
)

// Wait implements targets.Target. It sleeps until the shim ends, rather than
// look again and again: an agent waits for all of its modules all the time.
func (t *Target) Wait(ctx context.Context, id string) (targets.Status, error) {
	for {
		s, err := t.Status(ctx, id)
		if err != nil || s.Phase == targets.Exited {
			return s, err
		}
		if !t.untilShimEnds(ctx, id) {
			err = pause(ctx, pollInterval)
		} else {
			err = ctx.Err()
		}
		if err != nil {
			return s, atelier.Errorf(atelier.Timeout, "module %s still runs: %w", id, err)
		}
	}
}

// untilShimEnds returns when the shim of id has ended or ctx has; false at once
// where the kernel cannot tell (before Linux 5.10).
func (t *Target) untilShimEnds(ctx context.Context, id string) bool {
	inst := t.instance(id)
	pid, err := inst.holder()
	if err != nil || pid == 0 {
		return false
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	// The descriptor is of that process from now on; before, another one may
	// have got its number.
	if again, err := inst.holder(); err != nil || again != pid {
		return false
	}
	if f.SetReadDeadline(time.Time{}) != nil {
		return false // the runtime's poller does not take it
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) }) // ends Read, below
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	// A pidfd becomes readable when its process has ended; see pidfd_open(2).
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
	return err == nil || ctx.Err() != nil
}
