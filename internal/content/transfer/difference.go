package transfer

import (
	"context"
	"errors"
	"io"
	"slices"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/delta"
)

// difference is what a fetch makes content of, where it does not come as it is: the
// bytes of the difference, which come in as content does, and the bases, which are
// open so that they stay readable whoever deletes them meanwhile.
type difference struct {
	in    *content.Ingest
	bases map[atelier.Digest]*content.Blob
}

// errWholeIsBetter says why a difference that the peer offers is not taken: it would
// bring no less than what is missing, or does not fit.
var errWholeIsBetter = errors.New("the content as it is is the better way")

// openDifference begins or resumes the difference that p brings to file, of which
// whole has been fetched so far.
func openDifference(store *content.Store, p planFrame, offered []atelier.Digest, whole *content.Ingest, reserve int64) (_ *difference, err error) {
	d := &difference{bases: map[atelier.Digest]*content.Blob{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	for _, base := range p.bases {
		if !slices.Contains(offered, base) {
			return nil, atelier.Errorf(atelier.Unsupported, "the difference needs %s, which was not offered", base)
		}
		if d.bases[base] == nil {
			if d.bases[base], err = store.Open(base); err != nil {
				delete(d.bases, base)
				return nil, err
			}
		}
	}
	missing := whole.Size() - whole.Done()
	if p.size >= whole.Size() {
		return nil, errWholeIsBetter
	}
	if d.in, err = store.IngestDifference(whole.Digest(), p.difference, p.size); err != nil {
		return nil, err
	}
	free, err := store.Free()
	if err != nil {
		return nil, err
	}
	if !Takes(p.size-d.in.Done(), whole.Size(), missing, free-reserve) {
		return nil, errWholeIsBetter
	}
	return d, nil
}

// apply makes the content of file and commits it; then nothing of the difference stays.
func (d *difference) apply(ctx context.Context, store *content.Store, file atelier.File) (err error) {
	bytes, err := d.in.Verified(ctx)
	if err != nil {
		return err
	}
	w, err := store.Writer("")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := delta.Decode(ctx, w, io.NewSectionReader(bytes, 0, d.in.Size()), file.Size, d.base); err != nil {
		return err
	}
	if _, err := w.Commit(file.Digest, file.Size); err != nil {
		return err
	}
	return d.drop()
}

// base gives the decoder a base that it may not close: it can ask for it twice.
func (d *difference) base(digest atelier.Digest) (io.ReaderAt, int64, error) {
	b := d.bases[digest]
	if b == nil {
		return nil, 0, atelier.Errorf(atelier.Corrupt, "the difference needs %s, which its plan does not name", digest)
	}
	return io.NewSectionReader(b, 0, b.Size()), b.Size(), nil
}

// drop ends the difference; nothing of it is kept.
func (d *difference) drop() error { return d.in.Abort() }

// close ends the difference; what came in is kept for the next one.
func (d *difference) close() (err error) {
	if d.in != nil {
		err = d.in.Close()
	}
	for _, b := range d.bases {
		err = errors.Join(err, b.Close())
	}
	return err
}
