package python

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

const repository = "../.."

// interpreter returns a Python: that of the tests' environment, which has Azure's
// packages, where it is there.
func interpreter(t testing.TB) string {
	t.Helper()
	venv, err := filepath.Abs(repository + "/.cache/venv/bin/python3")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(venv); err == nil {
		return venv
	}
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Fatalf("the tests need python3: %v", err)
	}
	return path
}

// azure returns the interpreter of an environment with Azure's packages; the test
// is skipped where there is none, except in CI.
func azure(t testing.TB) string {
	t.Helper()
	path := interpreter(t)
	if out, err := exec.Command(path, "-c", "import azureml_inference_server_http, inference_schema").CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("azureml-inference-server-http is not installed: %v\n%s", err, out)
		}
		t.Skip("azureml-inference-server-http is not installed; 'make test-tools' installs it")
	}
	return path
}

// logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// bench is a script that is served.
type bench struct {
	testing.TB
	pool   *Pool
	server *httptest.Server
	log    *logBuffer
	dir    string
}

// write writes a script and returns its path.
func write(t testing.TB, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "score.py")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// begin starts a pool of the script; what the options leave out is chosen.
func begin(t testing.TB, script string, opts Options) (*Pool, *logBuffer, Options, error) {
	t.Helper()
	log := &logBuffer{}
	if opts.Python == "" {
		opts.Python = interpreter(t)
	}
	opts.Script, opts.Log = write(t, script), slog.New(slog.NewTextHandler(log, nil))
	if opts.ModelDir == "" {
		opts.ModelDir = filepath.Dir(opts.Script)
	}
	pool, err := Start(t.Context(), opts)
	return pool, log, opts, err
}

func serve(t testing.TB, script string, opts Options) *bench {
	t.Helper()
	pool, log, opts, err := begin(t, script, opts)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	h := NewHandler("sums", "3", "test", opts.Script, 8<<20, opts.Log)
	if err := h.SetReady(pool); err != nil {
		t.Fatal(err)
	}
	b := &bench{TB: t, pool: pool, server: httptest.NewServer(h), log: log, dir: filepath.Dir(opts.Script)}
	t.Cleanup(func() {
		b.server.Close()
		pool.Close()
		if t.Failed() {
			t.Logf("the log:\n%.20000s", log)
		}
	})
	return b
}

// answer is what came for a request.
type answer struct {
	status int
	header http.Header
	body   string
}

func (b *bench) do(method, target, body string, fields ...string) answer {
	b.Helper()
	a, err := b.try(method, target, body, fields...)
	if err != nil {
		b.Fatal(err)
	}
	return a
}

func (b *bench) try(method, target, body string, fields ...string) (answer, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, b.server.URL+target, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := b.server.Client().Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(text)}, err
}

// score posts a body and checks status and answer, where want is not "".
func (b *bench) score(body string, status int, want string) answer {
	b.Helper()
	a := b.do(http.MethodPost, "/score", body, "Content-Type", "application/json")
	if a.status != status || want != "" && a.body != want {
		b.Errorf("%.100s was answered with %d %.500s, want %d %s", body, a.status, a.body, status, want)
	}
	return a
}

// says reads the error that an answer tells.
func (a answer) says(t testing.TB) errorBody {
	t.Helper()
	var e errorBody
	if err := json.Unmarshal([]byte(a.body), &e); err != nil {
		t.Errorf("%q is no error: %v", a.body, err)
	}
	return e
}

// eventually waits until what holds.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came that %s", what)
		}
	}
}

// alive reports whether a process runs.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := string(b[bytes.LastIndexByte(b, ')')+1:])
	return !strings.HasPrefix(rest, " Z") && !strings.HasPrefix(rest, " X")
}

// scriptError starts a script that fails and returns how.
func scriptError(t *testing.T, script string, opts Options) *ScriptError {
	t.Helper()
	pool, log, _, err := begin(t, script, opts)
	if err == nil {
		pool.Close()
		t.Fatal("the script was ready")
	}
	var e *ScriptError
	if !errors.As(err, &e) {
		t.Fatalf("%v is no ScriptError\n%s", err, log)
	}
	return e
}
