package distribution

import (
	"bytes"
	"strings"
	"testing"

	"github.com/atelier-edge/atelier/hub/images"
)

// A workspace holds no more than its quota, each content counted once; other workspaces
// are not concerned.
func TestQuota(t *testing.T) {
	t.Parallel()
	x := newRegistry(t, func(c *images.Config) { c.Quota = 100 << 10 })
	x.workspace("one")
	x.workspace("two")
	layer, other := bytes.Repeat([]byte("a"), 60<<10), bytes.Repeat([]byte("b"), 60<<10)
	put := func(repo string, b []byte) reply {
		return x.do(x.admin, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+digest(b), b, "Content-Type: application/octet-stream")
	}
	put("one/cell", layer).is(t, 201, "")
	put("one/cell", layer).is(t, 201, "") // is there
	put("one/copy", layer).is(t, 201, "")
	r := put("one/cell", other).is(t, 403, "DENIED")
	if !strings.Contains(r.body, "quota") || !strings.Contains(r.body, "--image-bytes") {
		t.Errorf("the refusal says %s", r.body)
	}
	// In pieces nobody knows before the end how much it is.
	begun := x.do(x.admin, "POST", "/v2/one/cell/blobs/uploads/", nil).is(t, 202, "")
	place := begun.header.Get("Location")
	x.do(x.admin, "PATCH", place, other).is(t, 202, "")
	x.do(x.admin, "PUT", place+"?digest="+digest(other), nil).is(t, 403, "DENIED")
	x.do(x.admin, "HEAD", "/v2/one/cell/blobs/"+digest(other), nil).is(t, 404, "")
	put("two/cell", other).is(t, 201, "")
	put("one/cell", bytes.Repeat([]byte("c"), 30<<10)).is(t, 201, "")
}
