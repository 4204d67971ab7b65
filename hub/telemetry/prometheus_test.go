package telemetry_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/otlp"
)

// TestAnswersAreThoseOfPrometheus asks the hub and a real Prometheus (Debian's
// package) over the same samples, and compares status and JSON.
func TestAnswersAreThoseOfPrometheus(t *testing.T) {
	t.Parallel()
	c := &clock{start}
	s := open(t, t.TempDir(), c)
	stream := atelier.NewID()
	var text strings.Builder
	for series := range 3 {
		fmt.Fprintf(&text, "# TYPE g%d gauge\n", series)
		for i := range 60 {
			at := start.Add(time.Duration(i)*15*time.Second + 123*time.Millisecond)
			fmt.Fprintf(&text, "g%d{device=\"press-1\",device_id=\"%s\",place=\"hall \\\"%d\\\" ü\"} %v %v\n", series, devA.ID, series, sampleValue(series, i), float64(at.UnixMilli())/1000)
		}
	}
	text.WriteString("# EOF\n")
	for i := range 60 {
		at := start.Add(time.Duration(i)*15*time.Second + 123*time.Millisecond)
		c.now = at
		var metrics []otlp.Metric
		for series := range 3 {
			metrics = append(metrics, gauge(fmt.Sprint("g", series), at, sampleValue(series, i), "place", fmt.Sprintf("hall \"%d\" ü", series)))
		}
		ingest(t, s, wsA, devA, newFrame(stream, uint64(i+1), at, metrics...))
	}
	ours := httptest.NewServer(s.Handler(wsA))
	t.Cleanup(ours.Close)
	theirs := startPrometheus(t, text.String())

	at := func(d time.Duration) string { return start.Add(d).Format(time.RFC3339) }
	now := at(10 * time.Minute)
	requests := []struct {
		path string
		form url.Values
	}{
		{"status/buildinfo", nil}, {"query", url.Values{"query": {"1+1"}, "time": {now}}}, {"query", url.Values{"query": {`"text"`}, "time": {now}}},
		{"query_range", url.Values{"query": {"1e30"}, "start": {at(0)}, "end": {now}, "step": {"1m"}}},
		{"labels", nil}, {"labels", url.Values{"match[]": {"g1"}}}, {"labels", url.Values{"match[]": {"g1", "nothing"}, "start": {at(0)}, "end": {now}}},
		{"label/place/values", nil}, {"label/place/values", url.Values{"match[]": {"g1"}}}, {"label/none/values", nil}, {"label/__name__/values", nil},
		{"series", url.Values{"match[]": {"g1"}}}, {"series", url.Values{"match[]": {`{place=~".*1.*"}`, "g2"}, "start": {"1748779200"}, "end": {"1748779260.5"}}},
		// And what is wrong.
		{"series", nil}, {"series", url.Values{"match[]": {"{"}}}, {"series", url.Values{"match[]": {`{a=~".*"}`}}}, {"label/a-b/values", url.Values{"start": {"x"}}},
		{"query", nil}, {"query", url.Values{"query": {"("}}}, {"query", url.Values{"query": {"g1"}, "time": {"x"}}}, {"query", url.Values{"query": {"g1"}, "timeout": {"x"}}},
		{"query", url.Values{"query": {"g1 + on(device) g2 + {__name__=~\"g.\"}"}, "time": {now}}},
		{"query_range", url.Values{"query": {"g1"}}}, {"query_range", url.Values{"query": {"g1"}, "start": {now}, "end": {at(0)}, "step": {"1"}}},
		{"query_range", url.Values{"query": {"g1"}, "start": {at(0)}, "end": {now}, "step": {"0"}}},
		{"query_range", url.Values{"query": {"g1"}, "start": {at(0)}, "end": {now}, "step": {"0.001"}}},
		{"query_range", url.Values{"query": {"g1"}, "start": {"1e300"}, "end": {now}, "step": {"1"}}},
	}
	for _, expr := range []string{
		"g1", "g0 * 1e25", "-g1 / 0", "0 / (g1 * 0)", "g1 * 1e-9", `{__name__=~"g."}`, "sum by(place) (rate(g1[2m7s]))", "absent(nothing)", "scalar(sum(g1))",
		"count_values(\"v\", g0)", "topk(1, {__name__=~\"g.\"})", "g1 offset 1m", "max_over_time(g1[5m10s:30s])", "label_replace(g1, \"x\", \"$1\", \"place\", \"(.*)\")",
		"g1 @ 1748779260", "g1 > 1e9", "timestamp(g1)", "time()", "vector(1)", "sort(g1 or g2)",
	} {
		requests = append(requests, struct {
			path string
			form url.Values
		}{"query", url.Values{"query": {expr}, "time": {now}}}, struct {
			path string
			form url.Values
		}{"query_range", url.Values{"query": {expr}, "start": {at(0)}, "end": {now}, "step": {"37.5"}}})
	}
	for _, r := range requests {
		for _, post := range []bool{false, true} {
			if post && strings.Contains(r.path, "/") {
				continue
			}
			gotStatus, got := ask(t, ours.URL, r.path, r.form, post)
			wantStatus, want := ask(t, theirs, r.path, r.form, post)
			if gotStatus != wantStatus || !reflect.DeepEqual(got, want) {
				t.Errorf("%s %v:\ngot  %d %v\nwant %d %v", r.path, r.form, gotStatus, got, wantStatus, want)
			}
		}
	}
}

func sampleValue(series, i int) float64 {
	return []float64{1, float64(i) * 1.25, float64(i%7) / 3}[series]
}

// ask returns what may be compared of an answer: the wording of errors and hints
// changes from version to version, as does what buildinfo says.
func ask(t *testing.T, base, path string, form url.Values, post bool) (int, map[string]any) {
	t.Helper()
	address := base + "/api/v1/" + path
	var res *http.Response
	var err error
	if post {
		res, err = http.PostForm(address, form)
	} else {
		res, err = http.Get(address + "?" + form.Encode())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if ct := res.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("%s: content type %q", path, ct)
	}
	var answer map[string]any
	if err := json.Unmarshal(b, &answer); err != nil {
		t.Fatalf("%s: %v: %s", path, err, b)
	}
	delete(answer, "warnings")
	delete(answer, "infos")
	if text, ok := answer["error"].(string); ok {
		answer["error"] = text != ""
	}
	if info, ok := answer["data"].(map[string]any); ok && path == "status/buildinfo" {
		for k := range info {
			info[k] = "?"
		}
	}
	return res.StatusCode, answer
}

// startPrometheus starts a Prometheus over samples in OpenMetrics' text form.
func startPrometheus(t *testing.T, text string) (base string) {
	t.Helper()
	dir := t.TempDir()
	for _, tool := range []string{"promtool", "prometheus"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(tool, "is missing; install Debian's package prometheus")
			}
			t.Skip(tool, "is not installed (Debian's package prometheus); CI has it")
		}
	}
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	data := filepath.Join(dir, "data")
	out, err := exec.CommandContext(t.Context(), "promtool", "tsdb", "create-blocks-from", "openmetrics", write("samples.txt", text), data).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "log")
	logFile, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "prometheus", "--config.file="+write("prometheus.yml", ""), "--storage.tsdb.path="+data,
		"--storage.tsdb.retention.time=100y", "--web.listen-address="+address)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		_ = logFile.Close()
	})
	base = "http://" + address
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		res, err := http.Get(base + "/-/ready")
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return base
			}
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(log)
			t.Fatalf("prometheus does not answer: %s", b)
		}
	}
}
