package distribution

import (
	"net/http"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/images"
)

// kind is what a path is about.
type kind int

const (
	kindNone kind = iota
	kindBase
	kindBlob
	kindUploads
	kindUpload
	kindManifest
	kindTags
	kindReferrers
)

// route is what a path says.
type route struct {
	kind       kind
	workspace  string // name or id
	repository string // within the workspace
	ref        string // digest, tag or id of an upload
}

// name is the repository's name as tools know it.
func (r route) name() string {
	if r.workspace == "" {
		return ""
	}
	return r.workspace + "/" + r.repository
}

// parseRoute reads a path. Where the repository's name is none the rest is still told.
func parseRoute(path string) (route, error) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok || rest == "" {
		if path == "/v2" || path == "/v2/" {
			return route{kind: kindBase}, nil
		}
		return route{}, nil
	}
	segments := strings.Split(rest, "/")
	n := len(segments)
	at := func(fromEnd int) string {
		if fromEnd > n {
			return ""
		}
		return segments[n-fromEnd]
	}
	var r route
	cut := 2
	switch {
	case at(3) == "blobs" && at(2) == "uploads":
		r.kind, r.ref, cut = kindUpload, at(1), 3
		if r.ref == "" {
			r.kind = kindUploads
		}
	case at(2) == "blobs" && at(1) == "uploads":
		r.kind = kindUploads
	case at(2) == "blobs":
		r.kind, r.ref = kindBlob, at(1)
	case at(2) == "manifests":
		r.kind, r.ref = kindManifest, at(1)
	case at(2) == "tags" && at(1) == "list":
		r.kind = kindTags
	case at(2) == "referrers":
		r.kind, r.ref = kindReferrers, at(1)
	default:
		return r, nil
	}
	return r, r.named(strings.Join(segments[:n-cut], "/"))
}

// named takes the name of a repository, with its workspace before it.
func (r *route) named(name string) error {
	if err := images.CheckName(name); err != nil {
		return err
	}
	workspace, repository, ok := strings.Cut(name, "/")
	if !ok {
		return atelier.Errorf(atelier.Invalid, "the repository name %.80q has no workspace before it", name).WithField(images.FieldName).
			WithRemedy("Name it WORKSPACE/%s.", name)
	}
	r.workspace, r.repository = workspace, repository
	return nil
}

// scopeOf is the action that a token must have been fetched for, as tools call it.
func scopeOf(method string, k kind) string {
	switch {
	case method == http.MethodGet || method == http.MethodHead:
		return "pull"
	case method == http.MethodDelete && k != kindUpload:
		return "delete"
	}
	return "push"
}
