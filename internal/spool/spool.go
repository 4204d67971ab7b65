// Package spool keeps batches on disk until somebody has acknowledged them, within a
// budget of bytes, and sends them to the hub: measurements, records of requests, messages
// of modules.
//
// It knows how to keep and to repeat, and nothing of what a batch holds.
package spool

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Spool keeps batches on disk until the hub has acknowledged them.
//
// Each batch is synced before Append returns, so that a power cut or a kill at
// any moment loses at most the batch that was being written: the torn end of
// the newest file is cut off when the spool is opened. When the spool's budget
// is used up, the oldest batches go first, and are counted. A spool that was
// lost begins anew under another stream id.
//
// Its methods are safe for concurrent use.
type Spool struct {
	fs     durable.FS
	dir    string
	budget int64

	mu       sync.Mutex
	stream   string
	segments []segment // in order, never empty; the last one is written to
	active   durable.File
	next     uint64 // the number of the next batch
	acked    uint64
	dropped  Dropped
	cursor   position
	scratch  []byte
	visit    func(sequence uint64, b Batch) // while it is opened; may be nil
	broken   bool                           // the active file's end may be damaged; the next Append begins a new one
	changed  chan struct{}
}

// Dropped counts what was given up since the spool was opened.
type Dropped struct {
	Batches, Samples uint64
}

// Stats describes a spool.
type Stats struct {
	Stream  string
	Pending int   // batches that are not acknowledged
	Bytes   int64 // on disk
	Dropped Dropped
}

// position is where a record was found, so that reading in order does not begin anew each time.
type position struct {
	first    uint64 // of the segment
	sequence uint64 // of the record before offset
	offset   int64
}

const streamFile = "stream"

// minBudget is the smallest budget: a few of the largest batches.
const minBudget = 1 << 20

// Open opens the spool in dir, or makes it. It takes at most budget bytes on
// disk (at least 1 MiB). Errors are *atelier.Error as those of package durable.
func Open(fsys durable.FS, dir string, budget int64) (*Spool, error) {
	return OpenVisiting(fsys, dir, budget, nil)
}

// OpenVisiting is Open, and shows visit each batch that is there, in order.
func OpenVisiting(fsys durable.FS, dir string, budget int64, visit func(sequence uint64, b Batch)) (*Spool, error) {
	s := &Spool{fs: fsys, dir: dir, budget: max(budget, minBudget), changed: make(chan struct{}, 1), visit: visit}
	if err := durable.MkdirAll(fsys, dir, 0o700); err != nil {
		return nil, err
	}
	id, err := durable.ReadFile(fsys, filepath.Join(dir, streamFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if stream := string(id); atelier.IsID(stream) {
		s.stream = stream
		err = s.load()
	} else {
		err = s.begin()
	}
	if err != nil {
		return nil, durable.Explain(err, "open the spool in "+dir)
	}
	return s, nil
}

// segmentLimit is the size at which a new segment begins: what is dropped at once is an eighth of the budget.
func (s *Spool) segmentLimit() int64 { return min(s.budget/8, 1<<20) }

// Append adds b and returns when it is on disk. Where the budget or the disk is
// used up, the oldest batches make room. An error means that b was not kept; it
// is counted as dropped.
func (s *Spool) Append(b Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(b.Payload) > wire.MaxTelemetryPayload {
		s.drop(1, b.Samples)
		return atelier.Errorf(atelier.TooLarge, "a batch has %d bytes, at most %d fit a packet", len(b.Payload), wire.MaxTelemetryPayload)
	}
	s.scratch = appendRecord(s.scratch[:0], s.next, b)
	for s.bytes()+int64(len(s.scratch)) > s.budget && len(s.segments) > 1 {
		if err := s.dropOldest(); err != nil {
			s.drop(1, b.Samples)
			return err
		}
	}
	err := s.write()
	if atelier.CodeOf(err) == atelier.NoSpace && len(s.segments) > 1 {
		if err = s.dropOldest(); err == nil {
			err = s.write()
		}
	}
	if err != nil {
		s.drop(1, b.Samples)
		return err
	}
	s.segments[len(s.segments)-1].add(s.next, b, int64(len(s.scratch)))
	s.next++
	s.signal()
	return nil
}

// write writes the record in scratch, synced. After a failure the file's end is
// unknown, and its number may be on disk: neither is used again.
func (s *Spool) write() error {
	active := &s.segments[len(s.segments)-1]
	if s.broken || active.size > 0 && active.size+int64(len(s.scratch)) > s.segmentLimit() {
		if err := s.roll(); err != nil {
			return durable.Explain(err, "begin a spool file")
		}
		active = &s.segments[len(s.segments)-1]
	}
	_, err := s.active.WriteAt(s.scratch, active.size)
	if err == nil {
		err = s.active.Sync()
	}
	if err == nil {
		return nil
	}
	// Nothing that was acknowledged lies behind active.size. When it cannot be
	// cut off, opening the spool finds it damaged, or whole and not yet sent.
	if cut := errors.Join(s.active.Truncate(active.size), s.active.Sync()); cut != nil {
		s.broken = true
		s.next++
	}
	return durable.Explain(err, "write to the spool")
}

func (s *Spool) bytes() (sum int64) {
	for i := range s.segments {
		sum += s.segments[i].size
	}
	return sum
}

func (s *Spool) drop(batches, samples int) {
	s.dropped.Batches += uint64(batches)
	s.dropped.Samples += uint64(samples)
}

// dropOldest gives up the oldest segment, which is not the active one.
func (s *Spool) dropOldest() error {
	old := s.segments[0]
	if err := s.remove(); err != nil {
		return err
	}
	if old.last <= s.acked {
		return nil
	}
	// Of a segment that was acknowledged in part, only the rest is lost. The
	// samples of the part are not known one by one, so the share stands for them.
	batches, samples := old.records, old.samples
	if old.first <= s.acked && old.records > 0 {
		batches = min(int(old.last-s.acked), old.records)
		samples = old.samples * batches / old.records
	}
	s.drop(batches, samples)
	return nil
}

func (s *Spool) remove() error {
	if err := durable.Remove(s.fs, s.segments[0].path); err != nil {
		return err
	}
	s.segments = append(s.segments[:0], s.segments[1:]...)
	return nil
}

// Acknowledge tells that the hub has stored everything up to and including
// through. Another stream's acknowledgement is ignored. Files that hold nothing
// else are removed.
func (s *Spool) Acknowledge(stream string, through uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stream != s.stream || through <= s.acked {
		return nil
	}
	s.signal()
	if through >= s.next {
		// The hub knows of more than this spool does: an old copy of the disk was
		// put back. Its numbers are used up, so what comes next needs a new stream.
		return durable.Explain(s.begin(), "begin a new stream")
	}
	s.acked = through
	for len(s.segments) > 1 && s.segments[0].last <= s.acked {
		if err := s.remove(); err != nil {
			return err
		}
	}
	// Numbers go on from the last file's, so one always stays; when everything
	// in it is acknowledged and it is not small, an empty one takes its place.
	if only := s.segments[0]; len(s.segments) == 1 && only.last <= s.acked && only.size > s.segmentLimit()/2 {
		if err := s.roll(); err != nil {
			return durable.Explain(err, "begin a spool file")
		}
		return s.remove()
	}
	return nil
}

// Entry is a batch in its place in the spool.
type Entry struct {
	Stream   string
	Sequence uint64
	// Previous is the number of the batch before it in the spool, 0 when there
	// is none that is not acknowledged.
	Previous uint64
	Batch    Batch
}

// Next returns the first batch after the one numbered after that is not
// acknowledged. ok is false when there is none yet.
func (s *Spool) Next(after uint64) (e Entry, ok bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	after = max(after, s.acked)
	var previous uint64
	for i := range s.segments {
		seg := &s.segments[i]
		if seg.last <= after {
			if seg.records > 0 {
				previous = seg.last
			}
			continue
		}
		at := position{first: seg.first, sequence: previous}
		if s.cursor.first == seg.first && s.cursor.sequence <= after {
			at = s.cursor
		}
		sequence, b, ok, err := s.find(seg, &at, after)
		if err != nil || ok {
			if previous = at.sequence; previous <= s.acked {
				previous = 0 // it need not be there any more, here or at a hub that lost it
			}
			return Entry{s.stream, sequence, previous, b}, ok, durable.Explain(err, "read the spool")
		}
		previous = at.sequence
	}
	return Entry{}, false, nil
}

// find looks for the first record after the number after, from at on. at ends
// before the record that was found.
func (s *Spool) find(seg *segment, at *position, after uint64) (sequence uint64, b Batch, ok bool, err error) {
	f, err := s.fs.OpenFile(seg.path, os.O_RDONLY, 0)
	if err != nil {
		return 0, b, false, err
	}
	defer f.Close() // only read
	for at.offset < seg.size {
		sequence, batch, size, err := readRecord(f, at.offset)
		if errors.Is(err, errDamaged) || errors.Is(err, io.EOF) {
			// It was whole when it was written or the spool opened: the disk fails.
			// What is behind it in this file cannot be found any more.
			return 0, b, false, s.giveUp(seg, at)
		}
		if err != nil {
			return 0, b, false, err
		}
		if sequence > after {
			s.cursor = *at
			return sequence, batch, true, nil
		}
		at.sequence, at.offset = sequence, at.offset+size
	}
	return 0, b, false, nil
}

// giveUp counts what lies behind at in a damaged segment as dropped, and forgets it.
func (s *Spool) giveUp(seg *segment, at *position) error {
	lost := int(seg.last - max(at.sequence, seg.first-1))
	lost = min(lost, seg.records)
	samples := 0
	if seg.records > 0 {
		samples = seg.samples * lost / seg.records
	}
	s.drop(lost, samples)
	seg.records, seg.samples, seg.size = seg.records-lost, seg.samples-samples, at.offset
	if seg == &s.segments[len(s.segments)-1] {
		s.broken = true
	}
	if seg.records == 0 {
		seg.last = seg.first - 1
	} else {
		seg.last = at.sequence
	}
	return nil
}

// Expire removes what is older than t by the clock that its batches were taken with, file
// by file; what is in a file with something newer stays. It returns how many went that
// were not acknowledged.
func (s *Spool) Expire(t time.Time) (Dropped, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.dropped
	if active := &s.segments[len(s.segments)-1]; active.size > 0 && active.newest.Before(t) {
		if err := s.roll(); err != nil {
			return Dropped{}, durable.Explain(err, "begin a spool file")
		}
	}
	for len(s.segments) > 1 && s.segments[0].newest.Before(t) {
		if err := s.dropOldest(); err != nil {
			return Dropped{}, err
		}
	}
	gone := Dropped{s.dropped.Batches - before.Batches, s.dropped.Samples - before.Samples}
	s.dropped = before
	return gone, nil
}

// SetBudget changes how many bytes the spool may take on disk (at least 1 MiB). Where it
// takes more, the oldest batches go with the next Append.
func (s *Spool) SetBudget(budget int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget = max(budget, minBudget)
}

// Changed returns a channel that receives a value some time after batches were
// added or acknowledged. It has one receiver.
func (s *Spool) Changed() <-chan struct{} { return s.changed }

func (s *Spool) signal() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// Stats describes the spool as it is now.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Stream: s.stream, Bytes: s.bytes(), Dropped: s.dropped}
	for i := range s.segments {
		if seg := &s.segments[i]; seg.last > s.acked {
			st.Pending += min(seg.records, int(seg.last-s.acked))
		}
	}
	return st
}

// Close closes the spool's file. Every batch in it is on disk already.
func (s *Spool) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return durable.Explain(s.active.Close(), "close the spool")
}

// ack is how far the hub has acknowledged a stream.
type ack struct {
	stream  string
	through uint64
}

func (s *Spool) acknowledged() ack {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ack{s.stream, s.acked}
}

// Acknowledged returns how far the present stream was acknowledged.
func (s *Spool) Acknowledged() uint64 { return s.acknowledged().through }
