package distribution

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
)

const TypeImage = "application/vnd.oci.image.manifest.v1+json"

func digest(b []byte) string { return string(atelier.DigestOf(b)) }

// pushBlob pushes content in one go.
func (x *registry) pushBlob(token, repo string, b []byte) string {
	x.t.Helper()
	d := digest(b)
	x.do(token, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d, b).is(x.t, 201, "")
	return d
}

// manifest is an image whose configuration and only layer are b.
func manifest(b []byte, extra ...string) []byte {
	part := fmt.Sprintf(`{"mediaType":"application/octet-stream","digest":%q,"size":%d}`, digest(b), len(b))
	return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[%s]%s}`, TypeImage, part, part, strings.Join(extra, ""))
}

// pushImage pushes an image under a tag, and returns its digest.
func (x *registry) pushImage(token, repo, tag string, b []byte) string {
	x.t.Helper()
	x.pushBlob(token, repo, b)
	m := manifest(b)
	x.do(token, "PUT", "/v2/"+repo+"/manifests/"+tag, m, "Content-Type: "+TypeImage).is(x.t, 201, "")
	return digest(m)
}

// begin begins an upload and returns its path.
func (x *registry) begin(token, repo string) string {
	x.t.Helper()
	return x.do(token, "POST", "/v2/"+repo+"/blobs/uploads/", nil).is(x.t, 202, "").header.Get("Location")
}

// What other workspaces have is not there: neither to read, nor to mount, nor to tell.
func TestWorkspacesAreApart(t *testing.T) {
	t.Parallel()
	x := newRegistry(t)
	one, two := x.workspace("one"), x.workspace("two")
	admin1, admin2, viewer := x.token("a1", access.Admin, one), x.token("a2", access.Admin, two), x.token("v1", access.Viewer, one)
	secret := []byte("a layer of the first workspace")
	image := x.pushImage(admin1, "one/press/cell", "1", secret)
	blob := digest(secret)

	for _, path := range []string{
		"/v2/one/press/cell/blobs/" + blob, "/v2/one/press/cell/manifests/1", "/v2/one/press/cell/tags/list", "/v2/one/press/cell/referrers/" + image,
		"/v2/nowhere/press/cell/tags/list", "/v2/" + one + "/press/cell/manifests/" + image,
	} {
		x.do(admin2, "GET", path, nil).is(t, 404, "NAME_UNKNOWN")
	}
	there := x.do(admin2, "GET", "/v2/one/press/cell/tags/list", nil).body
	nowhere := x.do(admin2, "GET", "/v2/six/press/cell/tags/list", nil).body
	if strings.ReplaceAll(there, "one", "six") != nowhere {
		t.Errorf("a workspace of others is told from none:\n%s\n%s", there, nowhere)
	}
	x.do(admin2, "DELETE", "/v2/one/press/cell/manifests/1", nil).is(t, 404, "NAME_UNKNOWN")
	x.pushBlob(admin2, "two/own", []byte("something"))
	x.do(admin2, "HEAD", "/v2/two/own/blobs/"+blob, nil).is(t, 404, "")
	for _, q := range []string{"&from=one/press/cell", "&from=six/press/cell", "&from=", ""} {
		x.do(admin2, "POST", "/v2/two/own/blobs/uploads/?mount="+blob+q, nil).is(t, 202, "")
	}
	x.do(admin2, "PUT", "/v2/two/own/manifests/1", manifest(secret), "Content-Type: "+TypeImage).is(t, 400, "MANIFEST_BLOB_UNKNOWN")
	x.do(admin2, "HEAD", "/v2/two/own/blobs/"+blob, nil).is(t, 404, "")

	// Within the workspace a repository holds only what came to it.
	x.pushBlob(admin1, "one/other", []byte("something"))
	x.do(admin1, "HEAD", "/v2/one/other/blobs/"+blob, nil).is(t, 404, "")
	x.do(admin1, "POST", "/v2/one/other/blobs/uploads/?mount="+blob+"&from=one/press/cell", nil).is(t, 201, "")
	x.do(admin1, "HEAD", "/v2/one/other/blobs/"+blob, nil).is(t, 200, "")
	// Who may use both workspaces may mount from one in the other.
	x.do(x.admin, "POST", "/v2/two/own/blobs/uploads/?mount="+blob+"&from=one/press/cell", nil).is(t, 201, "")

	x.do(viewer, "GET", "/v2/one/press/cell/manifests/1", nil).is(t, 200, "")
	x.do(viewer, "PUT", "/v2/one/press/cell/manifests/2", manifest(secret), "Content-Type: "+TypeImage).is(t, 403, "DENIED")
	x.do(viewer, "POST", "/v2/one/press/cell/blobs/uploads/", nil).is(t, 403, "DENIED")
	x.do(viewer, "DELETE", "/v2/one/press/cell/manifests/1", nil).is(t, 403, "DENIED")
	x.do("", "GET", "/v2/one/press/cell/manifests/1", nil).is(t, 401, "UNAUTHORIZED")

	var audit []store.AuditEntry
	err := x.store.View(t.Context(), func(tx store.Tx) (err error) {
		audit, err = tx.AuditTrail(one, 0, 1000)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	told := fmt.Sprint(audit)
	for _, want := range []string{"image.push repository press/cell true", "image.push repository press/cell false", "image.delete repository press/cell false", "image.download repository press/cell false"} {
		if !strings.Contains(told, want) {
			t.Errorf("the audit trail does not tell of %q:\n%s", want, told)
		}
	}
}

// Tokens are good for what they were fetched for, for as long as the access token is.
func TestTokens(t *testing.T) {
	t.Parallel()
	x := newRegistry(t)
	x.workspace("one")
	x.pushImage(x.admin, "one/cell", "1", []byte("layer"))
	challenge := x.do("", "PUT", "/v2/one/cell/manifests/2", nil).is(t, 401, "UNAUTHORIZED").header.Get("WWW-Authenticate")
	want := fmt.Sprintf(`Bearer realm="%s/v2/token",service="%s",scope="repository:one/cell:pull,push"`, x.server.URL, x.host)
	if challenge != want {
		t.Errorf("the challenge is %s\nwant %s", challenge, want)
	}
	if got := x.do("", "GET", "/v2/", nil).is(t, 401, "UNAUTHORIZED").header.Get("WWW-Authenticate"); !strings.HasPrefix(got, `Bearer realm="`) || strings.Contains(got, "scope") {
		t.Errorf("the challenge of the base is %s", got)
	}
	fetch := func(secret string, scopes ...string) reply {
		req, err := http.NewRequestWithContext(t.Context(), "GET", x.server.URL+"/v2/token?"+url.Values{"service": {x.host}, "scope": scopes}.Encode(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("anybody", secret)
		res, err := x.server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return reply{res.StatusCode, res.Header, string(body)}
	}
	token := func(r reply) string {
		t.Helper()
		var a struct {
			Token   string
			Expires int `json:"expires_in"`
		}
		if err := json.Unmarshal([]byte(r.is(t, 200, "").body), &a); err != nil || a.Token == "" || a.Expires < 60 {
			t.Fatalf("%v: %s", err, r.body)
		}
		return a.Token
	}
	fetch("atl_wrong", "repository:one/cell:pull").is(t, 401, "UNAUTHORIZED")
	x.do("", "GET", "/v2/token?scope=repository:one/cell:pull", nil).is(t, 401, "UNAUTHORIZED")

	pull := token(fetch(x.admin, "repository:one/cell:pull"))
	x.do(pull, "GET", "/v2/one/cell/manifests/1", nil).is(t, 200, "")
	x.do(pull, "GET", "/v2/", nil).is(t, 200, "")
	for _, c := range [][2]string{{"PUT", "/v2/one/cell/manifests/2"}, {"POST", "/v2/one/cell/blobs/uploads/"}, {"DELETE", "/v2/one/cell/manifests/1"}, {"GET", "/v2/one/other/tags/list"}} {
		got := x.do(pull, c[0], c[1], nil).is(t, 401, "UNAUTHORIZED").header.Get("WWW-Authenticate")
		if !strings.Contains(got, `error="insufficient_scope"`) {
			t.Errorf("%s %s: the challenge is %s", c[0], c[1], got)
		}
	}
	both := token(fetch(x.admin, "repository:one/cell:pull,push repository:one/other:pull", "repository:one/third:*"))
	x.do(both, "GET", "/v2/one/other/tags/list", nil).is(t, 404, "NAME_UNKNOWN")
	x.do(both, "POST", "/v2/one/cell/blobs/uploads/", nil).is(t, 202, "")
	x.do(both, "POST", "/v2/one/third/blobs/uploads/?mount="+digest([]byte("layer"))+"&from=one/cell", nil).is(t, 201, "")

	form := url.Values{"grant_type": {"password"}, "username": {"anybody"}, "password": {x.admin}, "scope": {"repository:one/cell:pull"}}
	posted := x.do("", "POST", "/v2/token", []byte(form.Encode()), "Content-Type: application/x-www-form-urlencoded")
	x.do(token(posted), "GET", "/v2/one/cell/manifests/1", nil).is(t, 200, "")

	for name, bad := range map[string]string{
		"cut": pull[:len(pull)-2], "changed": strings.Replace(pull, "atr_ey", "atr_eY", 1), "empty": "atr_", "of another kind": "atr_.", "long": "atr_" + strings.Repeat("a", 20000),
	} {
		if got := x.do(bad, "GET", "/v2/one/cell/manifests/1", nil); got.status != 401 {
			t.Errorf("a token that is %s: %d", name, got.status)
		}
	}
	ends := x.token("ends", access.Admin, "")
	soon := token(fetch(ends, "repository:one/cell:pull"))
	x.do(soon, "GET", "/v2/one/cell/manifests/1", nil).is(t, 200, "")
	if err := x.access.RevokeToken(access.WithPrincipal(t.Context(), access.Principal{Kind: access.System}), "ends", 0); err != nil {
		t.Fatal(err)
	}
	x.do(soon, "GET", "/v2/one/cell/manifests/1", nil).is(t, 401, "UNAUTHORIZED")
}

// An upload goes on where it stood, whatever became of the request before.
func TestUploadsResume(t *testing.T) {
	t.Parallel()
	x := newRegistry(t)
	x.workspace("one")
	b := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
	place := x.begin(x.admin, "one/cell")
	x.do(x.admin, "PATCH", place, b[:1000], "Content-Range: 0-999").is(t, 202, "")
	x.do(x.admin, "PATCH", place, b[2000:3000], "Content-Range: 2000-2999").is(t, 416, "BLOB_UPLOAD_INVALID")
	x.do(x.admin, "PATCH", place, b[1000:2000], "Content-Range: 1000-2500").is(t, 400, "SIZE_INVALID")
	x.do(x.admin, "PATCH", place, b[1000:2000], "Content-Range: x-2500").is(t, 400, "BLOB_UPLOAD_INVALID")
	stands := func(want string) {
		t.Helper()
		if got := x.do(x.admin, "GET", place, nil).is(t, 204, "").header.Get("Range"); got != want {
			t.Fatalf("the upload stands at %s, want %s", got, want)
		}
	}
	stands("0-999")

	// The sender stalls in the middle of a piece, and begins anew on another
	// connection: the hub still waits for the first one.
	body, in := io.Pipe()
	defer func() { _ = in.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "PATCH", x.server.URL+place, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+x.admin)
	ended := make(chan error, 1)
	go func() {
		res, err := x.server.Client().Do(req)
		if err == nil {
			_ = res.Body.Close()
		}
		ended <- err
	}()
	if _, err := in.Write(b[1000:5000]); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		if x.do(x.admin, "GET", place, nil).header.Get("Range") == "0-4999" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the bytes that came are not told")
		}
		<-time.After(10 * time.Millisecond)
	}
	x.do(x.admin, "PATCH", place, b[5000:6000], "Content-Range: 5000-5999").is(t, 202, "")
	cancel()
	<-ended
	stands("0-5999")
	d := digest(b)
	x.do(x.admin, "PUT", place+"?digest="+d, b[6000:], fmt.Sprintf("Content-Range: 6000-%d", len(b)-1)).is(t, 201, "")
	if got := x.do(x.admin, "GET", "/v2/one/cell/blobs/"+d, nil).is(t, 200, ""); got.body != string(b) {
		t.Error("the blob is not what was sent")
	}
	if got := x.do(x.admin, "GET", "/v2/one/cell/blobs/"+d, nil, "Range: bytes=16-31").is(t, 206, ""); got.body != "0123456789abcdef" {
		t.Errorf("the range is %q", got.body)
	}
	x.do(x.admin, "GET", place, nil).is(t, 404, "BLOB_UPLOAD_UNKNOWN")
	x.do(x.admin, "PUT", place+"?digest="+d, nil).is(t, 404, "BLOB_UPLOAD_UNKNOWN")

	// An upload belongs to its repository, and a cancelled one is gone.
	place = x.begin(x.admin, "one/cell")
	x.do(x.admin, "GET", strings.Replace(place, "one/cell", "one/other", 1), nil).is(t, 404, "BLOB_UPLOAD_UNKNOWN")
	x.do(x.admin, "DELETE", place, nil).is(t, 204, "")
	x.do(x.admin, "GET", place, nil).is(t, 404, "BLOB_UPLOAD_UNKNOWN")
	place = x.begin(x.admin, "one/cell")
	x.do(x.admin, "PUT", place+"?digest="+d, []byte("other content")).is(t, 400, "DIGEST_INVALID")
	x.do(x.admin, "GET", "/v2/one/cell/blobs/uploads/../../x", nil).is(t, 404, "")
}

// Uploads of the same blob at once all succeed, and it takes its space once.
func TestSameBlobAtOnce(t *testing.T) {
	t.Parallel()
	x := newRegistry(t)
	x.workspace("one")
	b := bytes.Repeat([]byte("same"), 100<<10)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			repo := fmt.Sprintf("one/cell%d", i%2)
			if i < 4 {
				x.pushBlob(x.admin, repo, b)
				return
			}
			place := x.begin(x.admin, repo)
			x.do(x.admin, "PUT", place+"?digest="+digest(b), b).is(t, 201, "")
		})
	}
	wg.Wait()
	n := 0
	if err := x.content.Walk(func(content.Info) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d blobs are stored, want 1: %v", n, err)
	}
	if open, err := x.content.Uploads(""); err != nil || len(open) != 0 {
		t.Errorf("uploads are left: %v %v", open, err)
	}
}

// What is wrong with a request is told, and changes nothing.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	x := newRegistry(t, func(c *images.Config) { c.MaxBlob, c.MaxUploads = 1<<20, 3 })
	x.workspace("one")
	layer := []byte("layer")
	x.pushImage(x.admin, "one/cell", "1", layer)
	d := digest(layer)
	part := fmt.Sprintf(`{"mediaType":"a/b","digest":%q,"size":%d}`, d, len(layer))
	many := strings.TrimSuffix(strings.Repeat(part+",", 5000), ",")
	for _, c := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/v2/cell/manifests/1", "", 400, "NAME_INVALID"},
		{"GET", "/v2/one/Cell/manifests/1", "", 400, "NAME_INVALID"},
		{"GET", "/v2/one/cell/../../x/manifests/1", "", 400, "NAME_INVALID"},
		{"GET", "/v2/one//cell/manifests/1", "", 400, "NAME_INVALID"},
		{"GET", "/v2/one/ce%2Fll%00/manifests/1", "", 400, "NAME_INVALID"},
		{"GET", "/v2/one/" + strings.Repeat("a", 300) + "/manifests/1", "", 400, "NAME_INVALID"},
		{"GET", "/v2/one/cell/manifests/" + strings.Repeat("a", 129), "", 400, "MANIFEST_INVALID"},
		{"GET", "/v2/one/cell/manifests/.hidden", "", 400, "MANIFEST_INVALID"},
		{"GET", "/v2/one/cell/manifests/sha256:abc", "", 400, "DIGEST_INVALID"},
		{"GET", "/v2/one/cell/blobs/sha256:..%2f..%2fetc", "", 404, ""},
		{"GET", "/v2/one/cell/blobs/" + strings.ToUpper(d), "", 400, "DIGEST_INVALID"},
		{"GET", "/v2/one/cell/blobs/md5:d41d8cd98f00b204e9800998ecf8427e", "", 400, "DIGEST_INVALID"},
		{"GET", "/v2/one/cell/tags/list?n=-1", "", 400, ""},
		{"GET", "/v2/one/cell/nothing", "", 404, ""},
		{"POST", "/v2/one/cell/manifests/1", "", 405, "UNSUPPORTED"},
		{"POST", "/v2/one/cell/blobs/uploads/?digest=" + d, "other", 400, "DIGEST_INVALID"},
		{"POST", "/v2/one/cell/blobs/uploads/?mount=sha256:abc", "", 400, "DIGEST_INVALID"},
		{"POST", "/v2/one/cell/blobs/uploads/?digest=" + d, strings.Repeat("a", 1<<20+1), 413, "SIZE_INVALID"},
		{"PUT", "/v2/one/cell/manifests/2", "", 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/one/cell/manifests/2", "[]", 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/one/cell/manifests/2", `{"schemaVersion":1,"fsLayers":[]}`, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/one/cell/manifests/2", `{"schemaVersion":2}`, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/one/cell/manifests/2", `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/one/cell/manifests/2", `{"schemaVersion":2,"config":` + part + `,"layers":[{"digest":"sha256:../x","size":1}]}`, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/one/cell/manifests/2", `{"schemaVersion":2,"config":{"digest":"` + d + `","size":6}}`, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/one/cell/manifests/2", `{"schemaVersion":2,"config":` + part + `}{}`, 400, "MANIFEST_INVALID"},
		{"PUT", "/v2/one/cell/manifests/2", `{"schemaVersion":2,"config":` + part + `,"layers":[` + many + `]}`, 413, "MANIFEST_INVALID"},
		{"PUT", "/v2/one/cell/manifests/2", strings.Repeat(" ", 4<<20) + `{}`, 413, "MANIFEST_INVALID"},
		{"PUT", "/v2/one/cell/manifests/" + d, string(manifest(layer)), 400, "DIGEST_INVALID"},
		{"DELETE", "/v2/one/cell/blobs/" + d, "", 409, "DENIED"},
		{"DELETE", "/v2/one/cell/manifests/nothing", "", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/one/nothing/tags/list", "", 404, "NAME_UNKNOWN"},
	} {
		r := x.do(x.admin, c.method, c.path, []byte(c.body), "Content-Type: "+TypeImage)
		if r.status != c.status || c.code != "" && !strings.Contains(r.body, `"`+c.code+`"`) {
			t.Errorf("%s %.100s %.80s: %d %s, want %d %s", c.method, c.path, c.body, r.status, r.body, c.status, c.code)
		}
		if r.status == 405 && r.header.Get("Allow") == "" {
			t.Errorf("%s %s does not say what it takes", c.method, c.path)
		}
	}
	if tags := x.do(x.admin, "GET", "/v2/one/cell/tags/list", nil).body; tags != `{"name":"one/cell","tags":["1"]}` {
		t.Errorf("the tags are %s", tags)
	}
	for range 3 {
		x.begin(x.admin, "one/cell")
	}
	x.do(x.admin, "POST", "/v2/one/cell/blobs/uploads/", nil).is(t, 429, "TOOMANYREQUESTS")
}

// A blob that is deleted while it is pulled is pulled whole.
func TestDeletedWhilePulled(t *testing.T) {
	t.Parallel()
	x := newRegistry(t)
	x.workspace("one")
	b := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB: more than the connection buffers
	image := x.pushImage(x.admin, "one/cell", "1", b)
	req, err := http.NewRequestWithContext(t.Context(), "GET", x.server.URL+"/v2/one/cell/blobs/"+digest(b), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+x.admin)
	res, err := x.server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	x.do(x.admin, "DELETE", "/v2/one/cell/manifests/"+image, nil).is(t, 202, "")
	x.do(x.admin, "DELETE", "/v2/one/cell/blobs/"+digest(b), nil).is(t, 202, "")
	if err := x.content.Delete(atelier.Digest(digest(b))); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%d bytes came, want %d: %v", len(got), len(b), err)
	}
	x.do(x.admin, "GET", "/v2/one/cell/blobs/"+digest(b), nil).is(t, 404, "BLOB_UNKNOWN")
}

// Collecting lets go of what no image names and nobody has asked for, and of nothing
// that one names or that is on its way.
func TestCollect(t *testing.T) {
	t.Parallel()
	now := time.Now()
	var mu sync.Mutex
	x := newRegistry(t, func(c *images.Config) {
		c.Keep = time.Hour
		c.Now = func() time.Time { mu.Lock(); defer mu.Unlock(); return now }
	})
	id := x.workspace("one")
	x.pushImage(x.admin, "one/cell", "1", []byte("named"))
	loose := x.pushBlob(x.admin, "one/cell", []byte("loose"))
	place := x.begin(x.admin, "one/cell")
	x.do(x.admin, "PATCH", place, []byte("on its way")).is(t, 202, "")
	x.pushBlob(x.admin, "one/empty", []byte("loose"))
	if err := x.images.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.do(x.admin, "HEAD", "/v2/one/cell/blobs/"+loose, nil).is(t, 200, "")

	mu.Lock()
	now = now.Add(2 * time.Hour)
	mu.Unlock()
	if err := x.images.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.do(x.admin, "HEAD", "/v2/one/cell/blobs/"+loose, nil).is(t, 404, "")
	x.do(x.admin, "GET", "/v2/one/cell/manifests/1", nil).is(t, 200, "")
	x.do(x.admin, "GET", "/v2/one/cell/blobs/"+digest([]byte("named")), nil).is(t, 200, "")
	x.do(x.admin, "GET", "/v2/one/empty/tags/list", nil).is(t, 404, "NAME_UNKNOWN")
	x.do(x.admin, "PUT", place+"?digest="+digest([]byte("on its way")), nil).is(t, 201, "")

	// The workspace's registry came into being with the image.
	err := x.store.View(t.Context(), func(tx store.Tx) error {
		w, err := catalog.Workspaces.Get(tx, "", id)
		if err == nil && (!w.Resources[0].Made || w.Resources[0].Address != "/v2/"+id) {
			t.Errorf("the workspace's resources are %+v", w.Resources)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Tags and referrers come page by page.
func TestPages(t *testing.T) {
	t.Parallel()
	x := newRegistry(t)
	x.workspace("one")
	b := []byte("layer")
	image := x.pushImage(x.admin, "one/cell", "b", b)
	tags := url.Values{"tag": {"a", "c", "A", "d-1", "d.0"}}
	x.do(x.admin, "PUT", "/v2/one/cell/manifests/"+image+"?"+tags.Encode(), manifest(b), "Content-Type: "+TypeImage).is(t, 201, "")
	var got []string
	path := "/v2/one/cell/tags/list?n=2"
	for pages := 0; path != "" && pages < 10; pages++ {
		r := x.do(x.admin, "GET", path, nil).is(t, 200, "")
		var page struct{ Tags []string }
		if err := json.Unmarshal([]byte(r.body), &page); err != nil {
			t.Fatal(err)
		}
		got = append(got, page.Tags...)
		path, _, _ = strings.Cut(strings.TrimPrefix(r.header.Get("Link"), "<"), ">")
	}
	if strings.Join(got, " ") != "A a b c d-1 d.0" {
		t.Errorf("the tags are %q", got)
	}
	subject := fmt.Sprintf(`,"subject":{"mediaType":%q,"digest":%q,"size":1},"artifactType":"a/%s","annotations":{"k":%q}`, TypeImage, image, "%s", "%s")
	for i := range 3 {
		m := manifest(b, fmt.Sprintf(subject, fmt.Sprint(i%2), strings.Repeat("x", 2<<20)+fmt.Sprint(i)))
		if s := x.do(x.admin, "PUT", "/v2/one/cell/manifests/"+digest(m), m, "Content-Type: "+TypeImage).is(t, 201, "").header.Get("OCI-Subject"); s != image {
			t.Errorf("the subject is told as %q", s)
		}
	}
	for query, want := range map[string]int{"": 3, "?artifactType=a/0": 2, "?artifactType=a/2": 0} {
		n, path := 0, "/v2/one/cell/referrers/"+image+query
		for pages := 0; path != "" && pages < 10; pages++ {
			r := x.do(x.admin, "GET", path, nil).is(t, 200, "")
			var index struct{ Manifests []images.Descriptor }
			if err := json.Unmarshal([]byte(r.body), &index); err != nil {
				t.Fatal(err)
			}
			n += len(index.Manifests)
			path, _, _ = strings.Cut(strings.TrimPrefix(r.header.Get("Link"), "<"), ">")
		}
		if n != want {
			t.Errorf("%d images are about it with %q, want %d", n, query, want)
		}
	}
}

// A workspace that has a registry of its own is told so.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	x := newRegistry(t)
	id := x.workspace("one")
	err := x.store.Update(t.Context(), store.By{Actor: "test"}, func(tx store.Tx) error {
		w, err := catalog.Workspaces.Get(tx, "", id)
		if err != nil {
			return err
		}
		w.Resources[0] = atelier.AssociatedResource{Kind: atelier.ResourceRegistry, Provider: atelier.ProviderUser, Address: "https://registry.example", Made: true}
		_, err = catalog.Workspaces.Update(tx, "", w)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	r := x.do(x.admin, "POST", "/v2/one/cell/blobs/uploads/", nil).is(t, 403, "DENIED")
	if !strings.Contains(r.body, "https://registry.example") {
		t.Errorf("the reason is not told: %s", r.body)
	}
}

// SHA-512 is taken as well, and checked.
func TestSHA512(t *testing.T) {
	t.Parallel()
	x := newRegistry(t)
	x.workspace("one")
	b := []byte("layer")
	d := fmt.Sprintf("sha512:%x", sha512.Sum512(b))
	x.do(x.admin, "POST", "/v2/one/cell/blobs/uploads/?digest="+d, []byte("other")).is(t, 400, "DIGEST_INVALID")
	x.do(x.admin, "POST", "/v2/one/cell/blobs/uploads/?digest="+d, b).is(t, 201, "")
	if got := x.do(x.admin, "GET", "/v2/one/cell/blobs/"+d, nil).is(t, 200, ""); got.body != "layer" {
		t.Errorf("the blob is %q", got.body)
	}
	x.do(x.admin, "GET", "/v2/one/cell/blobs/"+digest(b), nil).is(t, 404, "BLOB_UNKNOWN")
}
