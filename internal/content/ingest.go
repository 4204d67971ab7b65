package content

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// Ingest takes in content whose digest and size are known, in any order and in
// pieces that are verified one by one. It can be closed and resumed: what was
// accepted before the last checkpoint (see WithCheckpoint; Close makes one) is
// not needed again, even after a power cut. Use it from one goroutine, and end
// it with Close in any case.
type Ingest struct {
	store  *Store
	digest atelier.Digest
	sum    sum
	size   int64
	name   string
	data   durable.File
	record durable.File

	done     Ranges    // accepted
	pending  Ranges    // accepted, and in no checkpoint yet
	length   int64     // of the record
	saving   *saving   // the last checkpoint; nil for none, or where it was seen to be made
	saved    time.Time // when it began
	failed   error
	buf      []byte
	whole    hash.Hash // over the first hashed bytes, all of them accepted since the ingest was opened
	hashed   int64
	finished bool
}

// Ingest begins or resumes taking in the content of d, which has size bytes.
// Exists where it is there already, InUse where another Ingest of it is open,
// NoSpace where the disk cannot hold the rest of it.
func (s *Store) Ingest(d atelier.Digest, size int64) (*Ingest, error) {
	raw, err := d.Sum()
	if err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, atelier.Errorf(atelier.Invalid, "content cannot have %d bytes", size)
	}
	if has, err := s.Has(d); err != nil {
		return nil, err
	} else if has {
		return nil, atelier.Errorf(atelier.Exists, "the content %s is here already", d)
	}
	return s.begin(&Ingest{digest: d, sum: raw, size: size, name: kindFetch + d.Hex()})
}

// IngestDifference begins or resumes taking in a difference, with the digest d and
// size bytes, of which the content of target is to be made. There is one for each
// target: another one takes its place. It is read with Verified and ended with
// Abort, and never becomes content of its own. Errors are those of Ingest.
func (s *Store) IngestDifference(target, d atelier.Digest, size int64) (*Ingest, error) {
	raw, err := d.Sum()
	if err != nil {
		return nil, err
	}
	if _, err := target.Sum(); err != nil {
		return nil, err
	}
	if size < 0 {
		return nil, atelier.Errorf(atelier.Invalid, "a difference cannot have %d bytes", size)
	}
	return s.begin(&Ingest{digest: d, sum: raw, size: size, name: kindDifference + target.Hex()})
}

func (s *Store) begin(in *Ingest) (*Ingest, error) {
	in.store, in.saved, in.whole = s, s.now(), sha256.New()
	if err := s.hold(in.name); err != nil {
		return nil, err
	}
	if err := in.open(); err != nil {
		s.release(in.name)
		return nil, durable.Explain(err, "begin fetching "+string(in.digest))
	}
	return in, nil
}

func (in *Ingest) path(ext string) string { return filepath.Join(in.store.dir, in.name+ext) }

func (in *Ingest) open() (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, in.closeFiles())
		}
	}()
	if in.data, err = in.store.openData(in.path(extData)); err != nil {
		return err
	}
	if in.record, err = in.store.fs.OpenFile(in.path(extRecord), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	info, err := in.data.Stat()
	if err != nil {
		return err
	}
	claimed, err := io.ReadAll(io.LimitReader(in.record, maxRecord))
	if err != nil {
		return err
	}
	done, good := decodeRecord(claimed, in.sum, in.size)
	if info.Size() != in.size {
		done, good = nil, 0 // the record speaks of other data
	}
	free, err := in.store.Free()
	if err != nil {
		return err
	}
	if rest := in.size - done.Bytes(); free < rest {
		return atelier.Errorf(atelier.NoSpace, "the content %s needs %d bytes more, and %d are free", in.digest, rest, free).
			WithRemedy("Free disk space there.")
	}
	in.done, in.length = done, int64(good)
	if good > 0 {
		return in.record.Truncate(in.length)
	}
	return in.begin(len(claimed) > 0)
}

// begin starts from nothing, with an empty record. What an old record claims must
// not come back after a power cut, to speak of new data.
func (in *Ingest) begin(old bool) error {
	if old {
		if err := in.record.Truncate(0); err != nil {
			return err
		}
		if err := in.record.Sync(); err != nil {
			return err
		}
	}
	if err := in.data.Truncate(in.size); err != nil {
		return err
	}
	return in.append(appendHeader(nil, in.sum, in.size))
}

func (in *Ingest) append(b []byte) error {
	_, err := in.record.WriteAt(b, in.length)
	if err == nil {
		in.length += int64(len(b))
	}
	return err
}

// Digest returns what the content's digest will be.
func (in *Ingest) Digest() atelier.Digest { return in.digest }

// Size returns how many bytes the content will have.
func (in *Ingest) Size() int64 { return in.size }

// Has reports whether all of r was accepted.
func (in *Ingest) Has(r Range) bool { return in.done.Contains(r) }

// Accepted returns what was accepted; the caller must not change it.
func (in *Ingest) Accepted() Ranges { return in.done }

// Done returns how many bytes were accepted.
func (in *Ingest) Done() int64 { return in.done.Bytes() }

// WriteAt puts bytes, which nobody needs to have verified yet, where nothing was
// accepted yet; Conflict otherwise. They count once Accept has seen them.
func (in *Ingest) WriteAt(p []byte, off int64) (int, error) {
	r := Range{off, off + int64(len(p))}
	switch {
	case in.failed != nil:
		return 0, in.failed
	case off < 0 || r.End > in.size:
		return 0, atelier.Errorf(atelier.Invalid, "bytes %d to %d are outside of the content's %d bytes", r.Start, r.End, in.size)
	case in.done.Missing(r).Bytes() != r.Len():
		return 0, atelier.Errorf(atelier.Conflict, "bytes %d to %d were accepted already", r.Start, r.End)
	}
	n, err := in.data.WriteAt(p, off)
	return n, durable.Explain(err, "write content "+string(in.digest))
}

// Accept reads r back and accepts it if its SHA-256 is want; Corrupt otherwise,
// and r must be written again. From time to time it makes a checkpoint.
func (in *Ingest) Accept(r Range, want [sha256.Size]byte) error {
	if in.failed != nil {
		return in.failed
	}
	if r.Start < 0 || r.Start > r.End || r.End > in.size {
		return atelier.Errorf(atelier.Invalid, "bytes %d to %d are outside of the content's %d bytes", r.Start, r.End, in.size)
	}
	h, whole := sha256.New(), hash.Hash(nil)
	w := io.Writer(h)
	if r.Start == in.hashed {
		// The bytes continue those that are hashed already: one reading serves both
		// sums. The clone is taken over only if the bytes are right.
		c, err := in.whole.(hash.Cloner).Clone()
		if err != nil {
			return durable.Explain(err, "hash content")
		}
		whole = c
		w = io.MultiWriter(h, whole)
	}
	if err := copyRange(context.Background(), w, in.data, r, in.buffer()); err != nil {
		return durable.Explain(err, "read back content "+string(in.digest))
	}
	if got := sum(h.Sum(nil)); got != want {
		return atelier.Errorf(atelier.Corrupt, "bytes %d to %d of content %s have the SHA-256 %x, expected was %x", r.Start, r.End, in.digest, got, want)
	}
	if whole != nil {
		in.whole, in.hashed = whole, r.End
	}
	in.done = in.done.Add(r)
	in.pending = in.pending.Add(r)
	if in.pending.Bytes() >= in.store.checkpointBytes || in.store.now().Sub(in.saved) >= in.store.checkpointEvery {
		return in.checkpoint()
	}
	return nil
}

func (in *Ingest) buffer() []byte {
	if in.buf == nil {
		in.buf = make([]byte, copyBuffer)
	}
	return in.buf
}

// Commit verifies the whole content against its digest, reading what was not
// hashed on its way in, and makes it visible and durable. Conflict where something
// is missing. If the content is wrong, the code is Corrupt and nothing of it stays.
func (in *Ingest) Commit(ctx context.Context) (Info, error) {
	if _, err := in.Verified(ctx); err != nil {
		return Info{}, err
	}
	if err := in.settle(); err != nil {
		return Info{}, err
	}
	err := in.data.Chmod(0o444)
	if err == nil {
		err = in.data.Sync()
	}
	if err != nil {
		in.failed = durable.Explain(err, "commit content "+string(in.digest))
		return Info{}, in.failed
	}
	info, err := in.store.publish(in.path(extData), in.digest)
	if err != nil {
		in.failed = err
		return Info{}, err
	}
	return info, in.Abort() // only the record is left
}

// Verified verifies the whole content against its digest, reading what was not
// hashed on its way in, and returns it for reading until the Ingest ends. Errors
// are those of Commit.
func (in *Ingest) Verified(ctx context.Context) (io.ReaderAt, error) {
	if in.failed != nil {
		return nil, in.failed
	}
	if missing := in.done.Missing(Range{0, in.size}); len(missing) > 0 {
		return nil, atelier.Errorf(atelier.Conflict, "%d bytes of content %s are missing", missing.Bytes(), in.digest)
	}
	if err := copyRange(ctx, in.whole, in.data, Range{in.hashed, in.size}, in.buffer()); err != nil {
		in.whole, in.hashed = sha256.New(), 0
		return nil, durable.Explain(err, "read back content "+string(in.digest))
	}
	in.hashed = in.size
	if err := checkContent(in.digest, atelier.DigestFrom(in.whole), -1, 0); err != nil {
		return nil, errors.Join(err, in.Abort())
	}
	return in.data, nil
}

// Close ends the Ingest and keeps what was accepted for the next one. Close after
// Commit or Abort does nothing.
func (in *Ingest) Close() error {
	if in.finished {
		return nil
	}
	var err error
	if in.failed == nil {
		if err = in.checkpoint(); err == nil {
			err = in.settle()
		}
	}
	return errors.Join(err, in.end())
}

// Abort ends the Ingest and drops what came in.
func (in *Ingest) Abort() error {
	if in.finished {
		return nil
	}
	_ = in.settle() // nothing of it is needed any more
	return errors.Join(in.store.drop(in.name), in.end())
}

func (in *Ingest) end() error {
	in.finished = true
	if in.failed == nil {
		in.failed = atelier.Errorf(atelier.Conflict, "the ingest has ended")
	}
	defer in.store.release(in.name)
	return durable.Explain(in.closeFiles(), "close content "+string(in.digest))
}

func (in *Ingest) closeFiles() (err error) {
	for _, f := range []durable.File{in.data, in.record} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}
