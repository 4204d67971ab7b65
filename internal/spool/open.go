package spool

import (
	"errors"
	"os"
	"path/filepath"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// begin starts a new stream. What an older one left is removed first: its
// numbers mean nothing without its id.
func (s *Spool) begin() error {
	list, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if _, ok := segmentName(e.Name()); ok {
			if err := durable.Remove(s.fs, filepath.Join(s.dir, e.Name())); err != nil {
				return err
			}
		}
	}
	stream := atelier.NewID()
	if err := durable.WriteFile(s.fs, filepath.Join(s.dir, streamFile), []byte(stream), 0o600); err != nil {
		return err
	}
	s.stream, s.segments, s.cursor = stream, nil, position{}
	s.next, s.acked = 1, 0
	return s.roll()
}

// load reads what is there and goes on behind it.
func (s *Spool) load() error {
	list, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return err
	}
	s.next = 1
	damage := int64(0) // bytes after the last whole record of the last segment so far
	for _, e := range list {
		first, ok := segmentName(e.Name())
		if !ok {
			continue
		}
		seg, cut, err := scan(s.fs, filepath.Join(s.dir, e.Name()), first, s.visit)
		if err != nil {
			return err
		}
		if n := len(s.segments); damage > 0 {
			// What the damage hid lies between its segment's end and this one's beginning.
			s.dropped.Batches += first - 1 - s.segments[n-1].last
			if err := s.truncate(s.segments[n-1]); err != nil {
				return err
			}
		}
		s.segments = append(s.segments, seg)
		s.next, damage = seg.last+1, cut
	}
	if len(s.segments) == 0 {
		// The id is there and no file: the files were lost, and the last number with them.
		return s.begin()
	}
	if damage > 0 {
		// A torn record that nobody has seen, or the disk has failed further up.
		// Numbers that may have been sent are never used again.
		lost, err := beyond(s.fs, s.segments[len(s.segments)-1])
		if err != nil {
			return err
		}
		s.dropped.Batches += lost
		s.next += lost
		if err := s.roll(); err != nil {
			return err
		}
		return s.truncate(s.segments[len(s.segments)-2]) // only now: the new file's name keeps the number
	}
	s.active, err = s.fs.OpenFile(s.segments[len(s.segments)-1].path, os.O_WRONLY, 0)
	return err
}

// truncate cuts off what lies after the last whole record.
func (s *Spool) truncate(seg segment) error {
	f, err := s.fs.OpenFile(seg.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = f.Truncate(seg.size)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// roll begins a new segment.
func (s *Spool) roll() error {
	seg := segment{path: segmentPath(s.dir, s.next), first: s.next, last: s.next - 1}
	f, err := s.fs.OpenFile(seg.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		err = s.fs.SyncDir(s.dir)
	}
	if err != nil {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		return err
	}
	if s.active != nil {
		err = s.active.Close() // every record in it was synced
	}
	s.active, s.broken = f, false
	s.segments = append(s.segments, seg)
	return err
}
