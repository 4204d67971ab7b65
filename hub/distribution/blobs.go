package distribution

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/internal/patient"
)

const (
	octets       = "application/octet-stream"
	headerDigest = "Docker-Content-Digest"
	headerUpload = "Docker-Upload-Uuid"
)

// place is the path of something in the request's repository, for Location.
func (r *request) place(segments ...string) string {
	return "/v2/" + r.route.name() + "/" + strings.Join(segments, "/")
}

func (a *API) getBlob(r *request) error {
	b, err := a.images.OpenLayer(r.Context(), r.workspace.ID, r.repository(), r.route.ref)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }() // it was open for reading only
	h := r.w.Header()
	h.Set("Content-Type", octets)
	h.Set(headerDigest, r.route.ref)
	h.Set("ETag", `"`+r.route.ref+`"`)
	out := &counter{ResponseWriter: patient.NewWriter(r.w, a.stall)}
	http.ServeContent(out, r.Request, "", time.Time{}, io.NewSectionReader(b, 0, b.Size()))
	a.images.Sent(out.n)
	return nil
}

// counter counts the bytes of an answer's body.
type counter struct {
	http.ResponseWriter
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n += int64(n)
	return n, err
}

func (a *API) deleteBlob(r *request) error {
	if err := a.images.DeleteLayer(r.Context(), r.workspace.ID, r.repository(), r.route.ref); err != nil {
		return err
	}
	r.w.WriteHeader(http.StatusAccepted)
	return nil
}

// beginUpload mounts a blob of another repository where the request asks for that and
// it can be done, takes it in whole where it comes along, and begins an upload else.
func (a *API) beginUpload(r *request) error {
	q := r.URL.Query()
	if digest := q.Get("mount"); digest != "" {
		mounted, err := a.mount(r, digest, q.Get("from"))
		if err != nil {
			return err
		}
		if mounted {
			return a.created(r, digest)
		}
	} else if digest := q.Get("digest"); digest != "" {
		return a.withBody(r, func(body io.Reader) error {
			err := a.images.Upload(r.Context(), r.workspace.ID, r.repository(), digest, images.Piece{From: body, Start: -1, Length: r.ContentLength})
			if err != nil {
				return err
			}
			return a.created(r, digest)
		})
	}
	id, err := a.images.BeginUpload(r.Context(), r.workspace.ID, r.repository())
	if err != nil {
		return err
	}
	a.tell(r, id, 0)
	r.w.WriteHeader(http.StatusAccepted)
	return nil
}

// mount asks whether the caller may read the repository that the blob is to come from,
// and mounts it if so. What the caller may not read is as good as not there. Without a
// source the blob may come from any repository of the workspace, all of which the
// caller may read if it may read one.
func (a *API) mount(r *request, digest, from string) (bool, error) {
	if err := images.CheckDigest(digest); err != nil {
		return false, err
	}
	if from == "" {
		if a.access.Authorize(r.Context(), access.ImageDownload, access.Object{Workspace: r.workspace.ID, Kind: "repository"}) != nil {
			return false, nil
		}
		return a.images.Mount(r.Context(), r.workspace.ID, r.repository(), digest, nil)
	}
	var source route
	if err := source.named(from); err != nil {
		return false, nil
	}
	if !r.caller.may(from, "pull") {
		return false, errScope{}
	}
	w, err := a.allow(r.Context(), access.ImageDownload, source.workspace, source.repository)
	switch atelier.CodeOf(err) {
	case "":
		return a.images.Mount(r.Context(), r.workspace.ID, r.repository(), digest, &images.Source{Workspace: w.ID, Repository: source.repository})
	case atelier.NotFound, atelier.Forbidden:
		return false, nil
	}
	return false, err
}

// created answers that a blob is there.
func (a *API) created(r *request, digest string) error {
	r.w.Header().Set(headerDigest, digest)
	r.w.Header().Set("Location", r.place("blobs", digest))
	r.w.WriteHeader(http.StatusCreated)
	return nil
}

// tell sets the headers that say how an upload stands. OCI has no word for an upload
// of no bytes; like other registries this one says 0-0, and takes byte 0 next.
func (a *API) tell(r *request, id string, at int64) {
	h := r.w.Header()
	h.Set("Location", r.place("blobs", "uploads", id))
	h.Set("Range", "0-"+strconv.FormatInt(max(at-1, 0), 10))
	h.Set(headerUpload, id)
}

func (a *API) uploadStatus(r *request) error {
	at, err := a.images.UploadStatus(r.Context(), r.workspace.ID, r.repository(), r.route.ref)
	if err != nil {
		return err
	}
	a.tell(r, r.route.ref, at)
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *API) appendUpload(r *request) error {
	return a.withPiece(r, func(p images.Piece) error {
		at, err := a.images.Append(r.Context(), r.workspace.ID, r.repository(), r.route.ref, p)
		if code := atelier.CodeOf(err); err == nil || code == atelier.Invalid {
			a.tell(r, r.route.ref, at) // after a piece that broke off, too
		}
		if err != nil {
			return err
		}
		r.w.WriteHeader(http.StatusAccepted)
		return nil
	})
}

func (a *API) finishUpload(r *request) error {
	digest := r.URL.Query().Get("digest")
	if digest == "" {
		return atelier.Errorf(atelier.Invalid, "the digest is missing").WithField(images.FieldDigest).WithRemedy("Finish the upload with ?digest=sha256:….")
	}
	return a.withPiece(r, func(p images.Piece) error {
		err := a.images.FinishUpload(r.Context(), r.workspace.ID, r.repository(), r.route.ref, digest, p)
		if err != nil {
			r.w.Header().Set("Location", r.place("blobs", "uploads", r.route.ref))
			return err
		}
		return a.created(r, digest)
	})
}

func (a *API) cancelUpload(r *request) error {
	if err := a.images.CancelUpload(r.Context(), r.workspace.ID, r.repository(), r.route.ref); err != nil {
		return err
	}
	r.w.WriteHeader(http.StatusNoContent)
	return nil
}

// withBody calls fn with the request's body, which lasts as long as bytes keep coming.
func (a *API) withBody(r *request, fn func(io.Reader) error) error {
	body := patient.NewReader(r.w, r.Request, a.stall)
	err := fn(body)
	if err == nil {
		body.Done()
	}
	return err
}

// withPiece calls fn with the piece of a blob that the request brings.
func (a *API) withPiece(r *request, fn func(images.Piece) error) error {
	start, length, err := parseContentRange(r.Header.Get("Content-Range"))
	if err != nil {
		return err
	}
	switch {
	case length >= 0 && r.ContentLength >= 0 && length != r.ContentLength:
		return atelier.Errorf(atelier.Invalid, "Content-Range tells of %d bytes, Content-Length of %d", length, r.ContentLength).WithField(images.FieldSize)
	case length < 0:
		length = r.ContentLength
	}
	return a.withBody(r, func(body io.Reader) error {
		return fn(images.Piece{From: body, Start: start, Length: length})
	})
}

// parseContentRange reads the Content-Range of a piece, "START-END", both counted from
// 0 and the end with it; also as HTTP has it, "bytes START-END/SIZE". -1 and -1 where
// there is none.
func parseContentRange(s string) (start, length int64, err error) {
	if s == "" {
		return -1, -1, nil
	}
	plain := strings.TrimPrefix(strings.TrimPrefix(s, "bytes "), "bytes=")
	plain, _, _ = strings.Cut(plain, "/")
	from, to, ok := strings.Cut(plain, "-")
	start, err1 := strconv.ParseInt(from, 10, 64)
	end, err2 := strconv.ParseInt(to, 10, 64)
	if !ok || err1 != nil || err2 != nil || start < 0 || end < start || end == 1<<63-1 || strings.Trim(from+to, "0123456789") != "" {
		return 0, 0, atelier.Errorf(atelier.Invalid, "Content-Range %.80q is none", s).WithField(images.FieldUpload).
			WithRemedy("Write it as START-END, with the end within the piece.")
	}
	return start, end - start + 1, nil
}
