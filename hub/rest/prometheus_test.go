package rest

import (
	"encoding/base64"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang/snappy"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/telemetry"
	"github.com/atelier-edge/atelier/internal/otlp"
	"github.com/atelier-edge/atelier/internal/wire"
)

// newHubWithTelemetry is a hub whose telemetry holds one gauge, 42, of one device
// in each of the workspaces.
func newHubWithTelemetry(t *testing.T, names ...string) *hub {
	t.Helper()
	h := newHub(t)
	log := slog.New(slog.DiscardHandler)
	store, err := telemetry.Open(telemetry.Config{Dir: filepath.Join(t.TempDir(), "telemetry"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	h.server.telemetry = store
	for _, name := range names {
		ws := h.workspace(name)
		now := time.Now()
		r := otlp.Request{Resources: []otlp.Resource{{Metrics: []otlp.Metric{{
			Name: "answer", Points: []otlp.Point{{Time: uint64(now.UnixNano()), Value: 42, Attributes: []otlp.Attribute{{Key: "of", Value: name}}}},
		}}}}}
		clock := wire.Clock{BootID: "boot", Monotone: time.Hour, Wall: now}
		frame := wire.TelemetryFrame{
			Stream: atelier.NewID(), Sequence: 1, Taken: clock, Sent: clock,
			Encoding: wire.Snappy, Payload: snappy.Encode(nil, r.Encode(nil)),
		}
		b, err := frame.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		device := atelier.Device{Meta: atelier.Meta{ID: atelier.NewID(), Name: "press-1"}}
		if _, err := store.Ingest(t.Context(), ws.ID, device, b); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestPrometheusAPIIsGuarded(t *testing.T) {
	t.Parallel()
	h := newHubWithTelemetry(t, "one", "two")
	const query = "/prometheus/api/v1/query?query=answer"
	count := func(r reply) int {
		t.Helper()
		var answer struct {
			Status string
			Data   struct {
				Result []struct{ Metric map[string]string }
			}
		}
		r.into(t, http.StatusOK, &answer)
		return len(answer.Data.Result)
	}
	if n := count(h.do(h.admin, "GET", "/w/one"+query, nil)); n != 1 {
		t.Errorf("%d series, want 1", n)
	}
	viewer := h.token("grafana", "viewer", "one")
	basic := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("anybody:"+viewer))
	if n := count(h.do("", "GET", "/w/one"+query, nil, basic)); n != 1 {
		t.Errorf("with the token as a password: %d series, want 1", n)
	}
	form := "Content-Type: application/x-www-form-urlencoded"
	if n := count(h.do(viewer, "POST", "/w/one/prometheus/api/v1/query", "query=answer", form)); n != 1 {
		t.Errorf("as a form: %d series, want 1", n)
	}
	h.do("", "GET", "/w/one"+query, nil).fails(t, atelier.Unauthenticated)
	h.do("wrong", "GET", "/w/one"+query, nil).fails(t, atelier.Unauthenticated)
	h.do(viewer, "GET", "/w/two"+query, nil).fails(t, atelier.NotFound)
	h.do(h.admin, "GET", "/w/three"+query, nil).fails(t, atelier.NotFound)
	var answer struct{ Status, ErrorType string }
	h.do(h.admin, "GET", "/w/one/prometheus/api/v1/query?query=(", nil).into(t, http.StatusBadRequest, &answer)
	if answer.Status != "error" || answer.ErrorType != "bad_data" {
		t.Errorf("got %+v, want Prometheus' own form", answer)
	}
	h.do(h.admin, "GET", "/w/one/prometheus/api/v1/admin/tsdb/delete_series", nil).into(t, http.StatusNotFound, &answer)
}

// Debian's promtool answers from the hub, with the token as the password.
func TestPromtool(t *testing.T) {
	t.Parallel()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("promtool is missing; install Debian's package prometheus")
		}
		t.Skip("promtool is not installed (Debian's package prometheus); CI has it")
	}
	h := newHubWithTelemetry(t, "one", "two")
	address, err := url.Parse(h.url)
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.UserPassword("promtool", h.token("promtool", "viewer", "one"))
	address.Path = "/w/one/prometheus"
	now := time.Now()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"instant", address.String(), "answer"}, `answer{device="press-1", device_id=`},
		{[]string{"instant", address.String(), `sum(answer{of="two"})`}, ""},
		{[]string{"range", "--start=" + now.Add(-time.Minute).Format(time.RFC3339), "--end=" + now.Add(time.Minute).Format(time.RFC3339), "--step=10s", address.String(), "sum(answer)"}, "42 @["},
		{[]string{"series", "--match=answer", address.String()}, `of="one"`},
		{[]string{"labels", address.String(), "of"}, "one"},
	} {
		cmd := exec.CommandContext(t.Context(), promtool, append([]string{"query"}, c.args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) || strings.Contains(string(out), "two") {
			t.Errorf("promtool query %s: %v\n%s\nwant %q", c.args[0], err, out, c.want)
		}
		if c.want == "" && strings.TrimSpace(string(out)) != "" {
			t.Errorf("promtool sees another workspace: %s", out)
		}
	}
}

func TestHubTellsOfItself(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.server.metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("go_goroutines 7\n")) })
	h.workspace("one")
	if r := h.do(h.token("prometheus", "viewer", ""), "GET", "/metrics", nil); r.status != http.StatusOK || string(r.body) != "go_goroutines 7\n" {
		t.Errorf("status %d: %s", r.status, r.body)
	}
	h.do(h.token("grafana", "viewer", "one"), "GET", "/metrics", nil).fails(t, atelier.Forbidden)
	h.do("", "GET", "/metrics", nil).fails(t, atelier.Unauthenticated)
}
