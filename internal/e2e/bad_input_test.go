package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// problem is an error as hub and gateway answer it; a module's endpoint of Open
// Inference Protocol has the sentence alone, in Error.
type problem struct {
	Detail, Code, Remedy, Field string
	Message                     string `json:"error"`
}

// rest asks the hub as the holder of token; body is sent as it is.
func (w *world) rest(token, method, path, body string, headers ...string) (status int, p problem) {
	w.t.Helper()
	req, err := http.NewRequest(method, "https://"+w.listen+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("Content-Type", "application/json")
	return w.answered(w.client(), req, headers)
}

func (w *world) client() *http.Client {
	// The test knows which hub it has started; what is tested is what it answers.
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}

func (w *world) answered(c *http.Client, req *http.Request, headers []string) (status int, p problem) {
	w.t.Helper()
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	res, err := c.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	if res.StatusCode >= 400 {
		if err := json.Unmarshal(b, &p); err != nil {
			w.t.Errorf("%s %s: %s with %s", req.Method, req.URL, res.Status, b)
		}
	}
	return res.StatusCode, p
}

// refusal is what is expected of one: the code, the field where there is one, and
// words that the sentence has.
type refusal struct {
	code  atelier.Code
	field string
	says  string
}

func (r refusal) check(t *testing.T, what string, status int, p problem) {
	t.Helper()
	if status != r.code.HTTPStatus() || p.Code != string(r.code) || !strings.Contains(p.Field, r.field) || !strings.Contains(p.Detail, r.says) || p.Detail == "" {
		t.Errorf("%s: %d %+v, expected was %d %s about %q that says %q", what, status, p, r.code.HTTPStatus(), r.code, r.field, r.says)
	}
}

// TestBadInput gives hub, command line and gateway what is wrong in every way, and
// looks that each says so and goes on.
func TestBadInput(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.atelier("workspace", "create", "lab")
	w.atelier("workspace", "use", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(1))
	d := w.join("press", "site=a")
	w.atelier("deploy", "digits", "--to", "site=a")
	e := w.endpoint("digits")
	e.infer(t, d, 1)
	fields := strings.Fields(w.login)
	admin := fields[len(fields)-1]
	load := e.load(t, d)

	t.Run("files", func(t *testing.T) { badFiles(t, w) })
	t.Run("bodies", func(t *testing.T) { badBodies(t, w, admin) })
	t.Run("credentials", func(t *testing.T) { badCredentials(t, w, admin) })
	t.Run("connections", func(t *testing.T) { badConnections(t, w.listen, true) })
	t.Run("queries", func(t *testing.T) { badQueries(t, w, admin) })
	t.Run("tensors", func(t *testing.T) { badTensors(t, w, d, e) })
	t.Run("gateway connections", func(t *testing.T) { badConnections(t, d.gateway, false) })

	if failed := load.stop(); len(failed) > 0 {
		t.Errorf("%d sound requests failed meanwhile, the first: %v", len(failed), failed[0])
	}
	eventually(t, 30*time.Second, func() error {
		if out := w.atelier("why", "press"); !strings.Contains(out, "is as desired.") {
			return fmt.Errorf("why press: %s", out)
		}
		return nil
	})
	for _, p := range []program{w.hub, d.agent} {
		if strings.Contains(p.Output(), "panic") {
			t.Errorf("%s panicked:\n%s", p.Name(), p.Tail(40))
		}
	}
}

// badFiles registers what is no model, over the command line.
func badFiles(t *testing.T, w *world) {
	model := read(t, digits(1))
	dir := filepath.Join(w.dir, "bad")
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := func(name, to string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, path); err != nil {
			t.Fatal(err)
		}
		return filepath.Dir(path)
	}
	for _, c := range []struct {
		name, path string
		code       int
		says       string
	}{
		{"cut", file("cut.onnx", model[:len(model)/2]), 2, "cut"},
		{"picture", file("picture.onnx", "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"+model[:500]), 2, "ONNX"},
		{"empty", file("empty.onnx", ""), 2, "empty"},
		{"zeros", file("zeros.onnx", strings.Repeat("\x00", 4096)), 2, "ONNX"},
		{"text", file("text.onnx", "this is no model"), 2, "ONNX"},
		{"no-such-file", filepath.Join(dir, "none.onnx"), 2, "none.onnx"},
		{"dangling", link("dangling/model.onnx", "nowhere"), 2, "model.onnx"},
		{"loop", link("loop/model.onnx", "model.onnx"), 2, "model.onnx"},
		{"leads-out", link("out/model.onnx", digits(1)), 2, "cp -rL"},
		{"endless", "/dev/zero", 2, "/dev/zero is neither"},
		{"../escape", digits(1), 2, "name"},
		{strings.Repeat("x", 64), digits(1), 2, "63"},
	} {
		_, said, err := run(t.Context(), w.env, filepath.Join(bin, "atelier"), "model", "register", c.name, c.path)
		if exitCode(err) != c.code || !strings.Contains(said, c.says) {
			t.Errorf("registering %s as %.20s ends with %v and says %s", c.path, c.name, err, said)
		}
		if len(c.name) < 64 && strings.Trim(c.name, "abcdefghijklmnopqrstuvwxyz-") == "" {
			w.fails(3, "model", "show", c.name) // no version, and no model either
		}
	}
}

// badBodies sends JSON that is wrong.
func badBodies(t *testing.T, w *world, admin string) {
	const ws = "/v1/workspaces/plant"
	digest := string(atelier.DigestOf([]byte("never uploaded")))
	version := func(path, digest string, size int) string {
		b, err := json.Marshal(map[string]any{"files": []any{map[string]any{"path": path, "digest": digest, "size": size}}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	big := `{"name":"x","description":"` + strings.Repeat("x", 2<<20) + `"}`
	for what, c := range map[string]struct {
		method, path, body string
		want               refusal
		headers            []string
	}{
		"no JSON":            {"POST", ws + "/models", "{", refusal{atelier.Invalid, "", ""}, nil},
		"nothing":            {"POST", ws + "/models", "", refusal{atelier.Invalid, "", "body"}, nil},
		"NaN":                {"POST", ws + "/models", `{"name":NaN}`, refusal{atelier.Invalid, "", ""}, nil},
		"a list":             {"POST", ws + "/models", `[]`, refusal{atelier.Invalid, "", "object"}, nil},
		"wrong type":         {"POST", ws + "/models", `{"name":7}`, refusal{atelier.Invalid, "name", "string"}, nil},
		"unknown field":      {"POST", ws + "/models", `{"name":"x","colour":"red"}`, refusal{atelier.Invalid, "colour", "not known"}, nil},
		"missing field":      {"POST", ws + "/models", `{}`, refusal{atelier.Invalid, "name", "required"}, nil},
		"deep":               {"POST", ws + "/models", `{"name":` + strings.Repeat("[", 200_000), refusal{atelier.Invalid, "", ""}, nil},
		"too large":          {"POST", ws + "/models", big, refusal{atelier.TooLarge, "", "1048576"}, nil},
		"bad name":           {"POST", ws + "/models", `{"name":"../x"}`, refusal{atelier.Invalid, "name", "begins or ends"}, nil},
		"NUL in a name":      {"POST", ws + "/models", `{"name":"a\u0000b"}`, refusal{atelier.Invalid, "name", "not allowed"}, nil},
		"id as a name":       {"POST", ws + "/models", `{"name":"01jz0000000000000000000001"}`, refusal{atelier.Invalid, "name", "form of an id"}, nil},
		"taken":              {"POST", "/v1/workspaces", `{"name":"lab"}`, refusal{atelier.Exists, "", "lab"}, nil},
		"path upwards":       {"POST", ws + "/models/digits/versions", version("../../etc/x", digest, 1), refusal{atelier.Invalid, "files[0].path", ".."}, nil},
		"absolute path":      {"POST", ws + "/models/digits/versions", version("/etc/passwd", digest, 1), refusal{atelier.Invalid, "files[0].path", "absolute"}, nil},
		"NUL in a path":      {"POST", ws + "/models/digits/versions", version("a\x00b", digest, 1), refusal{atelier.Invalid, "files[0].path", "not allowed"}, nil},
		"long path":          {"POST", ws + "/models/digits/versions", version(strings.Repeat("a/", 400)+"x", digest, 1), refusal{atelier.Invalid, "files[0].path", "512"}, nil},
		"no digest":          {"POST", ws + "/models/digits/versions", version("m.onnx", "sha256:xyz", 1), refusal{atelier.Invalid, "files[0].digest", "64"}, nil},
		"nothing uploaded":   {"POST", ws + "/models/digits/versions", version("m.onnx", digest, 14), refusal{atelier.Invalid, "files[0].digest", "not been uploaded"}, nil},
		"negative size":      {"POST", ws + "/models/digits/versions", version("m.onnx", digest, -1), refusal{atelier.Invalid, "files[0]", ""}, nil},
		"wrong digest":       {"POST", ws + "/blobs?digest=" + digest, "other content", refusal{atelier.Invalid, "digest", digest[:20]}, []string{"Content-Type: application/octet-stream"}},
		"no If-Match":        {"PATCH", ws, `{"description":"x"}`, refusal{atelier.Invalid, "If-Match", "missing"}, nil},
		"stale If-Match":     {"PATCH", ws, `{"description":"x"}`, refusal{atelier.Stale, "", ""}, []string{`If-Match: "77"`}},
		"no ETag":            {"PATCH", ws, `{"description":"x"}`, refusal{atelier.Invalid, "If-Match", "no ETag"}, []string{`If-Match: 1`}},
		"bad cursor":         {"GET", ws + "/models?cursor=x", "", refusal{atelier.Invalid, "cursor", "none that this list gave"}, nil},
		"bad limit":          {"GET", ws + "/models?limit=1e9", "", refusal{atelier.Invalid, "limit", ""}, nil},
		"unknown question":   {"GET", ws + "/models?colour=red", "", refusal{atelier.Invalid, "colour", ""}, nil},
		"bad selector":       {"GET", ws + "/devices?selector=x", "", refusal{atelier.Invalid, "", "="}, nil},
		"wrong media type":   {"POST", ws + "/models", "name=x", refusal{atelier.Unsupported, "", ""}, []string{"Content-Type: application/x-www-form-urlencoded"}},
		"no such route":      {"POST", ws + "/modles", "{}", refusal{atelier.NotFound, "", "modles"}, nil},
		"endless workspace":  {"GET", "/v1/workspaces/" + strings.Repeat("x", 5000), "", refusal{atelier.NotFound, "", "no workspace"}, nil},
		"empty selector":     {"POST", ws + "/deployments", `{"name":"d","model":"digits","selector":{}}`, refusal{atelier.Invalid, "selector", ""}, nil},
		"version that isn't": {"POST", ws + "/deployments", `{"name":"d","model":"digits","version":99,"selector":{"labels":{"a":"b"}}}`, refusal{atelier.NotFound, "", "99"}, nil},
	} {
		status, p := w.rest(admin, c.method, c.path, c.body, c.headers...)
		if what == "wrong media type" && status == http.StatusUnsupportedMediaType {
			status = c.want.code.HTTPStatus() // the one that HTTP has for it
		}
		c.want.check(t, what, status, p)
	}
	first, _ := w.rest(admin, "POST", ws+"/models", `{"name":"once"}`, "Idempotency-Key: k1")
	again, p := w.rest(admin, "POST", ws+"/models", `{"name":"twice"}`, "Idempotency-Key: k1")
	if first != http.StatusCreated {
		t.Errorf("the first of a key is answered with %d", first)
	}
	refusal{atelier.Conflict, "Idempotency-Key", "another request"}.check(t, "a key used again", again, p)
	w.fails(3, "model", "show", "twice")
	w.atelier("model", "delete", "once")
	var models []struct{ Name string }
	if w.asked(&models, "model", "list"); len(models) != 1 {
		t.Errorf("something of what was refused stayed: %+v", models)
	}
}

// badCredentials calls with tokens that are wrong, foreign, deleted or used up.
func badCredentials(t *testing.T, w *world, admin string) {
	var viewer, join struct{ ID, Secret string }
	w.asked(&viewer, "token", "create", "guest", "--role", "viewer", "--for", "lab")
	for what, c := range map[string]struct {
		token, method, path string
		code                atelier.Code
	}{
		"none":           {"", "GET", "/v1/workspaces", atelier.Unauthenticated},
		"wrong":          {"atl_wrong", "GET", "/v1/workspaces", atelier.Unauthenticated},
		"enormous":       {strings.Repeat("x", 30<<10), "GET", "/v1/workspaces", atelier.Unauthenticated},
		"of another":     {viewer.Secret, "GET", "/v1/workspaces/plant/models", atelier.NotFound},
		"may only look":  {viewer.Secret, "POST", "/v1/workspaces/lab/models", atelier.Forbidden},
		"not the hub's":  {viewer.Secret, "GET", "/v1/tokens", atelier.Forbidden},
		"cut in the end": {admin[:len(admin)-1], "GET", "/v1", atelier.Unauthenticated},
	} {
		status, p := w.rest(c.token, c.method, c.path, `{"name":"x"}`)
		refusal{c.code, "", ""}.check(t, what, status, p)
	}
	w.atelier("token", "revoke", "guest")
	status, p := w.rest(viewer.Secret, "GET", "/v1/workspaces/lab/models", "")
	refusal{atelier.Unauthenticated, "", ""}.check(t, "a deleted token", status, p)

	w.asked(&join, "device", "token")
	status, p = w.rest("", "POST", "/v1/enrol", fmt.Sprintf(`{"token":%q,"csr":"AAAA","name":"x"}`, join.Secret))
	refusal{atelier.Invalid, "csr", ""}.check(t, "no certificate request", status, p)
	command := w.joinCommand()
	w.agentJoins(w.prepare("first"), command)
	second := w.prepare("second")
	refused := func(what string, command []string) {
		_, said, err := run(t.Context(), nil, filepath.Join(bin, "atelier-agent"), append(append([]string{}, command...), "--name", "second", "--config", second.config)...)
		if err == nil || !strings.Contains(said, "token") {
			t.Errorf("%s: %v %s", what, err, said)
		}
	}
	refused("a join token that is used up", command)
	command[len(command)-1] = "atj_wrong"
	refused("a wrong join token", command)
}

// badConnections breaks off, dawdles and lies about lengths, below HTTP.
func badConnections(t *testing.T, address string, secure bool) {
	dial := func() net.Conn {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if secure {
			c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		return c
	}
	for _, raw := range []string{
		"POST /v1/workspaces HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{",
		"POST /v1/workspaces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a",
		"POST /digits/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffff\r\n",
		"GET / HTTP/1.1\r\nHost: x\r\nX: ", "\x16\x03\x01\x02\x00", strings.Repeat("A", 100_000),
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
	} {
		c := dial()
		_, _ = io.WriteString(c, raw) // the other side may hang up at any time
		_ = c.Close()
	}
	// Many that dawdle keep nobody out.
	for range 200 {
		_, _ = io.WriteString(dial(), "GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
	}
	c := dial()
	if _, err := io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("beside slow clients, %s answers %v, %v", address, res, err)
	}
}

// badQueries asks for more than a hub can answer; another workspace is served meanwhile.
func badQueries(t *testing.T, w *world, admin string) {
	ask := func(ws, query string) int {
		req, err := http.NewRequest("GET", "https://"+w.listen+"/w/"+ws+"/prometheus/api/v1/query", nil)
		if err != nil {
			t.Error(err)
			return 0
		}
		q := req.URL.Query()
		q.Set("query", query)
		q.Set("timeout", "2s")
		req.URL.RawQuery = q.Encode()
		req.Header.Set("Authorization", "Bearer "+admin)
		res, err := w.client().Do(req)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer func() { _ = res.Body.Close() }()
		var answer struct{ Status, ErrorType, Error string }
		if err := json.NewDecoder(res.Body).Decode(&answer); err != nil || res.StatusCode >= 400 && answer.Error == "" {
			t.Errorf("%.80s: %s %+v, %v", query, res.Status, answer, err)
		}
		return res.StatusCode
	}
	for query, want := range map[string]int{
		"": 400, "1+": 400, "sum(": 400, strings.Repeat("(", 20_000): 400, `{__name__=~"["}`: 400, "up[5m]": 200,
		"rate(up)": 400, `{}`: 400, "sum_over_time(vector(1)[3650d:1s])": 400,
	} {
		if got := ask("plant", query); got != want {
			t.Errorf("%.40s: %d, expected was %d", query, got, want)
		}
	}
	if got := ask("lab", "1+1"); got != http.StatusOK {
		t.Errorf("the other workspace is answered with %d", got)
	}
}

// badTensors calls an endpoint wrongly.
func badTensors(t *testing.T, w *world, d *device, e endpoint) {
	const path = "/v2/models/digits/infer"
	call := func(key, path, body string, headers ...string) (int, problem) {
		req, err := http.NewRequest("POST", "http://"+d.gateway+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Api-Key", key)
		return w.answered(http.DefaultClient, req, headers)
	}
	zeros := "[" + strings.TrimSuffix(strings.Repeat("0,", 64), ",") + "]"
	tensor := func(name, typ, shape, data string) string {
		return fmt.Sprintf(`{"inputs":[{"name":%q,"datatype":%q,"shape":%s,"data":%s}]}`, name, typ, shape, data)
	}
	good := tensor("pixels", "FP32", "[1,64]", zeros)
	if status, p := call(e.key, "/digits"+path, good); status != http.StatusOK {
		t.Fatalf("a sound request: %d %+v", status, p)
	}
	binary := `{"inputs":[{"name":"pixels","datatype":"FP32","shape":[1,64],"parameters":{"binary_data_size":256}}]}`
	for what, c := range map[string]struct {
		body    string
		says    string
		headers []string
	}{
		"shape":          {tensor("pixels", "FP32", "[1,63]", zeros), "shape", nil},
		"rank":           {tensor("pixels", "FP32", "[64]", zeros), "shape", nil},
		"negative":       {tensor("pixels", "FP32", "[-1,64]", zeros), "shape", nil},
		"enormous":       {tensor("pixels", "FP32", "[9223372036854775807,64]", zeros), "shape", nil},
		"elements":       {tensor("pixels", "FP32", "[2,64]", zeros), "elements", nil},
		"type":           {tensor("pixels", "FP64", "[1,64]", zeros), "datatype", nil},
		"texts":          {tensor("pixels", "FP32", "[1,64]", `["a"]`), "number", nil},
		"NaN":            {tensor("pixels", "FP32", "[1,64]", "[NaN]"), "JSON", nil},
		"Infinity":       {tensor("pixels", "FP32", "[1,64]", "[1e999]"), "number", nil},
		"null":           {tensor("pixels", "FP32", "[1,64]", "null"), "data", nil},
		"ragged":         {tensor("pixels", "FP32", "[1,64]", "[[1],[2,3]]"), "ragged", nil},
		"deep":           {tensor("pixels", "FP32", "[1,64]", strings.Repeat("[", 5000)+strings.Repeat("]", 5000)), "nested", nil},
		"another input":  {tensor("colour", "FP32", "[1,64]", zeros), "colour", nil},
		"no inputs":      {`{"inputs":[]}`, "pixels", nil},
		"twice":          {`{"inputs":[{"name":"pixels","datatype":"FP32","shape":[1,64],"data":` + zeros + `},{"name":"pixels","datatype":"FP32","shape":[1,64],"data":` + zeros + `}]}`, "twice", nil},
		"unknown field":  {`{"inputs":[],"colour":1}`, "colour", nil},
		"empty":          {"", "empty", nil},
		"no JSON":        {"\x89PNG", "JSON", nil},
		"another output": {strings.TrimSuffix(good, "}") + `,"outputs":[{"name":"colour"}]}`, "colour", nil},
		"cut tensor":     {binary + strings.Repeat("x", 255), "binary_data_size", []string{fmt.Sprintf("Inference-Header-Content-Length: %d", len(binary))}},
		"more than said": {binary + strings.Repeat("x", 257), "follow", []string{fmt.Sprintf("Inference-Header-Content-Length: %d", len(binary))}},
		"head too long":  {binary, "Inference-Header-Content-Length", []string{"Inference-Header-Content-Length: 99999"}},
		"head negative":  {binary, "Inference-Header-Content-Length", []string{"Inference-Header-Content-Length: -1"}},
		"head no number": {binary, "Inference-Header-Content-Length", []string{"Inference-Header-Content-Length: x"}},
		"head too short": {binary, "JSON", []string{"Inference-Header-Content-Length: 9"}},
	} {
		status, p := call(e.key, "/digits"+path, c.body, c.headers...)
		said := p.Message + p.Detail
		if status != http.StatusBadRequest || !strings.Contains(said, c.says) {
			t.Errorf("%s: %d %q, expected was 400 that says %q", what, status, said, c.says)
		}
	}
	for what, c := range map[string]struct {
		key, path string
		code      atelier.Code
	}{
		"no key":      {"", "/digits" + path, atelier.Unauthenticated},
		"wrong key":   {"atk_wrong", "/digits" + path, atelier.Unauthenticated},
		"no endpoint": {e.key, "/numbers" + path, atelier.NotFound},
		"upwards":     {e.key, "/..%2fdigits" + path, atelier.NotFound},
	} {
		status, p := call(c.key, c.path, good)
		refusal{c.code, "", ""}.check(t, what, status, p)
	}
	req, err := http.NewRequest("POST", "http://"+d.gateway+"/digits"+path, io.LimitReader(zeroReader{}, 65<<20))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 65 << 20
	req.Header.Set("X-Api-Key", e.key)
	if status, p := w.answered(http.DefaultClient, req, nil); status != http.StatusRequestEntityTooLarge {
		t.Errorf("65 MiB: %d %+v", status, p)
	}

	// A rotated key is refused as soon as the device has heard of it.
	secondary := func() string {
		var keys struct{ Secondary string }
		w.asked(&keys, "endpoint", "keys", "digits")
		return keys.Secondary
	}
	old := secondary()
	w.atelier("endpoint", "rotate-key", "digits", "secondary")
	eventually(t, 30*time.Second, func() error {
		if status, _ := call(old, "/digits"+path, good); status != http.StatusUnauthorized {
			return fmt.Errorf("the old key is answered with %d", status)
		}
		return nil
	})
	if status, _ := call(secondary(), "/digits"+path, good); status != http.StatusOK {
		t.Errorf("the new key is answered with %d", status)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte{'0'}, len(p))), nil }
