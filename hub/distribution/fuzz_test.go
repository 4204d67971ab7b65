package distribution

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/hub/images"
)

// Whatever a path says, a repository is one that can be named, and the route leads
// back to the path.
func FuzzRoute(f *testing.F) {
	for _, s := range []string{
		"/v2", "/v2/", "/v2/one/cell/manifests/1", "/v2/one/a/b/blobs/sha256:00", "/v2/one/cell/blobs/uploads/", "/v2/one/cell/blobs/uploads",
		"/v2/one/cell/blobs/uploads/01j00000000000000000000000", "/v2/one/blobs/uploads/manifests/1", "/v2/one/cell/tags/list", "/v2/one/cell/referrers/sha256:00",
		"/v2/../x/manifests/1", "/v2//manifests/", "/v2/blobs/uploads/", "/v2/one/cell/\x00/manifests/1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		r, err := parseRoute(path)
		if err != nil || r.kind == kindNone || r.kind == kindBase {
			if r.repository != "" || r.workspace != "" {
				t.Errorf("%q names %+v and is refused: %v", path, r, err)
			}
			return
		}
		if images.CheckName(r.name()) != nil || strings.Contains(r.workspace, "/") || r.workspace == "" || r.repository == "" {
			t.Errorf("%q names %+v", path, r)
		}
		middle := map[kind]string{
			kindBlob: "blobs/" + r.ref, kindUploads: "blobs/uploads", kindUpload: "blobs/uploads/" + r.ref, kindManifest: "manifests/" + r.ref,
			kindTags: "tags/list", kindReferrers: "referrers/" + r.ref,
		}[r.kind]
		if back := "/v2/" + r.name() + "/" + middle; back != path && back+"/" != path {
			t.Errorf("%q is read as %+v, which is %q", path, r, back)
		}
	})
}

// A range is none, or begins and ends where it says.
func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"", "0-0", "5-9", "bytes 5-9/10", "bytes=5-9", "9-5", "-5", "5-", "+1-2", "0-9223372036854775807", "9223372036854775807-9223372036854775807", "1e3-2e3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		start, length, err := parseContentRange(s)
		switch {
		case err != nil:
		case s == "":
			if start != -1 || length != -1 {
				t.Errorf("nothing is read as %d, %d", start, length)
			}
		case start < 0 || length < 1 || start+length < start:
			t.Errorf("%q is read as %d bytes from %d", s, length, start)
		}
	})
}

// No token is taken that was not sealed here, and none makes the hub fail.
func FuzzToken(f *testing.F) {
	a := New(Config{Log: slog.New(slog.DiscardHandler)})
	good, err := a.seal(token{Access: "id", Expires: time.Now().Add(time.Hour).Unix(), Scopes: []string{"one/cell:pull"}})
	if err != nil {
		f.Fatal(err)
	}
	if _, ok := a.open(good); !ok {
		f.Fatal("a token of ours is not taken")
	}
	for _, s := range []string{"", "atr_", "atr_.", good[:len(good)-1], good + "A", strings.ToLower(good)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, ok := a.open(s); ok && s != good && s != strings.TrimPrefix(good, tokenPrefix) {
			t.Errorf("%q is taken as %+v", s, got)
		}
		scopes, err := parseScopes([]string{s})
		if err == nil && len(scopes) > maxScopes {
			t.Errorf("%d scopes are taken", len(scopes))
		}
	})
}
