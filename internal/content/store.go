// Package content keeps content by its digest, on disk.
//
// What the store promises: content becomes visible only as a whole, only after
// its SHA-256 was checked, and only once it is durable: a blob that was
// committed survives a power cut, and one that was not leaves nothing that could
// be mistaken for content. Partial content is resumed where it stopped. Memory
// does not grow with the size of content.
//
// It has the shape of containerd's content.Store: ingests that are invisible until
// Commit(digest). It knows no network, no kind of content and no owner: who may
// see a digest, and what still needs one, is decided by its users.
//
// A store belongs to one process at a time. Its directory holds
//
//	blobs/sha256/ab/abcd…   committed content, read-only
//	ingest/                 content on its way in, with a record of what is there
package content

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// Store is a content store. Its methods are safe for concurrent use. Errors are
// *atelier.Error: NotFound for a digest that is not there, NoSpace for a full
// disk, Corrupt for content that is not what its digest says.
type Store struct {
	fs    durable.FS
	blobs string // directory of the shards
	dir   string // directory of the ingests

	now             func() time.Time
	checkpointBytes int64
	checkpointEvery time.Duration

	// mu is held to write while a blob becomes visible and durable, and while
	// one is deleted, so that whoever sees a blob sees one that stays.
	mu        sync.RWMutex
	condemned map[atelier.Digest]time.Time // since when; see Collect

	busy sync.Map // names of ingests that are open
}

// Option sets something that is usually left as it is.
type Option func(*Store)

// WithClock sets the clock that ages and waits are measured with.
func WithClock(now func() time.Time) Option { return func(s *Store) { s.now = now } }

// WithCheckpoint sets how much an ingest may lose at a power cut: what came in
// since its last checkpoint, which is made after that many bytes or that much
// time, whichever is first. Every checkpoint syncs. The default is 32 MiB, 5 s.
func WithCheckpoint(bytes int64, every time.Duration) Option {
	return func(s *Store) { s.checkpointBytes, s.checkpointEvery = bytes, every }
}

// Open opens the store in dir, and makes it where there is none. It removes what
// a power cut left behind and cannot be resumed.
func Open(fsys durable.FS, dir string, opts ...Option) (*Store, error) {
	s := &Store{
		fs:              fsys,
		blobs:           filepath.Join(dir, "blobs", "sha256"),
		dir:             filepath.Join(dir, "ingest"),
		now:             time.Now,
		checkpointBytes: 32 << 20,
		checkpointEvery: 5 * time.Second,
		condemned:       map[atelier.Digest]time.Time{},
	}
	for _, o := range opts {
		o(s)
	}
	for _, d := range []string{s.blobs, s.dir} {
		if err := durable.MkdirAll(fsys, d, 0o700); err != nil {
			return nil, err
		}
	}
	return s, s.tidy()
}

// Info describes a blob.
type Info struct {
	Digest   atelier.Digest
	Size     int64
	Modified time.Time // when it was committed
}

// Blob is open content. Reading is safe for concurrent use. It stays readable
// when the blob is deleted.
type Blob struct {
	file durable.File
	info Info
}

// ReadAt implements io.ReaderAt.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) { return b.file.ReadAt(p, off) }

// Size returns the content's length in bytes.
func (b *Blob) Size() int64 { return b.info.Size }

// Info describes the blob.
func (b *Blob) Info() Info { return b.info }

// Close gives the blob's file back.
func (b *Blob) Close() error { return b.file.Close() }

// path returns where the blob of d is, or Invalid for a malformed digest: no
// unchecked digest becomes a path.
func (s *Store) path(d atelier.Digest) (string, error) {
	if _, err := atelier.ParseDigest(string(d)); err != nil {
		return "", err
	}
	return filepath.Join(s.blobs, d.Hex()[:2], d.Hex()), nil
}

// Info describes the blob of d; NotFound where there is none.
func (s *Store) Info(d atelier.Digest) (Info, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.info(d)
}

func (s *Store) info(d atelier.Digest) (Info, error) {
	path, err := s.path(d)
	if err != nil {
		return Info{}, err
	}
	st, err := s.fs.Stat(path)
	if err != nil {
		return Info{}, explain(err, d)
	}
	return Info{Digest: d, Size: st.Size(), Modified: st.ModTime()}, nil
}

// explain says of which content an error is.
func explain(err error, d atelier.Digest) error {
	if errors.Is(err, fs.ErrNotExist) {
		return atelier.Errorf(atelier.NotFound, "there is no content %s here", d)
	}
	return durable.Explain(err, "read content "+string(d))
}

// Has reports whether the blob of d is there.
func (s *Store) Has(d atelier.Digest) (bool, error) {
	_, err := s.Info(d)
	if atelier.CodeOf(err) == atelier.NotFound {
		return false, nil
	}
	return err == nil, err
}

// Open opens the blob of d for reading; NotFound where there is none. The bytes
// were verified when they were committed; see Verify.
func (s *Store) Open(d atelier.Digest) (*Blob, error) {
	path, err := s.path(d)
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	info, err := s.info(d)
	if err != nil {
		return nil, err
	}
	f, err := s.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, explain(err, d)
	}
	return &Blob{file: f, info: info}, nil
}

// Verify reads the blob of d through and returns Corrupt where its bytes are not
// what the digest says: a disk may lose what it once held.
func (s *Store) Verify(ctx context.Context, d atelier.Digest) error {
	b, err := s.Open(d)
	if err != nil {
		return err
	}
	h := sha256.New()
	err = copyRange(ctx, h, b, Range{0, b.Size()}, make([]byte, copyBuffer))
	if err = errors.Join(err, b.Close()); err != nil {
		return durable.Explain(err, "read content "+string(d))
	}
	if got := atelier.DigestFrom(h); got != d {
		return atelier.Errorf(atelier.Corrupt, "the stored content %s now has the digest %s", d, got).
			WithRemedy("Check the disk; the content must be deleted and fetched or uploaded again.")
	}
	return nil
}

// Walk calls fn for every blob, in the order of digests, until fn returns an error.
// Blobs that come or go meanwhile may be met or not.
func (s *Store) Walk(fn func(Info) error) error {
	shards, err := s.fs.ReadDir(s.blobs)
	if err != nil {
		return durable.Explain(err, "list content")
	}
	for _, shard := range shards {
		list, err := s.fs.ReadDir(filepath.Join(s.blobs, shard.Name()))
		if err != nil {
			return durable.Explain(err, "list content")
		}
		for _, e := range list {
			d, err := atelier.ParseDigest("sha256:" + e.Name())
			if err != nil {
				continue // not ours
			}
			info, err := s.Info(d)
			if atelier.CodeOf(err) == atelier.NotFound {
				continue
			}
			if err == nil {
				err = fn(info)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Delete removes the blob of d. It is no error when there is none.
func (s *Store) Delete(d atelier.Digest) error {
	path, err := s.path(d)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.condemned, d)
	return durable.Remove(s.fs, path)
}

// Link gives the blob of d a further name outside of the store, without copying
// it, and makes the name durable. The file is read-only and stays when the blob
// is deleted. Exists where path is taken; Unsupported where path is on another
// file system than the store.
func (s *Store) Link(d atelier.Digest, path string) error {
	blob, err := s.path(d)
	if err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, err := s.info(d); err != nil {
		return err
	}
	err = s.fs.Link(blob, path)
	switch {
	case errors.Is(err, fs.ErrExist):
		return atelier.Errorf(atelier.Exists, "cannot link content %s to %s: %w", d, path, err)
	case errors.Is(err, syscall.EXDEV):
		return atelier.Errorf(atelier.Unsupported, "cannot link content %s to %s, which is on another file system: %w", d, path, err).
			WithRemedy("Keep the content store and the files laid out from it on one file system.")
	case err != nil:
		return durable.Explain(err, "link content to "+path)
	}
	return durable.Explain(s.fs.SyncDir(filepath.Dir(path)), "link content to "+path)
}

// Linked reports whether path is a name of the blob of d that is in the store
// now, such as Link gave it. What a name leads to that was given to an earlier
// blob, since deleted, may be another file.
func (s *Store) Linked(d atelier.Digest, path string) (bool, error) {
	blob, err := s.path(d)
	if err != nil {
		return false, err
	}
	var infos [2]fs.FileInfo
	for i, name := range []string{blob, path} {
		infos[i], err = s.fs.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, durable.Explain(err, "look at "+name)
		}
	}
	return os.SameFile(infos[0], infos[1]), nil
}

// Free returns how many bytes the store's disk can still take.
func (s *Store) Free() (int64, error) {
	n, err := s.fs.Free(s.dir)
	return n, durable.Explain(err, "measure free space")
}

// publish moves a finished, synced and verified file to its place as the blob of
// d. Where the blob is there already, the file is dropped. Either way d is no
// longer condemned.
func (s *Store) publish(from string, d atelier.Digest) (Info, error) {
	path, err := s.path(d)
	if err != nil {
		return Info{}, err
	}
	shard := filepath.Dir(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := durable.MkdirAll(s.fs, shard, 0o700); err != nil {
		return Info{}, err
	}
	if _, err = s.info(d); err == nil {
		err = s.fs.Remove(from)
	} else if atelier.CodeOf(err) == atelier.NotFound {
		err = s.fs.Rename(from, path)
	}
	// Also where the blob was there: a program that was killed may not have
	// come to sync the name that it made.
	if err == nil {
		err = s.fs.SyncDir(shard)
	}
	if err == nil {
		err = s.fs.SyncDir(s.dir)
	}
	if err != nil {
		return Info{}, durable.Explain(err, "commit content "+string(d))
	}
	delete(s.condemned, d)
	return s.info(d)
}

// copyBuffer is the size of buffers for reading content through. One is made for
// each ingest, not one for each read.
const copyBuffer = 64 << 10

// copyRange writes the bytes of r to w, through buf.
func copyRange(ctx context.Context, w io.Writer, from io.ReaderAt, r Range, buf []byte) error {
	for at := r.Start; at < r.End; {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), r.End-at)]
		if n, err := from.ReadAt(p, at); n < len(p) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
		at += int64(len(p))
	}
	return nil
}
