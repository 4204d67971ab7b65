package telemetry_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Whatever workspace A asks, it learns nothing of workspace B: neither values,
// labels, names, numbers nor ids, nor its own hidden label.
func TestIsolation(t *testing.T) {
	t.Parallel()
	c := &clock{start}
	s := open(t, t.TempDir(), c)
	for i := range 3 {
		at := start.Add(time.Duration(i) * time.Minute)
		c.now = at
		ingest(t, s, wsA, devA, newFrame(atelier.NewID(), 1, at, gauge("shared", at, 1, "site", "ours")))
		ingest(t, s, wsB, devB, newFrame(atelier.NewID(), 1, at, gauge("shared", at, 666, "site", "theirs"), gauge("secret", at, 666, "theirs", "theirs")))
	}
	now := c.now
	forbidden := []string{"666", "theirs", "secret", devB.ID, wsB, wsA, "__workspace__"}
	check := func(what, body string) {
		t.Helper()
		for _, f := range forbidden {
			if strings.Contains(body, f) {
				t.Errorf("%s shows %q: %s", what, f, body)
			}
		}
	}
	selectors := []string{
		`shared`, `{__name__=~".+"}`, `{__workspace__="` + wsB + `",__name__="shared"}`, `shared{__workspace__=~".+"}`,
		`shared{__workspace__!=""}`, `shared{__workspace__!~""}`, `shared{__workspace__=""}`, `shared{__workspace__!="` + wsA + `"}`,
		`shared{__workspace__=~"` + wsA + `|` + wsB + `"}`, `{__name__=~".+",__workspace__=~"|` + wsB + `"}`,
		`{"__workspace__"="` + wsB + `",__name__=~".+"}`, `shared{site!="ours"}`, `{device_id="` + devB.ID + `"}`, `{site=~"t.*"}`,
	}
	expressions := append([]string{
		`count({__name__=~".+"})`, `sum by(__workspace__) (shared)`, `count_values("v", shared)`, `group by(__workspace__,site,theirs) ({__name__=~".+"})`,
		`absent(shared{site="theirs"})`, `absent(secret)`, `label_replace(shared, "x", "$1", "__workspace__", "(.*)")`,
		`label_join(shared, "x", ",", "__workspace__", "site")`, `shared * on(__workspace__) group_left() shared`,
		`shared or ignoring(__workspace__) {__name__=~".+"}`, `max_over_time(shared[1h:1m])`, `shared @ end()`, `shared offset -1m`,
		`max(max_over_time({__name__=~".+"}[1d] @ start()))`, `topk(100, {__name__=~".+"})`, `last_over_time({__name__=~".+"}[1d])`,
		`quantile_over_time(1, shared[1h]) unless ignoring(__workspace__) shared`, `sort_desc(shared)`, `scalar(secret)`, `vector(scalar(secret))`,
		`timestamp(secret)`, `shared and on() secret`, `shared unless on() secret`, `sum without(site) (shared)`,
	}, selectors...)
	for _, e := range expressions {
		status, body := get(t, s, wsA, "query", url.Values{"query": {e}, "time": {now.Format(time.RFC3339)}})
		if status != 200 {
			t.Errorf("%s: %d %s", e, status, body)
		}
		// What is echoed of the expression itself betrays nothing.
		check(e, strings.ReplaceAll(strings.ReplaceAll(body, `"v":"1"`, ""), `"site":"theirs"},"value":[1748779320,"1"]}]`, ""))
		_, body = get(t, s, wsA, "query_range", url.Values{"query": {e}, "start": {now.Add(-time.Hour).Format(time.RFC3339)}, "end": {now.Format(time.RFC3339)}, "step": {"60"}})
		if !strings.HasPrefix(e, "absent") {
			check("range of "+e, body)
		}
	}
	for _, m := range selectors {
		_, body := get(t, s, wsA, "series", url.Values{"match[]": {m}})
		check("series "+m, body)
		_, body = get(t, s, wsA, "series", url.Values{"match[]": {m, `shared`}})
		check("series of two "+m, body)
		for _, path := range []string{"labels", "label/site/values", "label/__name__/values", "label/device_id/values", "label/__workspace__/values", "label/theirs/values", "label/U____workspace__/values"} {
			_, body = get(t, s, wsA, path, url.Values{"match[]": {m}})
			check(path+" "+m, body)
		}
	}
	for _, path := range []string{"labels", "label/site/values", "label/__name__/values", "label/__workspace__/values", "metadata", "status/buildinfo"} {
		_, body := get(t, s, wsA, path, nil)
		check(path, body)
		_, body = get(t, s, wsA, path, url.Values{"limit": {"1"}})
		check(path+" with a limit", body)
	}
	// The hidden label acts like any that is absent.
	for expr, want := range map[string]string{
		`count(shared{__workspace__=""})`: `"1"`, `count(shared{__workspace__!="x"})`: `"1"`, `count(shared{__workspace__=~".*"})`: `"1"`,
		`count(shared{__workspace__="` + wsA + `"})`: `[]`, `count({__name__=~".+"})`: `"1"`,
	} {
		if got := query(t, s, wsA, expr, now); !strings.Contains(got, want) {
			t.Errorf("%s: got %s, want %s", expr, got, want)
		}
	}
	if got := query(t, s, "", `{__name__=~".+"}`, now); got != "[]" {
		t.Errorf("no workspace sees %s", got)
	}
}
