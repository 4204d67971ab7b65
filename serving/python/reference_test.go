package python

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// reference starts Azure's own server with the script and returns its URL.
func reference(t *testing.T, script string) string {
	t.Helper()
	program := filepath.Join(filepath.Dir(azure(t)), "azmlinfsrv")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	path, log := write(t, script), &logBuffer{}
	cmd := exec.Command(program, "--entry_script", path, "--model_dir", filepath.Dir(path), "--port", strconv.Itoa(port))
	cmd.Dir, cmd.Stdout, cmd.Stderr = filepath.Dir(path), log, log
	cmd.Env = append(os.Environ(), "SERVICE_NAME=sums", "SERVICE_VERSION=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("the reference says:\n%.5000s", log)
		}
	})
	url := "http://127.0.0.1:" + strconv.Itoa(port)
	eventually(t, "the reference is ready", func() bool {
		resp, err := http.Get(url + "/")
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == 200
	})
	return url
}

// The same requests are answered alike by Azure's server and by ours: status,
// JSON, and the fields that Azure documents.
func TestAnswersAsTheReferenceDoes(t *testing.T) {
	t.Parallel()
	scripts := map[string]string{
		"plain": `
import json
def init(): pass
def run(data, request_headers):
    if data == "fail": raise ValueError("no")
    if data == "set": return {1}
    if data == "none": return None
    return {"data": data, "agent": request_headers.get("X-Agent"), "keys": sorted(k for k in request_headers if k.startswith("X-"))}
`,
		"raw":    strings.ReplaceAll(rawScript, "%s", "azureml_inference_server_http.api"),
		"schema": schemaScript,
	}
	type request struct {
		method, target, body string
		fields               []string
	}
	asJSON := []string{"Content-Type", "application/json", "X-Agent", "a"}
	requests := map[string][]request{
		"plain": {
			{"POST", "/score", `{"a": 1}`, asJSON}, {"POST", "/score", "ü\n", nil}, {"POST", "/score", "", nil}, {"POST", "/score", "\xff", nil},
			{"POST", "/score", "fail", nil}, {"POST", "/score", "set", nil}, {"POST", "/score", "none", nil},
			{"GET", "/score?a=1&b=x&b=2&c=&d=null&e=%C3%BC", "", nil}, {"OPTIONS", "/score", "", nil}, {"PUT", "/score", "", nil}, {"DELETE", "/score", "", nil},
			{"POST", "/score", "{}", []string{"X-Request-Id", "mine"}}, {"POST", "/score", "{}", []string{"X-Request-Id", strings.Repeat("x", 101)}},
			{"POST", "/score", "{}", []string{"X-Request-Id", "mine", "X-Ms-Client-Request-Id", "theirs", "TraceId", "t"}},
			{"POST", "/score", "{}", []string{"X-Request-Id", "mine", "X-Ms-Request-Id", "old"}},
			{"POST", "/score", "{}", []string{"X-Several", "one", "X-Lower-case", "1"}},
			{"GET", "/", "", nil}, {"GET", "/nowhere", "", nil}, {"GET", "/swagger.json", "", nil}, {"GET", "/swagger.json?version=9", "", nil},
		},
		"raw": {
			{"GET", "/score?name=Ada&n=1&n=2", "", nil}, {"POST", "/score", "\x00\xff\x01", nil}, {"OPTIONS", "/score", "", nil},
			{"POST", "/score", `{"x": 1}`, append([]string{"X-Kind", "json"}, asJSON...)}, {"POST", "/score", "", []string{"X-Kind", "fail"}},
			{"PUT", "/score", "", nil},
		},
		"schema": {
			{"POST", "/score", `{"data": [[1, 2], [3, 4]]}`, asJSON}, {"POST", "/score", `{"data": [[1, 2]], "factor": 5, "more": 1}`, asJSON},
			{"POST", "/score", `{"factor": 1}`, asJSON}, {"POST", "/score", `[]`, asJSON}, {"POST", "/score", `{`, asJSON}, {"POST", "/score", ``, asJSON},
			{"POST", "/score", `{"data": "words"}`, asJSON}, {"POST", "/score", `{}`, nil}, {"GET", "/score?data=[[1,2]]", "", asJSON[2:]},
			{"GET", "/swagger.json", "", nil}, {"GET", "/swagger.json?version=3", "", nil}, {"GET", "/swagger.json?version=3.1", "", nil},
		},
	}
	fields := []string{"Content-Type", "X-Ms-Run-Function-Failed", "X-One", "X-Request-Id", "X-Ms-Request-Id", "X-Ms-Client-Request-Id", "Traceid"}
	for kind, script := range scripts {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			theirs, b := reference(t, script), serve(t, script, Options{Python: azure(t)})
			ask := func(base string, r request) answer {
				req, err := http.NewRequestWithContext(context.Background(), r.method, base+r.target, strings.NewReader(r.body))
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i < len(r.fields); i += 2 {
					req.Header.Set(r.fields[i], r.fields[i+1])
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil {
					t.Fatal(err)
				}
				return answer{resp.StatusCode, resp.Header, string(body)}
			}
			for _, r := range requests[kind] {
				want, got := ask(theirs, r), ask(b.server.URL, r)
				what := strings.Join(append([]string{r.method, r.target, r.body}, r.fields...), " ")
				if got.status != want.status {
					t.Errorf("%.80s: status %d, the reference has %d", what, got.status, want.status)
				}
				for _, name := range fields {
					g, w := got.header.Values(name), want.header.Values(name)
					generated := strings.HasSuffix(name, "Request-Id") && !strings.Contains(what, "Request-Id")
					if !generated && !reflect.DeepEqual(g, w) {
						t.Errorf("%.80s: %s is %q, the reference has %q", what, name, g, w)
					}
				}
				if (got.header.Get("X-Ms-Run-Fn-Exec-Ms") == "") != (want.header.Get("X-Ms-Run-Fn-Exec-Ms") == "") {
					t.Errorf("%.80s: fields %v, the reference has %v", what, got.header, want.header)
				}
				if g, w := reduced(got), reduced(want); !reflect.DeepEqual(g, w) {
					t.Errorf("%.80s:\n%v\nthe reference has\n%v", what, g, w)
				}
			}
		})
	}
}

// reduced is what of an answer has to be alike: of errors whether there is a
// message, whose words are ours; of Swagger the operations and schemas.
func reduced(a answer) any {
	var v any
	if json.Unmarshal([]byte(a.body), &v) != nil {
		return a.body
	}
	m, ok := v.(map[string]any)
	if !ok {
		return v
	}
	if a.status >= 400 {
		_, ok := m["message"].(string)
		return ok
	}
	schemas, _ := m["definitions"].(map[string]any)
	if c, ok := m["components"].(map[string]any); ok {
		schemas, _ = c["schemas"].(map[string]any)
	}
	if schemas == nil {
		return v
	}
	operations := map[string]any{}
	for path, methods := range m["paths"].(map[string]any) {
		for method, o := range methods.(map[string]any) {
			operations[method+" "+path] = o.(map[string]any)["operationId"]
		}
	}
	return []any{m["swagger"], m["openapi"], operations, schemas["ServiceInput"], schemas["ServiceOutput"]}
}
