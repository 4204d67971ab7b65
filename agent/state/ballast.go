package state

import (
	"os"

	"github.com/atelier-edge/atelier/internal/durable"
)

// RefillBallast makes the ballast file again where it was given up and the disk
// has room for it twice over. Call it now and then.
func (s *Store) RefillBallast() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fillBallast()
}

// fillBallast makes the ballast file. That it cannot is no error: it is there
// for a bad day, and its absence changes nothing on a good one.
func (s *Store) fillBallast() {
	size := s.opts.Ballast
	if size == 0 {
		return
	}
	if info, err := s.opts.FS.Stat(s.path(ballastFile)); err == nil && info.Size() == size {
		return
	}
	if free, err := s.opts.FS.Free(s.opts.Dir); err != nil || free < 2*size {
		return
	}
	if !s.writeBallast(size) {
		_ = durable.Remove(s.opts.FS, s.path(ballastFile)) // a part of it helps nobody
	}
}

// writeBallast writes real blocks: a sparse file would hold no space.
func (s *Store) writeBallast(size int64) bool {
	f, err := s.opts.FS.OpenFile(s.path(ballastFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return false
	}
	block := make([]byte, 64<<10)
	for written := int64(0); err == nil && written < size; {
		var n int
		n, err = f.Write(block[:min(int64(len(block)), size-written)])
		written += int64(n)
	}
	if err == nil {
		err = f.Sync()
	}
	return f.Close() == nil && err == nil
}
