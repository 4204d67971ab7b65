package registry

import (
	"context"
	"errors"
	"fmt"
	"io"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
)

const (
	uploadBuffer = 256 << 10
	spareDisk    = 64 << 20 // bytes that uploads leave free, for the database
)

// Upload takes content into a workspace as it comes, with constant memory, and
// returns what it is once it is on disk. Where want is not "" or size not
// negative, the content must be that; Invalid otherwise, and nothing of it stays.
// Content that is there already costs no space a second time. A failure, also of
// content to be read, leaves nothing behind.
//
// A workspace that uploads without ever naming the content in a version holds it
// for a day; see Run.
func (r *Registry) Upload(ctx context.Context, workspace string, from io.Reader, want atelier.Digest, size int64) (catalog.Blob, error) {
	if want != "" {
		if _, err := atelier.ParseDigest(string(want)); err != nil {
			return catalog.Blob{}, err
		}
	}
	if err := r.checkRoom(size); err != nil {
		return catalog.Blob{}, err
	}
	info, err := r.ingest(ctx, from, want, size)
	if err != nil {
		return catalog.Blob{}, err
	}
	return r.hold(ctx, workspace, info)
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
			WithRemedy("Delete models or versions that nobody needs, or give the hub a larger disk.")
	}
	return nil
}

func (r *Registry) errTooLarge() error {
	return atelier.Errorf(atelier.TooLarge, "the content has more than %d bytes", r.maxBlob).
		WithRemedy("Split it into several files.")
}

// ingest writes, syncs and commits.
func (r *Registry) ingest(ctx context.Context, from io.Reader, want atelier.Digest, size int64) (info content.Info, err error) {
	w, err := r.content.Writer("")
	if err != nil {
		return info, err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	limited := &io.LimitedReader{R: &cancelled{ctx, from}, N: r.maxBlob + 1}
	if _, err := io.CopyBuffer(w, limited, make([]byte, uploadBuffer)); err != nil {
		var e *atelier.Error
		if errors.As(err, &e) {
			return info, err // of the store, or told by the reader
		}
		return info, atelier.Errorf(atelier.Invalid, "the content broke off after %d bytes: %w", w.Offset(), err).
			WithRemedy("Send it again, whole.")
	}
	if limited.N == 0 {
		return info, r.errTooLarge()
	}
	info, err = w.Commit(want, size)
	if atelier.CodeOf(err) == atelier.Corrupt { // the sender's mistake, not the disk's
		err = atelier.Errorf(atelier.Invalid, "%s", err).WithField("digest").
			WithRemedy("Compare the digest with the file's, and send it again.")
	}
	return info, err
}

// cancelled is a reader that ends with its context.
type cancelled struct {
	ctx context.Context
	io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.Reader.Read(p)
}

// hold records that a workspace holds content. Content that it holds already is
// recorded anew, so that its age begins again.
func (r *Registry) hold(ctx context.Context, workspace string, info content.Info) (b catalog.Blob, err error) {
	err = r.update(ctx, func(tx store.Tx) error {
		b, err = catalog.Blobs.Find(tx, workspace, "", string(info.Digest))
		switch {
		case err == nil:
			b, err = catalog.Blobs.Update(tx, workspace, b)
		case atelier.CodeOf(err) == atelier.NotFound:
			b, err = catalog.Blobs.Insert(tx, workspace, "", catalog.Blob{Meta: atelier.Meta{Name: string(info.Digest)}, Size: info.Size})
		}
		return err
	})
	return b, err
}

// Blob says what a workspace holds under a digest; NotFound where it holds
// nothing, whatever other workspaces hold.
func (r *Registry) Blob(ctx context.Context, workspace string, d atelier.Digest) (b catalog.Blob, err error) {
	if _, err := atelier.ParseDigest(string(d)); err != nil {
		return b, err
	}
	err = r.store.View(ctx, func(tx store.Tx) error {
		b, err = findBlob(tx, workspace, d)
		return err
	})
	return b, err
}

func findBlob(tx store.Tx, workspace string, d atelier.Digest) (catalog.Blob, error) {
	b, err := catalog.Blobs.Find(tx, workspace, "", string(d))
	if atelier.CodeOf(err) == atelier.NotFound {
		err = atelier.Errorf(atelier.NotFound, "the workspace holds no content %s", d).WithRemedy("Upload it first.")
	}
	return b, err
}

// OpenBlob opens content that a workspace holds. The caller closes it.
func (r *Registry) OpenBlob(ctx context.Context, workspace string, d atelier.Digest) (*content.Blob, error) {
	if _, err := r.Blob(ctx, workspace, d); err != nil {
		return nil, err
	}
	return r.open(d)
}

// open opens content that a row speaks of: it must be there.
func (r *Registry) open(d atelier.Digest) (*content.Blob, error) {
	b, err := r.content.Open(d)
	if atelier.CodeOf(err) == atelier.NotFound {
		return nil, atelier.Errorf(atelier.Corrupt, "the hub's storage has lost the content %s", d).
			WithRemedy("Restore the hub's content from its backup, or upload the file again.")
	}
	return b, err
}

// checkFiles checks files that a version or a runtime shall be made of: their
// paths, and that the workspace holds their content.
func (r *Registry) checkFiles(tx store.Tx, workspace string, files []atelier.File) error {
	return CheckFiles(tx, workspace, files)
}

// CheckFiles returns Invalid where a workspace ("" for the hub) does not hold the content
// of a file, or holds it with another size, within a transaction. Paths are not looked at.
func CheckFiles(tx store.Tx, workspace string, files []atelier.File) error {
	for i, f := range files {
		field := fmt.Sprintf("files[%d]", i)
		b, err := findBlob(tx, workspace, f.Digest)
		if atelier.CodeOf(err) == atelier.NotFound {
			return atelier.Errorf(atelier.Invalid, "the content %s of file %q has not been uploaded here", f.Digest, f.Path).
				WithField(field + ".digest").WithRemedy("Upload it first, then register.")
		}
		if err != nil {
			return err
		}
		if b.Size != f.Size {
			return atelier.Errorf(atelier.Invalid, "file %q is said to have %d bytes, its content has %d", f.Path, f.Size, b.Size).
				WithField(field + ".size")
		}
	}
	return nil
}
