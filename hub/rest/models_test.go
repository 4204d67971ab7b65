package rest

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

func TestModels(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.workspace("lab")
	const models = "/v1/workspaces/lab/models"
	v := h.register("lab", "digits", 1)
	if v.Number != 1 || v.Model != "digits" || v.Size != int64(len(smallModel(1))) || len(v.Variants) != 1 {
		t.Errorf("got %+v", v)
	}
	variant := v.Variants[0]
	if variant.Kind != atelier.VariantONNX || variant.Entry != "model.onnx" || variant.Requires.Runtime != atelier.RuntimeONNX {
		t.Errorf("got %+v", variant)
	}
	in, out := variant.Signature.Inputs[0], variant.Signature.Outputs[0]
	if fmt.Sprint(in, out) != "{x FP32 [-1 4]} {y FP32 [-1 4]}" {
		t.Errorf("signature %v %v", in, out)
	}
	again := h.register("lab", "digits", 1)
	if again.Number != 2 || again.Digest != v.Digest || again.ID == v.ID {
		t.Errorf("the same content again: %+v", again)
	}
	if other := h.register("lab", "digits", 2); other.Digest == v.Digest {
		t.Error("other content has the same digest")
	}
	var m atelier.Model
	h.do(h.admin, "GET", models+"/digits", nil).into(t, 200, &m)
	if m.Latest != 3 || m.Next != 4 || m.Framework != "onnx" {
		t.Errorf("got %+v", m)
	}
	h.do(h.admin, "PATCH", models+"/digits", map[string]any{"description": "reads digits", "tags": map[string]string{"a": "b"}}, "If-Match: *").into(t, 200, &m)
	if m.Description != "reads digits" || m.Tags["a"] != "b" || m.Latest != 3 {
		t.Errorf("got %+v", m)
	}
	var page listBody[atelier.Version]
	h.do(h.admin, "GET", models+"/"+m.ID+"/versions", nil).into(t, 200, &page)
	if len(page.Items) != 3 || page.Items[2].Number != 3 {
		t.Errorf("got %+v", page)
	}
	h.do(h.admin, "POST", models, map[string]any{"name": "digits"}).fails(t, atelier.Exists)
	h.do(h.admin, "POST", models, map[string]any{"name": "empty", "framework": "onnx"}).into(t, 201, nil)
	h.do(h.admin, "GET", models+"/empty/versions/latest", nil).fails(t, atelier.NotFound)
	h.do(h.admin, "DELETE", models+"/digits", nil, `If-Match: "99"`).fails(t, atelier.Stale)
	h.do(h.admin, "DELETE", models+"/digits", nil).into(t, 204, nil)
	h.do(h.admin, "GET", models+"/digits/versions/1", nil).fails(t, atelier.NotFound)
}

func TestVersions(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	w := h.workspace("lab")
	const versions = "/v1/workspaces/lab/models/digits/versions"
	for n := range byte(3) {
		h.register("lab", "digits", n)
	}
	var v atelier.Version
	h.do(h.admin, "PATCH", versions+"/3", map[string]any{"archived": true, "tags": map[string]string{"bad": "yes"}}, `If-Match: "1"`).into(t, 200, &v)
	if !v.Archived || v.Tags["bad"] != "yes" || v.Revision != 2 {
		t.Errorf("got %+v", v)
	}
	h.do(h.admin, "GET", versions+"/latest", nil).into(t, 200, &v)
	if v.Number != 2 {
		t.Errorf("latest is %d", v.Number)
	}
	byID := atelier.Version{}
	h.do(h.admin, "GET", versions+"/"+v.ID, nil).into(t, 200, &byID)
	if byID.Number != 2 {
		t.Errorf("by id: %+v", byID)
	}
	h.do(h.admin, "PATCH", versions+"/3", map[string]any{"archived": false}, "If-Match: *").into(t, 200, nil)
	h.do(h.admin, "GET", versions+"/latest", nil).into(t, 200, &v)
	if v.Number != 3 {
		t.Errorf("latest is %d", v.Number)
	}
	h.do(h.admin, "PATCH", versions+"/3", map[string]any{"digest": "x"}, "If-Match: *").fails(t, atelier.Invalid)

	// A deployment holds a version, and its model.
	var deployment atelier.Deployment
	err := h.store.Update(t.Context(), store.By{Actor: "test"}, func(tx store.Tx) (err error) {
		deployment, err = catalog.Deployments.Insert(tx, w.ID, "", atelier.Deployment{Meta: atelier.Meta{Name: "everywhere"}, VersionID: v.ID})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{versions + "/3", "/v1/workspaces/lab/models/digits"} {
		if p := h.do(h.admin, "DELETE", path, nil).fails(t, atelier.InUse); !strings.Contains(p.Detail, `deployment "everywhere"`) {
			t.Errorf("%s: %s", path, p.Detail)
		}
	}
	h.do(h.admin, "GET", versions+"/1", nil).into(t, 200, nil) // nothing was removed
	err = h.store.Update(t.Context(), store.By{Actor: "test"}, func(tx store.Tx) error {
		return catalog.Deployments.Delete(tx, w.ID, deployment.ID, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	h.do(h.admin, "DELETE", versions+"/3", nil).into(t, 204, nil)
	h.do(h.admin, "GET", versions+"/3", nil).fails(t, atelier.NotFound)
	if next := h.register("lab", "digits", 9); next.Number != 4 {
		t.Errorf("number %d is used again", next.Number)
	}
	// A version of another model is not found by its id.
	other := h.register("lab", "other", 1)
	h.do(h.admin, "GET", versions+"/"+other.ID, nil).fails(t, atelier.NotFound)
}

func TestRegisterRefuses(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.workspace("lab")
	whole := smallModel(1)
	good := h.upload("lab", "model.onnx", whole)
	file := func(path string, b []byte) atelier.File { return h.upload("lab", path, b) }
	with := func(f atelier.File, path string) atelier.File { f.Path = path; return f }
	missing := atelier.File{Path: "model.onnx", Digest: atelier.DigestOf([]byte("nowhere")), Size: 7}
	short := good
	short.Size--
	for name, c := range map[string]struct {
		body  map[string]any
		field string
		says  string
	}{
		"truncated":       {map[string]any{"files": []any{file("m.onnx", whole[:len(whole)-3])}}, "entry", "truncated"},
		"empty":           {map[string]any{"files": []any{file("m.onnx", nil)}}, "entry", "empty"},
		"no model":        {map[string]any{"files": []any{file("m.onnx", []byte("<!doctype html>"))}}, "entry", "no ONNX model"},
		"not uploaded":    {map[string]any{"files": []any{missing}}, "files[0].digest", "not been uploaded"},
		"wrong size":      {map[string]any{"files": []any{short}}, "files[0].size", "bytes"},
		"path up":         {map[string]any{"files": []any{with(good, "../model.onnx")}}, "files[0].path", ".."},
		"absolute path":   {map[string]any{"files": []any{with(good, "/etc/passwd")}}, "files[0].path", "absolute"},
		"twice":           {map[string]any{"files": []any{good, good}}, "files[1].path", "two files"},
		"file and dir":    {map[string]any{"files": []any{with(good, "a"), with(good, "a/b.onnx")}}, "files[1].path", "directory"},
		"case":            {map[string]any{"files": []any{with(good, "Model.onnx"), with(good, "model.onnx")}}, "files[1].path", "only in case"},
		"normalisation":   {map[string]any{"files": []any{with(good, "Gr\u00f6\u00dfe.onnx"), with(good, "GRO\u0308SSE.onnx")}}, "files[1].path", `"Gr\u00f6\u00dfe.onnx"`},
		"FILE and dir":    {map[string]any{"files": []any{with(good, "A"), with(good, "a/b.onnx")}}, "files[1].path", `"A" is a file`},
		"bad digest":      {map[string]any{"files": []any{map[string]any{"path": "x", "digest": "md5:1", "size": 1}}}, "files[0].digest", "sha256"},
		"two models":      {map[string]any{"files": []any{good, with(good, "b.onnx")}}, "entry", "2 files"},
		"no entry":        {map[string]any{"files": []any{with(good, "a"), with(good, "b")}}, "entry", "none of the 2"},
		"entry not there": {map[string]any{"files": []any{good}, "entry": "other.onnx"}, "entry", "none of the files"},
		"no files":        {map[string]any{"files": []any{}}, "files", ""},
		"many tags":       {map[string]any{"files": []any{good}, "tags": manyTags()}, "tags", "tags"},
	} {
		p := h.do(h.admin, "POST", "/v1/workspaces/lab/models/m/versions", c.body).fails(t, atelier.Invalid)
		if p.Field != c.field || !strings.Contains(p.Detail, c.says) || p.Remedy == "" && name != "wrong size" && name != "twice" && !strings.HasSuffix(name, " and dir") && name != "entry not there" && name != "many tags" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	h.do(h.admin, "GET", "/v1/workspaces/lab/models/m", nil).fails(t, atelier.NotFound)
	h.do(h.admin, "POST", "/v1/workspaces/lab/models/Bad Name/versions", map[string]any{"files": []any{good}}).fails(t, atelier.Invalid)
	h.do(h.admin, "POST", "/v1/workspaces/lab/models/"+atelier.NewID()+"/versions", map[string]any{"files": []any{good}}).fails(t, atelier.NotFound)
	var v atelier.Version
	h.do(h.admin, "POST", "/v1/workspaces/lab/models/m/versions", map[string]any{"files": []any{with(good, "b/b.onnx"), with(good, "a.txt")}}).into(t, 201, &v)
	if v.Variants[0].Entry != "b/b.onnx" || v.Variants[0].Files[0].Path != "a.txt" {
		t.Errorf("got %+v", v.Variants)
	}
}

func manyTags() map[string]string {
	tags := map[string]string{}
	for i := range 65 {
		tags[fmt.Sprint(i)] = "x"
	}
	return tags
}

func TestDownload(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.workspace("lab")
	h.register("lab", "digits", 1)
	const path = "/v1/workspaces/lab/models/digits/versions/latest/files/model.onnx"
	want := smallModel(1)
	r := h.do(h.admin, "GET", path, nil)
	if r.into(t, 200, nil); !bytes.Equal(r.body, want) || r.header.Get("Content-Disposition") != "attachment; filename=model.onnx" {
		t.Errorf("got %d bytes, %v", len(r.body), r.header)
	}
	part := h.do(h.admin, "GET", path, nil, "Range: bytes=5-9")
	if part.into(t, 206, nil); !bytes.Equal(part.body, want[5:10]) || part.header.Get("Content-Range") != fmt.Sprintf("bytes 5-9/%d", len(want)) {
		t.Errorf("got %q, %v", part.body, part.header)
	}
	if r := h.do(h.admin, "GET", path, nil, "Range: bytes=9999-"); r.status != 416 {
		t.Errorf("a range beyond the end: %d", r.status)
	}
	if r := h.do(h.admin, "GET", path, nil, "If-None-Match: "+r.header.Get("ETag")); r.status != 304 {
		t.Errorf("the same again: %d", r.status)
	}
	h.do(h.admin, "GET", path+"?variant=onnx", nil).into(t, 200, nil)
	h.do(h.admin, "GET", path+"?variant=fpga", nil).fails(t, atelier.NotFound)
	h.do(h.admin, "GET", path+".sig", nil).fails(t, atelier.NotFound)

	const blobs = "/v1/workspaces/lab/blobs"
	digest := string(atelier.DigestOf(want))
	if r := h.do(h.admin, "HEAD", blobs+"/"+digest, nil); r.status != 200 || r.header.Get("Content-Length") != fmt.Sprint(len(want)) || len(r.body) != 0 {
		t.Errorf("HEAD: %d %v", r.status, r.header)
	}
	if r := h.do(h.admin, "GET", blobs+"/"+digest, nil); !bytes.Equal(r.body, want) {
		t.Errorf("got %d bytes", len(r.body))
	}
	if r := h.do(h.admin, "HEAD", blobs+"/"+string(atelier.DigestOf(nil)), nil); r.status != 404 {
		t.Errorf("HEAD of what is not there: %d", r.status)
	}
	h.do(h.admin, "GET", blobs+"/sha256:xyz", nil).fails(t, atelier.Invalid)
	h.do(h.admin, "POST", blobs+"?digest="+digest, []byte("something else")).fails(t, atelier.Invalid)
	h.do(h.admin, "POST", blobs+"?digest=md5:1", []byte("something")).fails(t, atelier.Invalid)
}

func TestRuntimes(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	lib := []byte("a library")
	runtime := map[string]any{
		"name": "onnxruntime", "version": "1.22.0", "os": "linux", "arch": "amd64", "entry": "libonnxruntime.so", "needs_glibc": "2.28",
		"files": []any{map[string]any{"path": "libonnxruntime.so", "digest": atelier.DigestOf(lib), "size": len(lib)}},
	}
	h.do(h.admin, "POST", "/v1/runtimes", runtime).fails(t, atelier.Invalid)
	h.workspace("lab")
	h.upload("lab", "x", lib)
	h.do(h.admin, "POST", "/v1/runtimes", runtime).fails(t, atelier.Invalid) // a workspace's content is not the hub's
	h.do(h.admin, "POST", "/v1/blobs", lib).into(t, 201, nil)
	var rt atelier.Runtime
	h.do(h.admin, "POST", "/v1/runtimes", runtime).into(t, 201, &rt)
	if rt.Name != "onnxruntime" || rt.Arch != "amd64" || rt.NeedsGlibc != "2.28" || len(rt.Files) != 1 {
		t.Errorf("got %+v", rt)
	}
	h.do(h.admin, "POST", "/v1/runtimes", runtime).fails(t, atelier.Exists)
	runtime["arch"] = "arm64"
	h.do(h.admin, "POST", "/v1/runtimes", runtime).into(t, 201, nil)
	runtime["entry"] = "other.so"
	h.do(h.admin, "POST", "/v1/runtimes", runtime).fails(t, atelier.Invalid)
	var page listBody[atelier.Runtime]
	h.do(h.admin, "GET", "/v1/runtimes", nil).into(t, 200, &page)
	if len(page.Items) != 2 {
		t.Errorf("got %+v", page)
	}
	h.do(h.admin, "GET", "/v1/runtimes/"+rt.ID, nil).into(t, 200, nil)
	h.do(h.admin, "DELETE", "/v1/runtimes/"+rt.ID, nil).into(t, 204, nil)
	h.do(h.admin, "GET", "/v1/runtimes/"+rt.ID, nil).fails(t, atelier.NotFound)
}

// TestIsolation looks from one workspace for anything of another.
func TestIsolation(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	mine, theirs := h.workspace("mine"), h.workspace("theirs")
	h.register("theirs", "secret", 1)
	theirFile := h.upload("theirs", "f", []byte("their content"))
	bound := h.token("bound", access.Admin, "mine")

	for _, ws := range []string{"theirs", theirs.ID, "nothing"} {
		at := "/v1/workspaces/" + ws
		var first string
		for _, c := range [][2]string{
			{"GET", at}, {"PATCH", at}, {"DELETE", at}, {"GET", at + "/models"}, {"POST", at + "/models"}, {"GET", at + "/models/secret"},
			{"GET", at + "/models/secret/versions"}, {"POST", at + "/models/secret/versions"}, {"GET", at + "/models/secret/versions/1"},
			{"GET", at + "/models/secret/versions/1/files/model.onnx"}, {"DELETE", at + "/models/secret"}, {"GET", at + "/events"},
			{"GET", at + "/events?watch=true"}, {"GET", at + "/models?watch=true"}, {"GET", at + "/audit"}, {"POST", at + "/blobs"},
			{"GET", at + "/blobs/" + string(theirFile.Digest)},
		} {
			p := h.do(bound, c[0], c[1], nil).fails(t, atelier.NotFound)
			told := strings.ReplaceAll(p.Detail, ws, "W")
			if first == "" {
				first = told
			}
			if told != first {
				t.Errorf("%s %s tells %q, others %q", c[0], c[1], told, first)
			}
		}
	}
	// Nor by way of its own workspace.
	at := "/v1/workspaces/mine"
	h.do(bound, "GET", at+"/blobs/"+string(theirFile.Digest), nil).fails(t, atelier.NotFound)
	h.do(bound, "POST", at+"/models/m/versions", map[string]any{"files": []any{theirFile}}).fails(t, atelier.Invalid)
	h.do(bound, "GET", at+"/models/secret", nil).fails(t, atelier.NotFound)
	for _, path := range []string{"/v1/tokens", "/v1/events", "/v1/audit", "/v1/events?watch=true"} {
		h.do(bound, "GET", path, nil).fails(t, atelier.Forbidden)
	}
	h.do(bound, "POST", "/v1/workspaces", map[string]any{"name": "another"}).fails(t, atelier.Forbidden)
	h.do(bound, "POST", "/v1/blobs", []byte("x")).fails(t, atelier.Forbidden)
	var page listBody[atelier.Workspace]
	h.do(bound, "GET", "/v1/workspaces", nil).into(t, 200, &page)
	if len(page.Items) != 1 || page.Items[0].ID != mine.ID {
		t.Errorf("sees %+v", page.Items)
	}
	// The same name and the same content do not meet.
	h.register("mine", "secret", 1)
	var v atelier.Version
	h.do(bound, "GET", at+"/models/secret/versions/latest", nil).into(t, 200, &v)
	if v.Number != 1 {
		t.Errorf("got %+v", v)
	}
	var events listBody[atelier.Event]
	h.do(bound, "GET", at+"/events", nil).into(t, 200, &events)
	for _, e := range events.Items {
		if e.Workspace != mine.ID {
			t.Errorf("sees the event %+v", e)
		}
	}
}

// TestViewer reads everything and changes nothing.
func TestViewer(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.workspace("lab")
	h.register("lab", "digits", 1)
	viewer := h.token("viewer", access.Viewer, "")
	const at = "/v1/workspaces/lab"
	for _, path := range []string{"/v1", "/v1/workspaces", at, at + "/models", at + "/models/digits/versions/1", at + "/events", at + "/models/digits/versions/1/files/model.onnx"} {
		h.do(viewer, "GET", path, nil).into(t, 200, nil)
	}
	for _, c := range [][2]string{
		{"POST", "/v1/workspaces"}, {"PATCH", at}, {"DELETE", at}, {"POST", at + "/blobs"}, {"POST", at + "/models"}, {"PATCH", at + "/models/digits"},
		{"DELETE", at + "/models/digits"}, {"POST", at + "/models/digits/versions"}, {"PATCH", at + "/models/digits/versions/1"}, {"POST", "/v1/tokens"}, {"POST", "/v1/runtimes"},
	} {
		h.do(viewer, c[0], c[1], nil).fails(t, atelier.Forbidden)
	}
	var trail listBody[store.AuditEntry]
	h.do(h.admin, "GET", at+"/audit?limit=1000", nil).into(t, 200, &trail)
	refused := 0
	for _, e := range trail.Items {
		if !e.Allowed && e.Actor == "token:viewer" && e.Request != "" {
			refused++
		}
	}
	if refused != 8 {
		t.Errorf("%d refusals are in the audit trail, want 8", refused)
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	secret := h.token("ci", access.Viewer, "")
	all := h.do(h.admin, "GET", "/v1/tokens", nil)
	var page listBody[Token]
	all.into(t, 200, &page)
	if len(page.Items) != 2 || bytes.Contains(all.body, []byte("hash")) || bytes.Contains(all.body, []byte(secret)) {
		t.Errorf("got %s", all.body)
	}
	h.do(h.admin, "POST", "/v1/tokens", newToken{Name: "ci", Role: "viewer"}).fails(t, atelier.Exists)
	h.do(h.admin, "POST", "/v1/tokens", newToken{Name: "x", Role: "king"}).fails(t, atelier.Invalid)
	h.do(h.admin, "POST", "/v1/tokens", newToken{Name: "x", Role: "viewer", Workspace: "none"}).fails(t, atelier.NotFound)
	h.do(secret, "GET", "/v1", nil).into(t, 200, nil)
	h.do(h.admin, "DELETE", "/v1/tokens/ci", nil).into(t, 204, nil)
	h.do(secret, "GET", "/v1", nil).fails(t, atelier.Unauthenticated)
}
