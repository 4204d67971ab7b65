package telemetry_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/telemetry"
)

func TestQueriesAreBounded(t *testing.T) {
	t.Parallel()
	c := &clock{start}
	s := open(t, t.TempDir(), c, func(cfg *telemetry.Config) {
		cfg.MaxSamples, cfg.MaxQueries, cfg.QueryTimeout = 1000, 2, 2*time.Second
	})
	ingest(t, s, wsA, devA, newFrame(atelier.NewID(), 1, start, gauge("g", start, 1)))
	expect := func(status int, kind string, form url.Values) {
		t.Helper()
		got, body := get(t, s, wsA, "query", form)
		if got != status || !strings.Contains(body, `"errorType":"`+kind+`"`) {
			t.Errorf("%v: got %d %s, want %d %s", form, got, body, status, kind)
		}
	}
	at := start.Format(time.RFC3339)
	expect(http.StatusUnprocessableEntity, "execution", url.Values{"query": {"sum_over_time(vector(1)[1d:1s])"}, "time": {at}})
	for _, bomb := range []string{
		"sum_over_time(vector(1)[3650d:1s])", "max_over_time(sum_over_time(g[1h:1s])[100y:1m])", "max_over_time(max_over_time(g[1s:1s])[1y:1h])", "g[290y:1ms]",
	} {
		expect(http.StatusBadRequest, "bad_data", url.Values{"query": {bomb}, "time": {at}})
	}
	expect(http.StatusServiceUnavailable, "timeout", url.Values{"query": {"g"}, "time": {at}, "timeout": {"0.000000001"}})
	w := httptest.NewRecorder()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/v1/query", strings.NewReader("query="+strings.Repeat("x", 2<<20)))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if s.Handler(wsA).ServeHTTP(w, r); w.Code != http.StatusBadRequest {
		t.Errorf("a form of 2 MiB is answered with %d", w.Code)
	}
	// However many come at once, each is answered.
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if got := query(t, s, wsA, "sum(g)", start); !strings.Contains(got, `"1"`) {
				t.Error(got)
			}
		})
	}
	all.Wait()
}

func TestAClosedStoreRefuses(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), &clock{start})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ingest(t.Context(), wsA, devA, newFrame(atelier.NewID(), 1, start).bytes(t)); atelier.CodeOf(err) != atelier.Unavailable {
		t.Errorf("Ingest returned %v", err)
	}
	if status, body := get(t, s, wsA, "query", url.Values{"query": {"1"}}); status != http.StatusServiceUnavailable {
		t.Errorf("a query is answered with %d %s", status, body)
	}
}
