package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/registry"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/hub/store/sqlite"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
)

// hub is a hub's REST API on a real server, over a real database and content store.
type hub struct {
	t      testing.TB
	url    string
	admin  string // a token that may do everything
	store  store.Store
	access *access.Authority
	reg    *registry.Registry
	log    *logs
	server *server
}

// logs keeps what the hub logged.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newHub(t testing.TB) *hub {
	t.Helper()
	dir := t.TempDir()
	db, err := sqlite.Open(t.Context(), filepath.Join(dir, "hub.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	blobs, err := content.Open(durable.OS{}, filepath.Join(dir, "content"))
	if err != nil {
		t.Fatal(err)
	}
	out := &logs{}
	log := slog.New(slog.NewTextHandler(out, nil))
	h := &hub{t: t, store: db, access: access.New(db, nil), log: out, reg: registry.New(registry.Config{Store: db, Content: blobs, Log: log})}
	err = h.access.Bootstrap(t.Context(), func(secret string) error {
		h.admin = secret
		return nil
	})
	if err != nil || h.admin == "" {
		t.Fatal(h.admin, err)
	}
	h.serve(log)
	return h
}

// serve starts a server over the hub's parts; a second one is a hub that was
// started again.
func (h *hub) serve(log *slog.Logger) {
	handler, s := build(Config{
		Store: h.store, Access: h.access, Registry: h.reg, Metrics: http.NotFoundHandler(), Log: log, Heartbeat: 50 * time.Millisecond,
		Hub: Hub{Version: "1.2.3", Fingerprint: "sha256:abc", MQTT: "tls://hub:8883", CA: []byte("-----BEGIN CERTIFICATE-----\n")},
	})
	srv := httptest.NewUnstartedServer(handler)
	ctx, cancel := context.WithCancel(context.Background())
	srv.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	srv.Start()
	h.t.Cleanup(func() {
		cancel()
		srv.Close()
	})
	h.url, h.server = srv.URL, s
}

// reply is an answer, read whole.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// problem reads the answer as a problem.
func (r reply) problem(t testing.TB) Problem {
	t.Helper()
	var p Problem
	if got := r.header.Get("Content-Type"); got != problemType {
		t.Errorf("status %d with content type %q, want %q: %s", r.status, got, problemType, r.body)
	}
	if err := json.Unmarshal(r.body, &p); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
	if p.Status != r.status || p.Type != "about:blank" || p.Title == "" || p.Detail == "" || p.Request == "" || p.Request != r.header.Get(headerRequest) {
		t.Errorf("incomplete problem: %s", r.body)
	}
	return p
}

// into decodes the answer, which must have the status.
func (r reply) into(t testing.TB, status int, v any) {
	t.Helper()
	if r.status != status {
		t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	if v == nil {
		return
	}
	if err := json.Unmarshal(r.body, v); err != nil {
		t.Fatalf("%v: %s", err, r.body)
	}
}

// fails checks that the answer is a problem with the code.
func (r reply) fails(t testing.TB, code atelier.Code) Problem {
	t.Helper()
	p := r.problem(t)
	if p.Code != code {
		t.Fatalf("code %s, want %s: %s", p.Code, code, r.body)
	}
	return p
}

// do makes a request as the holder of token. body is JSON unless it is a string
// or bytes; headers are "Name: value".
func (h *hub) do(token, method, path string, body any, headers ...string) reply {
	h.t.Helper()
	r, err := try(h, token, method, path, body, headers...)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func try(h *hub, token, method, path string, body any, headers ...string) (reply, error) {
	var in io.Reader
	contentType := ""
	switch b := body.(type) {
	case nil:
	case string:
		in, contentType = strings.NewReader(b), "application/json"
	case []byte:
		in, contentType = bytes.NewReader(b), octets
	default:
		j, err := json.Marshal(b)
		if err != nil {
			return reply{}, err
		}
		in, contentType = bytes.NewReader(j), "application/json"
	}
	req, err := http.NewRequest(method, h.url+path, in)
	if err != nil {
		return reply{}, err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for _, line := range headers {
		name, value, _ := strings.Cut(line, ": ")
		req.Header.Set(name, value)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	all, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, all}, err
}

// workspace makes a workspace.
func (h *hub) workspace(name string) atelier.Workspace {
	h.t.Helper()
	var w atelier.Workspace
	h.do(h.admin, "POST", "/v1/workspaces", map[string]any{"name": name}).into(h.t, 201, &w)
	return w
}

// token makes an access token.
func (h *hub) token(name, role, workspace string) string {
	h.t.Helper()
	var t IssuedToken
	h.do(h.admin, "POST", "/v1/tokens", newToken{Name: name, Role: role, Workspace: workspace}).into(h.t, 201, &t)
	return t.Secret
}

// upload puts content into a workspace, and returns it as a file of that path.
func (h *hub) upload(ws, path string, b []byte) atelier.File {
	h.t.Helper()
	var info blobInfo
	h.do(h.admin, "POST", "/v1/workspaces/"+ws+"/blobs", b).into(h.t, 201, &info)
	if info.Digest != atelier.DigestOf(b) || info.Size != int64(len(b)) {
		h.t.Fatalf("got %+v", info)
	}
	return atelier.File{Path: path, Digest: info.Digest, Size: info.Size}
}

// register makes a version of one file that holds a small model; n makes it another.
func (h *hub) register(ws, model string, n byte) atelier.Version {
	h.t.Helper()
	f := h.upload(ws, "model.onnx", smallModel(n))
	var v atelier.Version
	h.do(h.admin, "POST", "/v1/workspaces/"+ws+"/models/"+model+"/versions", map[string]any{"files": []atelier.File{f}}).into(h.t, 201, &v)
	return v
}

// smallModel is an ONNX model with the input x and the output y: FP32 of [-1, 4].
// n differs in its producer's name only.
func smallModel(n byte) []byte {
	value := func(name string) []byte {
		dims := []byte{0x0a, 3, 0x12, 1, 'n', 0x0a, 2, 0x08, 4}
		tensor := append([]byte{0x08, 1, 0x12, byte(len(dims))}, dims...)
		typ := append([]byte{0x0a, byte(len(tensor))}, tensor...)
		return append([]byte{0x0a, 1, name[0], 0x12, byte(len(typ))}, typ...)
	}
	x, y := value("x"), value("y")
	graph := append([]byte{0x5a, byte(len(x))}, x...)
	graph = append(append(graph, 0x62, byte(len(y))), y...)
	return append([]byte{0x08, 8, 0x12, 1, 'a' + n, 0x3a, byte(len(graph))}, graph...)
}

func TestHub(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	var status health
	h.do("", "GET", "/healthz", nil).into(t, 200, &status)
	if status.Status != "ok" {
		t.Errorf("got %+v", status)
	}
	var info hubInfo
	h.do(h.admin, "GET", "/v1", nil).into(t, 200, &info)
	if info.Version != "1.2.3" || info.Fingerprint != "sha256:abc" || info.MQTT != "tls://hub:8883" || info.Principal.Role != access.Admin {
		t.Errorf("got %+v", info)
	}
	ca := h.do("", "GET", "/v1/ca", nil)
	ca.into(t, 200, nil)
	if !strings.HasPrefix(string(ca.body), "-----BEGIN") || ca.header.Get("Content-Type") != "application/x-pem-file" {
		t.Errorf("got %s %q", ca.header.Get("Content-Type"), ca.body)
	}
}

func TestWorkspaces(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	w := h.workspace("lab")
	made := map[string]bool{}
	for _, r := range w.Resources {
		made[r.Kind] = r.Made
	}
	want := map[string]bool{atelier.ResourceBlobStorage: true, atelier.ResourceInsights: true, atelier.ResourceVault: true, atelier.ResourceRegistry: false}
	if fmt.Sprint(made) != fmt.Sprint(want) {
		t.Errorf("associated resources %v, want %v", made, want)
	}
	h.do(h.admin, "POST", "/v1/workspaces", map[string]any{"name": "lab"}).fails(t, atelier.Exists)
	h.do(h.admin, "POST", "/v1/workspaces", map[string]any{"name": "No Good"}).fails(t, atelier.Invalid)

	got := h.do(h.admin, "GET", "/v1/workspaces/lab", nil)
	got.into(t, 200, nil)
	if got.header.Get("ETag") != `"1"` {
		t.Errorf("ETag %s", got.header.Get("ETag"))
	}
	byID := h.do(h.admin, "GET", "/v1/workspaces/"+w.ID, nil)
	if !bytes.Equal(byID.body, got.body) {
		t.Errorf("by id %s, by name %s", byID.body, got.body)
	}

	change := map[string]any{"description": "where it happens", "tags": map[string]string{"team": "vision"}}
	if p := h.do(h.admin, "PATCH", "/v1/workspaces/lab", change).fails(t, atelier.Invalid); p.Field != "If-Match" {
		t.Errorf("a change without If-Match: %+v", p)
	}
	h.do(h.admin, "PATCH", "/v1/workspaces/lab", change, `If-Match: "7"`).fails(t, atelier.Stale)
	h.do(h.admin, "PATCH", "/v1/workspaces/lab", change, `If-Match: 1`).fails(t, atelier.Invalid)
	h.do(h.admin, "PATCH", "/v1/workspaces/lab", change, `If-Match: "1"`).into(t, 200, &w)
	if w.Description != "where it happens" || w.Tags["team"] != "vision" || w.Revision != 2 || len(w.Resources) != 4 {
		t.Errorf("got %+v", w)
	}
	h.do(h.admin, "PATCH", "/v1/workspaces/lab", map[string]any{"name": "studio"}, "If-Match: *").into(t, 200, &w)
	h.do(h.admin, "GET", "/v1/workspaces/lab", nil).fails(t, atelier.NotFound)

	h.register("studio", "digits", 1)
	if p := h.do(h.admin, "DELETE", "/v1/workspaces/studio", nil).fails(t, atelier.InUse); !strings.Contains(p.Detail, "digits") {
		t.Errorf("got %+v", p)
	}
	h.do(h.admin, "DELETE", "/v1/workspaces/studio/models/digits", nil).into(t, 204, nil)
	h.do(h.admin, "DELETE", "/v1/workspaces/studio", nil, `If-Match: "1"`).fails(t, atelier.Stale)
	h.do(h.admin, "DELETE", "/v1/workspaces/studio", nil, `If-Match: "3"`).into(t, 204, nil)
	h.do(h.admin, "DELETE", "/v1/workspaces/studio", nil).fails(t, atelier.NotFound)
}

func TestPaging(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	for i := range 7 {
		h.workspace(fmt.Sprintf("w%d", i))
	}
	var names []string
	path := "/v1/workspaces?limit=3"
	pages := 0
	for next := path; next != ""; pages++ {
		var page listBody[atelier.Workspace]
		h.do(h.admin, "GET", next, nil).into(t, 200, &page)
		for _, w := range page.Items {
			names = append(names, w.Name)
		}
		next = ""
		if page.Next != "" {
			next = path + "&cursor=" + page.Next
		}
	}
	if strings.Join(names, " ") != "w0 w1 w2 w3 w4 w5 w6" || pages != 3 {
		t.Errorf("got %v in %d pages", names, pages)
	}
	empty := h.do(h.admin, "GET", "/v1/runtimes", nil)
	if empty.into(t, 200, nil); strings.TrimSpace(string(empty.body)) != `{"items":[]}` {
		t.Errorf("an empty list is %s", empty.body)
	}
	for _, bad := range []string{"limit=0", "limit=1001", "limit=x", "cursor=zzz", "cursor=" + sealCursor("model", "x"), "colour=red"} {
		p := h.do(h.admin, "GET", "/v1/workspaces?"+bad, nil).fails(t, atelier.Invalid)
		if name, _, _ := strings.Cut(bad, "="); p.Field != name {
			t.Errorf("%s: field %q, want %q", bad, p.Field, name)
		}
	}
}
