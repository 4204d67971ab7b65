package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

const (
	pieceBuffer = 256 << 10
	spareDisk   = 64 << 20 // bytes that uploads leave free, for the database
	// handOver is how long a request waits for another one that writes the same upload.
	handOver = 10 * time.Second
)

// Piece is bytes of a layer as they come.
type Piece struct {
	// From is read once. Where it has a method Interrupt, that is called to end a Read
	// that waits, when another request goes on with the upload: its sender is gone.
	From io.Reader
	// Start is where the sender believes the piece to begin, -1 for wherever the upload stands.
	Start  int64
	Length int64 // bytes, -1 where that is not known
}

// session is a request that writes an upload.
type session struct {
	piece Piece
	taken atomic.Bool   // another request has taken the upload over
	at    atomic.Int64  // bytes that the upload has
	done  chan struct{} // closed when the request no longer writes
}

// uploadName is the name that an upload has in the content store: it holds the
// workspace, so that its uploads can be counted, the id, and a check of the
// repository, so that the id is good for that one only. "" for what is no id.
func uploadName(workspace, repository, id string) string {
	if !atelier.IsID(id) || !atelier.IsID(workspace) {
		return ""
	}
	sum := sha256.Sum256([]byte(repository))
	return uploadsOf(workspace) + id + "-" + hex.EncodeToString(sum[:4])
}

const uploadPrefix = "i-"

func uploadsOf(workspace string) string { return uploadPrefix + workspace + "-" }

// BeginUpload begins the upload of a layer, to which any number of pieces may be
// appended, by one request after another, until it is finished. Exhausted where the
// workspace has as many open as it may.
func (r *Registry) BeginUpload(ctx context.Context, workspace, repository string) (id string, err error) {
	if err := r.checkRoom(0); err != nil {
		return "", err
	}
	if err := r.checkQuota(ctx, workspace, "", 0); err != nil {
		return "", err
	}
	open, err := r.content.Uploads(uploadsOf(workspace))
	if err != nil {
		return "", err
	}
	if len(open) >= r.maxUploads {
		return "", atelier.Errorf(atelier.Exhausted, "the workspace has %d uploads open, as many as it may", len(open)).
			WithRemedy("Finish or cancel some; those that nothing comes for are dropped after %s.", r.keep)
	}
	id = atelier.NewID()
	w, err := r.content.Writer(uploadName(workspace, repository, id))
	if err != nil {
		return "", err
	}
	return id, w.Close()
}

// Append appends a piece to an upload and returns how many bytes the upload has then:
// they are on disk, and stay there whatever happens to the hub. A piece that breaks
// off counts as far as it came. Invalid with FieldRange where it does not begin where
// the upload stands.
func (r *Registry) Append(ctx context.Context, workspace, repository, id string, p Piece) (at int64, err error) {
	err = r.write(ctx, workspace, repository, id, p, func(*content.Writer) error { return nil }, &at)
	return at, err
}

// FinishUpload appends a last piece and makes the layer part of the repository, if it
// has the digest. If it has another one, nothing of it stays.
func (r *Registry) FinishUpload(ctx context.Context, workspace, repository, id, digest string, p Piece) error {
	if err := CheckDigest(digest); err != nil {
		return err
	}
	return r.write(ctx, workspace, repository, id, p, func(w *content.Writer) error {
		return r.commit(ctx, workspace, repository, digest, w)
	}, nil)
}

// CancelUpload drops an upload.
func (r *Registry) CancelUpload(ctx context.Context, workspace, repository, id string) error {
	return r.write(ctx, workspace, repository, id, Piece{From: strings.NewReader(""), Start: -1}, (*content.Writer).Abort, nil)
}

// UploadStatus returns how many bytes an upload has; while a request writes it, those
// that have come so far.
func (r *Registry) UploadStatus(ctx context.Context, workspace, repository, id string) (at int64, err error) {
	name := uploadName(workspace, repository, id)
	r.mu.Lock()
	s := r.active[name]
	r.mu.Unlock()
	if s != nil {
		return s.at.Load(), nil
	}
	return r.Append(ctx, workspace, repository, id, Piece{From: strings.NewReader(""), Start: -1})
}

// Upload makes a layer part of a repository in one go.
func (r *Registry) Upload(ctx context.Context, workspace, repository, digest string, p Piece) (err error) {
	if err := CheckDigest(digest); err != nil {
		return err
	}
	if err := r.checkRoom(p.Length); err != nil {
		return err
	}
	if err := r.checkQuota(ctx, workspace, contentOf(digest), p.Length); err != nil {
		return err
	}
	w, err := r.content.Writer("")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := r.receive(ctx, &session{piece: p}, w); err != nil {
		return err
	}
	return r.commit(ctx, workspace, repository, digest, w)
}

// write gives an upload to one request: it takes in the piece and does then.
func (r *Registry) write(ctx context.Context, workspace, repository, id string, p Piece, then func(*content.Writer) error, at *int64) (err error) {
	name := uploadName(workspace, repository, id)
	s := &session{piece: p, done: make(chan struct{})}
	if err := r.take(ctx, name, s); err != nil {
		return err
	}
	defer r.release(name, s)
	has, err := r.content.HasUpload(name)
	if err != nil {
		return err
	}
	if !has {
		return atelier.Errorf(atelier.NotFound, "there is no upload %.40q here: it was finished, cancelled or dropped", id).WithField(FieldUpload).
			WithRemedy("Begin a new one.")
	}
	w, err := r.content.Writer(name)
	if err != nil {
		return err
	}
	defer func() {
		if at != nil {
			*at = w.Offset()
		}
		err = errors.Join(err, w.Close()) // makes durable what came, also of a piece that broke off
	}()
	s.at.Store(w.Offset())
	if p.Start >= 0 && p.Start != w.Offset() {
		return atelier.Errorf(atelier.Invalid, "the piece begins at byte %d, and the upload stands at %d", p.Start, w.Offset()).WithField(FieldRange).
			WithRemedy("Send what follows byte %d.", w.Offset())
	}
	if p.Length > 0 {
		if err := r.checkRoom(p.Length); err != nil {
			return err
		}
	}
	if err := r.receive(ctx, s, w); err != nil {
		return err
	}
	return then(w)
}

// take makes s the session that writes an upload. One that has it is ended: its
// sender has begun anew, and may not even know that the old connection still stands.
func (r *Registry) take(ctx context.Context, name string, s *session) error {
	patience := time.NewTimer(handOver)
	defer patience.Stop()
	for {
		r.mu.Lock()
		other := r.active[name]
		if other == nil {
			r.active[name] = s
			r.mu.Unlock()
			return nil
		}
		r.mu.Unlock()
		other.taken.Store(true)
		if stop, ok := other.piece.From.(interface{ Interrupt() }); ok {
			stop.Interrupt()
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return ctx.Err()
		case <-patience.C:
			return atelier.Errorf(atelier.Unavailable, "another request still writes this upload").WithField(FieldUpload).
				WithRemedy("Ask for its status, and go on from there.")
		}
	}
}

func (r *Registry) release(name string, s *session) {
	r.mu.Lock()
	delete(r.active, name)
	r.mu.Unlock()
	close(s.done)
}

// receive writes a piece as it comes, with constant memory.
func (r *Registry) receive(ctx context.Context, s *session, w *content.Writer) error {
	buf := make([]byte, min(pieceBuffer, max(s.piece.Length, 512)))
	if s.piece.Length < 0 {
		buf = make([]byte, pieceBuffer)
	}
	rest := s.piece.Length
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.taken.Load() {
			return atelier.Errorf(atelier.Conflict, "another request goes on with this upload").WithField(FieldUpload)
		}
		n, err := s.piece.From.Read(buf)
		if s.piece.Length >= 0 && int64(n) > rest {
			return atelier.Errorf(atelier.Invalid, "more bytes came than the %d that were announced", s.piece.Length).WithField(FieldSize)
		}
		if w.Offset()+int64(n) > r.maxBlob {
			return r.errTooLarge()
		}
		rest -= int64(n)
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		r.figures.received.Add(uint64(n))
		s.at.Store(w.Offset())
		switch {
		case errors.Is(err, io.EOF) && rest > 0 && s.piece.Length >= 0:
			return atelier.Errorf(atelier.Invalid, "the piece broke off: %d of its %d bytes are missing", rest, s.piece.Length).WithField(FieldSize).
				WithRemedy("Ask for the upload's status, and go on from there.")
		case errors.Is(err, io.EOF):
			return nil
		case s.taken.Load():
			return atelier.Errorf(atelier.Conflict, "another request goes on with this upload").WithField(FieldUpload)
		case err != nil:
			var e *atelier.Error
			if errors.As(err, &e) {
				return err
			}
			return atelier.Errorf(atelier.Invalid, "the piece broke off: %w", err).WithField(FieldUpload).
				WithRemedy("Ask for the upload's status, and go on from there.")
		}
	}
}

// commit makes what w has content, and a layer of the repository.
func (r *Registry) commit(ctx context.Context, workspace, repository, digest string, w *content.Writer) error {
	info, err := w.Commit(contentOf(digest), -1)
	if atelier.CodeOf(err) == atelier.Corrupt {
		return atelier.Errorf(atelier.Invalid, "%s", err).WithField(FieldDigest).
			WithRemedy("Compare the digest with the file's, and send it again.")
	}
	if err != nil {
		return err
	}
	if h := hasher(digest); h != nil {
		// The content store knows SHA-256 only. Where the other digest is wrong, nobody
		// holds the content, and it is collected.
		b, err := r.content.Open(info.Digest)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(h, io.NewSectionReader(b, 0, b.Size()), make([]byte, pieceBuffer))
		if err := errors.Join(err, b.Close()); err != nil {
			return atelier.Errorf(atelier.Internal, "read the content back: %w", err)
		}
		if got := "sha512:" + hex.EncodeToString(h.Sum(nil)); got != digest {
			return atelier.Errorf(atelier.Invalid, "the content that came has the digest %s, expected was %s", got, digest).WithField(FieldDigest)
		}
	}
	return r.hold(ctx, workspace, repository, digest, info)
}

func (r *Registry) checkRoom(size int64) error {
	if size > r.maxBlob {
		return r.errTooLarge()
	}
	free, err := r.content.Free()
	if err != nil {
		return err
	}
	if need := max(size, 0); free-need < spareDisk {
		return atelier.Errorf(atelier.NoSpace, "the hub's disk has %s free, this takes %s, and %s stay in reserve",
			atelier.FormatBytes(free), atelier.FormatBytes(need), atelier.FormatBytes(spareDisk)).
			WithRemedy("Delete images or models that nobody needs, or give the hub a larger disk.")
	}
	return nil
}

func (r *Registry) errTooLarge() error {
	return atelier.Errorf(atelier.TooLarge, "the layer has more than %d bytes", r.maxBlob).WithField(FieldSize)
}
