package content

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"path/filepath"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// Writer takes content in as a stream whose digest need not be known before its
// end. Use it from one goroutine, and end it with Close in any case.
type Writer struct {
	store *Store
	name  string // of the ingest's files, without extension
	file  durable.File
	hash  hash.Hash
	at    int64
	saved int64 // how much the record says
	err   error // the first failure: what was written after it is not known
	done  bool
}

// Writer begins an ingest, or resumes the one of the same name. Without a name
// ("") it cannot be resumed, and costs fewer syncs. A name has 1 to 64 lower-case
// letters, digits and '-'; InUse when its writer is open.
func (s *Store) Writer(name string) (*Writer, error) {
	w := &Writer{store: s, hash: sha256.New(), name: kindUpload + name}
	if name == "" {
		w.name = kindAnon + atelier.NewID()
	} else if !uploadName(name) {
		return nil, atelier.Errorf(atelier.Invalid, "%.80q is no name for an upload", name).
			WithRemedy("Use at most 64 lower-case letters, digits and '-'.")
	}
	if err := s.hold(w.name); err != nil {
		return nil, err
	}
	if err := w.open(); err != nil {
		s.release(w.name)
		return nil, durable.Explain(err, "begin an upload")
	}
	return w, nil
}

func (w *Writer) open() (err error) {
	if w.file, err = w.store.openData(w.path(extData)); err != nil {
		return err
	}
	if err = w.resume(); err != nil {
		return errors.Join(err, w.file.Close())
	}
	return nil
}

func (w *Writer) path(ext string) string { return filepath.Join(w.store.dir, w.name+ext) }

func (w *Writer) named() bool { return strings.HasPrefix(w.name, kindUpload) }

// resume goes on after what the record says is on disk. Without a good record
// the upload begins anew.
func (w *Writer) resume() error {
	if w.named() {
		b, err := durable.ReadFile(w.store.fs, w.path(extRecord))
		if err != nil && atelier.CodeOf(err) != atelier.NotFound {
			return err
		}
		info, err := w.file.Stat()
		if err != nil {
			return err
		}
		if at, h, ok := decodeUpload(b); ok && at <= info.Size() {
			w.at, w.saved, w.hash = at, at, h
		} else if err := durable.Remove(w.store.fs, w.path(extRecord)); err != nil {
			return err // it must not come back to speak of data that is new
		}
	}
	return w.file.Truncate(w.at)
}

// Offset returns how many bytes the ingest holds: the stream goes on there.
func (w *Writer) Offset() int64 { return w.at }

// Write appends p.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.file.WriteAt(p, w.at)
	w.hash.Write(p[:n])
	w.at += int64(n)
	if err == nil && w.named() && w.at-w.saved >= w.store.checkpointBytes {
		err = w.save()
	}
	w.err = durable.Explain(err, "write an upload")
	return n, w.err
}

// save makes what was written durable and then says so in the record.
func (w *Writer) save() error {
	if err := w.file.Sync(); err != nil {
		return err
	}
	b, err := encodeUpload(w.at, w.hash)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(w.store.fs, w.path(extRecord), b, 0o600); err != nil {
		return err
	}
	w.saved = w.at
	return nil
}

// Commit makes the content visible, and durable, as the blob of its digest.
// Where want is not "", or size not negative, the content must be that: otherwise
// nothing of it stays and the error's code is Corrupt. Content that is there
// already is kept as it is.
func (w *Writer) Commit(want atelier.Digest, size int64) (Info, error) {
	if w.err != nil {
		return Info{}, w.err
	}
	got := atelier.DigestFrom(w.hash)
	if err := checkContent(want, got, size, w.at); err != nil {
		return Info{}, errors.Join(err, w.Abort())
	}
	err := w.file.Chmod(0o444)
	if err == nil {
		err = w.file.Sync()
	}
	if err != nil {
		w.err = durable.Explain(err, "commit content "+string(got))
		return Info{}, w.err
	}
	info, err := w.store.publish(w.path(extData), got)
	if err != nil {
		w.err = err
		return Info{}, err
	}
	return info, w.Abort() // only the record is left
}

// checkContent compares what came with what was announced.
func checkContent(want, got atelier.Digest, size, came int64) error {
	if size >= 0 && size != came {
		return atelier.Errorf(atelier.Corrupt, "%d bytes came, %d were expected", came, size).
			WithRemedy("Send the content again.")
	}
	if want != "" && want != got {
		return atelier.Errorf(atelier.Corrupt, "the content that came has the digest %s, expected was %s", got, want).
			WithRemedy("Send the content again; check its source if that repeats.")
	}
	return nil
}

// Close ends the writer. What was not committed is kept for the next Writer of
// the same name; without a name it is dropped. Close after Commit or Abort does
// nothing.
func (w *Writer) Close() error {
	if w.done {
		return nil
	}
	if !w.named() {
		return w.Abort()
	}
	var err error
	if w.err == nil && w.saved != w.at {
		err = durable.Explain(w.save(), "keep an upload")
	}
	return errors.Join(err, w.end())
}

// Abort ends the writer and drops what was not committed.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	return errors.Join(w.store.drop(w.name), w.end())
}

func (w *Writer) end() error {
	w.done = true
	if w.err == nil {
		w.err = atelier.Errorf(atelier.Conflict, "the upload has ended")
	}
	w.store.release(w.name)
	return durable.Explain(w.file.Close(), "close an upload")
}

// The record of a named upload: magic with version, the length that is on disk,
// the state of the SHA-256 over it as crypto/sha256 marshals it, and a CRC-32C of
// all that.
const uploadMagic = "atelier upload 1\n"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encodeUpload(at int64, h hash.Hash) ([]byte, error) {
	state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil, err
	}
	b := append([]byte(uploadMagic), make([]byte, 8)...)
	binary.BigEndian.PutUint64(b[len(uploadMagic):], uint64(at))
	b = append(b, state...)
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

func decodeUpload(b []byte) (at int64, h hash.Hash, ok bool) {
	rest, ok := strings.CutPrefix(string(b), uploadMagic)
	if !ok || len(rest) < 8+4 {
		return 0, nil, false
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return 0, nil, false
	}
	body = body[len(uploadMagic):]
	at = int64(binary.BigEndian.Uint64(body))
	h = sha256.New()
	err := h.(encoding.BinaryUnmarshaler).UnmarshalBinary(body[8:])
	return at, h, at >= 0 && err == nil
}
