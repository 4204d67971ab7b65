package distribution

import (
	"io"
	"net/http"
	"net/url"
	"strconv"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/images"
)

func (a *API) getManifest(r *request) error {
	img, body, err := a.images.Manifest(r.Context(), r.workspace.ID, r.repository(), images.Reference(r.route.ref))
	if err != nil {
		return err
	}
	h := r.w.Header()
	h.Set("Content-Type", img.MediaType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set(headerDigest, img.Digest)
	h.Set("ETag", `"`+img.Digest+`"`)
	r.w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = r.w.Write(body) // a caller that has gone is no failure of ours
	}
	return nil
}

func (a *API) putManifest(r *request) error {
	return a.withBody(r, func(from io.Reader) error {
		body, err := io.ReadAll(io.LimitReader(from, images.MaxManifest+1))
		if err != nil {
			return atelier.Errorf(atelier.Invalid, "the manifest did not arrive whole: %w", err).WithField(images.FieldSize)
		}
		img, err := a.images.Push(r.Context(), r.workspace.ID, r.repository(), images.Reference(r.route.ref),
			r.URL.Query()["tag"], r.Header.Get("Content-Type"), body)
		if err != nil {
			return err
		}
		h := r.w.Header()
		h.Set("Location", r.place("manifests", img.Digest))
		h.Set(headerDigest, img.Digest)
		if img.Subject != "" {
			h.Set("OCI-Subject", img.Subject)
		}
		for _, tag := range r.URL.Query()["tag"] {
			h.Add("OCI-Tag", tag)
		}
		r.w.WriteHeader(http.StatusCreated)
		return nil
	})
}

func (a *API) deleteManifest(r *request) error {
	var err error
	if ref := images.Reference(r.route.ref); ref.IsDigest() {
		err = a.images.Delete(r.Context(), r.workspace.ID, r.repository(), r.route.ref)
	} else {
		err = a.images.Untag(r.Context(), r.workspace.ID, r.repository(), r.route.ref)
	}
	if err != nil {
		return err
	}
	r.w.WriteHeader(http.StatusAccepted)
	return nil
}

func (a *API) listTags(r *request) error {
	q := r.URL.Query()
	limit := images.MaxTags
	if text := q.Get("n"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			return atelier.Errorf(atelier.Invalid, "n=%.20q is no number of tags", text)
		}
		limit = min(n, limit)
	}
	tags, more, err := a.images.Tags(r.Context(), r.workspace.ID, r.repository(), q.Get("last"), limit)
	if err != nil {
		return err
	}
	if more {
		r.next("tags/list", url.Values{"n": {strconv.Itoa(limit)}, "last": {tags[len(tags)-1]}})
	}
	return answerJSON(r.w, http.StatusOK, map[string]any{"name": r.route.name(), "tags": tags})
}

// next tells where the next page is.
func (r *request) next(path string, query url.Values) {
	r.w.Header().Set("Link", "<"+r.place(path)+"?"+query.Encode()+`>; rel="next"`)
}

// indexOf is an index of images as an answer.
type indexOf struct {
	SchemaVersion int                 `json:"schemaVersion"`
	MediaType     string              `json:"mediaType"`
	Manifests     []images.Descriptor `json:"manifests"`
}

func (a *API) listReferrers(r *request) error {
	q := r.URL.Query()
	artifactType := q.Get("artifactType")
	list, next, err := a.images.Referrers(r.Context(), r.workspace.ID, r.repository(), r.route.ref, artifactType, q.Get("after"))
	if err != nil {
		return err
	}
	h := r.w.Header()
	h.Set("Content-Type", images.TypeIndex)
	if artifactType != "" {
		h.Set("OCI-Filters-Applied", "artifactType")
	}
	if next != "" {
		query := url.Values{"after": {next}}
		if artifactType != "" {
			query.Set("artifactType", artifactType)
		}
		r.next("referrers/"+r.route.ref, query)
	}
	return answerJSON(r.w, http.StatusOK, indexOf{SchemaVersion: 2, MediaType: images.TypeIndex, Manifests: list})
}
