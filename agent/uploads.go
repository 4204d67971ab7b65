package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

type digest = atelier.Digest

// Bounds of what is collected for the hub.
const (
	maxUpload  = 64 << 20         // bytes
	keepUpload = 15 * time.Minute // then the hub must ask again
)

// uploads are files that the hub asked for, until it has fetched them. They are
// named by their digest; the hub may have these and nothing else of the device.
type uploads struct{ dir string }

// newUploads makes the directory, without what an earlier agent left in it.
func newUploads(dir string) (*uploads, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, durable.Explain(err, "empty "+dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, durable.Explain(err, "make "+dir)
	}
	return &uploads{dir}, nil
}

// add takes in a copy of what r holds.
func (u *uploads) add(r io.Reader) (d digest, size int64, err error) {
	f, err := os.CreateTemp(u.dir, "new-*")
	if err != nil {
		return "", 0, durable.Explain(err, "keep a copy for the hub")
	}
	defer func() {
		if err != nil {
			err = errors.Join(durable.Explain(err, "keep a copy for the hub"), os.Remove(f.Name()))
		}
	}()
	hash := sha256.New()
	size, err = io.Copy(io.MultiWriter(f, hash), io.LimitReader(r, maxUpload))
	if err = errors.Join(err, f.Close()); err != nil {
		return "", 0, err
	}
	d = atelier.DigestFrom(hash)
	return d, size, os.Rename(f.Name(), u.path(d))
}

func (u *uploads) path(d digest) string { return filepath.Join(u.dir, d.Hex()) }

// open opens a file for the hub; NotFound where it did not ask for it.
func (u *uploads) open(d digest) (transfer.Blob, error) {
	if _, err := atelier.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	f, err := os.Open(u.path(d))
	if err != nil {
		return nil, durable.Explain(err, "open what the hub asked for")
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(durable.Explain(err, "open what the hub asked for"), f.Close())
	}
	return &upload{f, info.Size()}, nil
}

// upload is an open file of known size.
type upload struct {
	*os.File
	size int64
}

// Size implements transfer.Blob.
func (u *upload) Size() int64 { return u.size }

// expire removes what the hub has not fetched for a while. A file that cannot be
// removed is tried again with the next call.
func (u *uploads) expire() {
	entries, err := os.ReadDir(u.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > keepUpload {
			_ = os.Remove(filepath.Join(u.dir, e.Name()))
		}
	}
}

// Collect implements session.Events: it copies the end of a log, so that it
// stays as it is while the hub fetches it.
func (a *agent) Collect(ctx context.Context, c wire.Collect) wire.Collected {
	r, err := a.logOf(ctx, c)
	if err != nil {
		return wire.Collected{Why: atelier.BecauseOf(atelier.ReasonStartFailed, err)}
	}
	d, size, err := a.uploads.add(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return wire.Collected{Why: atelier.BecauseOf(atelier.ReasonNoSpace, err)}
	}
	return wire.Collected{OK: true, Digest: d, Size: size, Why: atelier.Because(atelier.ReasonAsDesired, "")}
}

// logOf opens the end of the log that the hub asks for.
func (a *agent) logOf(ctx context.Context, c wire.Collect) (io.ReadCloser, error) {
	most := min(c.MaxBytes, maxUpload)
	if most <= 0 {
		return nil, atelier.Errorf(atelier.Invalid, "%d bytes of log were asked for", c.MaxBytes)
	}
	switch c.What {
	case wire.CollectAgentLog:
		return tail(a.places.log(), most)
	case wire.CollectModuleLog:
		target, id, ok := a.runner.Find(c.Deployment)
		if !ok {
			return nil, atelier.Errorf(atelier.NotFound, "the device has no module of deployment %.40q", c.Deployment)
		}
		return target.Log(ctx, id, most)
	}
	return nil, atelier.Errorf(atelier.Unsupported, "this agent cannot collect %.40q", c.What)
}

// tail opens the last bytes of a file that grows.
func tail(path string, most int64) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, durable.Explain(err, "open the log")
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(durable.Explain(err, "open the log"), f.Close())
	}
	from := max(0, info.Size()-most)
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, from, info.Size()-from), f}, nil
}
