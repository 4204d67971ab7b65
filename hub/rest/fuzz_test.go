package rest

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/store"
)

// A cursor that opens is one that its list gave.
func FuzzCursor(f *testing.F) {
	f.Add("model", sealCursor("model", "01jz0000000000000000000001"))
	f.Add("model", sealCursor("workspace", "x"))
	f.Add("model", "AA")
	f.Add("", "=")
	f.Fuzz(func(t *testing.T, kind, cursor string) {
		after, err := openCursor(kind, cursor)
		if err != nil {
			if atelier.CodeOf(err) != atelier.Invalid {
				t.Fatalf("code %s: %v", atelier.CodeOf(err), err)
			}
			return
		}
		if cursor != "" && (after == "" || strings.ContainsRune(kind, 0)) {
			t.Fatalf("%q opened as %q of %q", cursor, after, kind)
		}
		if again, err := openCursor(kind, sealCursor(kind, after)); cursor != "" && (err != nil || again != after) {
			t.Fatalf("%q came back as %q, %v", after, again, err)
		}
	})
}

// A revision that passes is written in one way only.
func FuzzRevision(f *testing.F) {
	for _, s := range []string{`"1"`, "*", "1", `""1""`, `"01"`, `"+1"`, `W/"1"`, `"9223372036854775808"`, `"1", "2"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseRevision(s); err == nil && s != "*" && (n < 1 || etag(n) != s) {
			t.Fatalf("%q was read as %d", s, n)
		}
	})
}

// writes are the routes that take a body. They name things by id, WS, MODEL and
// DEPLOYMENT, since one input may rename what the next asks for.
var writes = []struct{ method, path string }{
	{"POST", "/v1/workspaces"},
	{"PATCH", "/v1/workspaces/WS"},
	{"POST", "/v1/tokens"},
	{"POST", "/v1/workspaces/WS/models"},
	{"PATCH", "/v1/workspaces/WS/models/MODEL"},
	{"POST", "/v1/workspaces/WS/models/MODEL/versions"},
	{"PATCH", "/v1/workspaces/WS/models/MODEL/versions/1"},
	{"POST", "/v1/runtimes"},
	{"POST", "/v1/workspaces/WS/deployments"},
	{"PATCH", "/v1/workspaces/WS/deployments/DEPLOYMENT"},
	{"POST", "/v1/workspaces/WS/deployments/plan"},
}

// FuzzBody sends bodies to the routes that take one. None may make the hub fail,
// each refusal is a problem that says what is wrong, and a refusal changes nothing.
func FuzzBody(f *testing.F) {
	h := newHub(f)
	withFleet(f, h)
	ws := h.workspace("lab")
	v := h.register("lab", "digits", 1)
	var d atelier.Deployment
	h.do(h.admin, "POST", "/v1/workspaces/lab/deployments", map[string]any{
		"name": "front", "model": "digits", "selector": map[string]any{"labels": map[string]string{"a": "b"}},
	}).into(f, 201, &d)
	ids := strings.NewReplacer("WS", ws.ID, "MODEL", v.ModelID, "DEPLOYMENT", d.ID)
	for i, body := range []string{
		`{"name":"x"}`, `{"description":"d","tags":{"a":"b"}}`, `{"name":"t","role":"viewer"}`, `{"name":"m","name":"n"}`, `{"name":1}`,
		`{"files":[{"path":"../x","digest":"sha256:00","size":-1}]}`, `{"archived":null}`, `{"name":"onnxruntime","version":"1","os":"linux","arch":"amd64","files":[]}`,
		`{"name":"y","model":"digits","version":1e400,"selector":{"labels":{}}}`, `{"version":"latest","limits":{"memory":-1}}`,
	} {
		f.Add(uint8(i), "", []byte(body))
	}
	f.Add(uint8(len(writes)-1), "", []byte(`{"name":"front","version":1}`))
	f.Add(uint8(0), `"1"`, []byte(strings.Repeat("[", 10000)))
	f.Add(uint8(0), "*", []byte("{\"name\":\"\xff\"}"))
	handler, _ := build(Config{Store: h.store, Access: h.access, Registry: h.reg, Fleet: h.server.fleet, Log: h.server.log})
	f.Fuzz(func(t *testing.T, route uint8, match string, body []byte) {
		to := writes[int(route)%len(writes)]
		if to.method == "PATCH" && match == "" {
			match = "*"
		}
		before := lastEvent(t, h)
		r := httptest.NewRequest(to.method, ids.Replace(to.path), strings.NewReader(string(body)))
		r.Header.Set("Authorization", "Bearer "+h.admin)
		r.Header.Set("Content-Type", "application/json")
		if match != "" {
			r.Header["If-Match"] = []string{match}
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if strings.HasSuffix(to.path, "/plan") && lastEvent(t, h) != before {
			t.Fatalf("the plan %q changed something", body)
		}
		switch {
		case w.Code >= 500:
			t.Fatalf("%s %s with %q: %d %s", to.method, to.path, body, w.Code, w.Body)
		case w.Code >= 400:
			var p Problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Code == "" || p.Detail == "" || p.Request == "" || p.Status != w.Code {
				t.Fatalf("%s %s with %q was refused without a word: %d %s", to.method, to.path, body, w.Code, w.Body)
			}
			if after := lastEvent(t, h); after != before {
				t.Fatalf("%s %s with %q was refused with %s and changed something", to.method, to.path, body, w.Body)
			}
		}
	})
}

func lastEvent(t testing.TB, h *hub) (n int64) {
	err := h.store.View(t.Context(), func(tx store.Tx) (err error) {
		n, err = tx.LastEvent()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// FuzzAsk sends paths and queries. What a path names cannot lead out of the
// workspace, and no question makes the hub fail.
func FuzzAsk(f *testing.F) {
	h := newHub(f)
	withFleet(f, h)
	h.workspace("lab")
	h.register("lab", "digits", 1)
	for _, target := range []string{
		"/v1/workspaces?limit=2&cursor=AA", "/v1/workspaces/lab/models/digits/versions/latest/files/..%2f..%2fmodel.onnx?variant=onnx",
		"/v1/workspaces/lab/blobs/sha256:00", "/v1/workspaces/lab/events?after=-1&kind=model", "/v1/workspaces/lab/devices?selector=a%3Db,",
		"/v1/workspaces/lab/requests/x-y", "/v1/workspaces/%00/models", "/v1/workspaces/lab/models/digits/versions/99999999999999999999",
		"/v1/audit?limit=1000", "/v1/workspaces/lab/endpoints/x/keys", "//v1//workspaces", "/v1/workspaces/lab/../../tokens",
	} {
		f.Add(target)
	}
	handler, _ := build(Config{Store: h.store, Access: h.access, Registry: h.reg, Fleet: h.server.fleet, Log: h.server.log})
	f.Fuzz(func(t *testing.T, target string) {
		if strings.Contains(target, "watch") || len(target) > 8<<10 {
			return // a watch does not end
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://hub"+target, nil)
		if err != nil || r.Host != "hub" {
			return
		}
		r.RequestURI = target
		r.Header.Set("Authorization", "Bearer "+h.admin)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code >= 500 {
			t.Fatalf("%q: %d %s", target, w.Code, w.Body)
		}
		if ct := w.Header().Get("Content-Type"); w.Code >= 400 && (ct != problemType || w.Body.Len() == 0) && !strings.Contains(target, "prometheus") {
			t.Fatalf("%q: %d as %s %s", target, w.Code, ct, w.Body)
		}
	})
}
