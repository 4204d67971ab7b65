package telemetry_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/telemetry"
	"github.com/atelier-edge/atelier/internal/otlp"
	"github.com/atelier-edge/atelier/internal/wire"
)

// FuzzIngest lets a device send payloads in sound frames. Whatever they hold, the
// frame is stored or refused with a code, and nothing appears under the labels of
// another device or workspace, or beyond the bounds.
func FuzzIngest(f *testing.F) {
	at := start
	request := func(metrics ...otlp.Metric) []byte {
		r := otlp.Request{Resources: []otlp.Resource{{Metrics: metrics}}}
		return r.Encode(nil)
	}
	f.Add(uint8(0), int64(0), request(gauge("g", at, 1, "device_id", devB.ID, "__workspace__", wsB, "workspace", wsB)))
	f.Add(uint8(0), int64(0), request(otlp.Metric{Name: "h", Kind: otlp.Histogram, Temporality: otlp.Cumulative, Histograms: []otlp.HistogramPoint{{Time: uint64(at.UnixNano()), Bounds: []float64{1, 2}, Counts: []uint64{1, 2, 3}, Count: 6}}}))
	f.Add(uint8(1), int64(86400_000_000), []byte("\xff\xff\xff\x7f"))
	f.Add(uint8(0), int64(-1), request(gauge("", at, 1), gauge("a b", at.Add(240*time.Hour), 1)))
	c := &clock{start}
	s := open(f, f.TempDir(), c, func(cfg *telemetry.Config) { cfg.MaxSeries = 50 })
	marker := gauge("theirs", start, 666)
	ingest(f, s, wsB, devB, newFrame(atelier.NewID(), 1, start, marker))
	stream, sequence := atelier.NewID(), uint64(0)
	f.Fuzz(func(t *testing.T, encoding uint8, skew int64, payload []byte) {
		sequence++
		skew %= 10 * 365 * 24 * 3600 * 1000
		taken := wire.Clock{BootID: "boot", Monotone: time.Hour, Wall: start.Add(time.Duration(skew) * time.Millisecond)}
		fr := frame{wire.TelemetryFrame{
			Stream: stream, Sequence: sequence, Taken: taken, Sent: taken, Encoding: wire.Encoding(encoding % 2), Payload: payload,
		}}
		raw, err := fr.Encode(nil)
		if err != nil {
			return
		}
		ack, err := s.Ingest(t.Context(), wsA, devA, raw)
		if err != nil {
			t.Fatalf("a sound frame with the payload %x is refused for good: %v", payload, err)
		}
		if ack.Through != sequence {
			t.Fatalf("acknowledged %d of %d", ack.Through, sequence)
		}
		_, body := get(t, s, wsB, "series", url.Values{"match[]": {`{__name__=~".+"}`}, "start": {"0"}, "end": {"9999999999"}})
		if want := `{"status":"success","data":[{"__name__":"theirs","device":"press-1","device_id":"` + devB.ID + `"}]}`; strings.TrimSpace(body) != want {
			t.Fatalf("%x of another workspace shows as %s", payload, body)
		}
		_, body = get(t, s, wsA, "series", url.Values{"match[]": {`{__name__=~".+",device_id!="` + devA.ID + `"}`}, "start": {"0"}, "end": {"9999999999"}})
		if !strings.Contains(body, `"data":[]`) {
			t.Fatalf("%x shows under another device: %s", payload, body)
		}
	})
}

// FuzzQuery asks for workspace A what it likes. It never sees a value, a label or a
// name of workspace B, and every answer is one of Prometheus' form.
func FuzzQuery(f *testing.F) {
	for _, q := range []string{
		`shared`, `{__name__=~".+"}`, `shared{__workspace__="` + wsB + `"}`, `sum by(__workspace__)({__name__!=""})`, `count_values("v", {site=~"t.*"})`,
		`label_replace(shared,"x","$1","__workspace__","(.*)")`, `max_over_time(shared[1h:1m] @ end())`, `absent(secret)`, `1+`, `((((((((1))))))))`,
	} {
		f.Add("query", q, "1748779200", "1")
		f.Add("query_range", q, "1748779200", "60")
		f.Add("series", q, "0", "")
	}
	f.Add("labels", `{}`, "NaN", "-1")
	f.Add("label/__workspace__/values", ``, "9e99", "")
	f.Add("label/site/values", `{__workspace__!=""}`, "2025-06-01T12:00:00Z", "")
	c := &clock{start}
	s := open(f, f.TempDir(), c, func(cfg *telemetry.Config) { cfg.MaxSamples, cfg.QueryTimeout = 100_000, 2*time.Second })
	ingest(f, s, wsA, devA, newFrame(atelier.NewID(), 1, start, gauge("shared", start, 1, "site", "ours")))
	other := atelier.Device{Meta: atelier.Meta{ID: "01jz00000000000000000000d9", Name: "zzhiddenzz"}}
	ingest(f, s, wsB, other, newFrame(atelier.NewID(), 1, start, gauge("shared", start, 734517, "site", "zzhiddenzz"), gauge("zzhiddenzz", start, 734517)))
	f.Fuzz(func(t *testing.T, path, query, at, step string) {
		switch path {
		case "query", "query_range", "series", "labels", "label/__workspace__/values", "label/site/values":
		default:
			path = "query"
		}
		if strings.Contains(query, "zzh") || strings.Contains(query, "734517") || strings.Contains(query, other.ID) {
			return // it knows the secret already
		}
		status, body := get(t, s, wsA, path, url.Values{
			"query": {query}, "match[]": {query}, "time": {at}, "start": {at}, "end": {at}, "step": {step},
		})
		for _, secret := range []string{"zzhiddenzz", "734517", other.ID, "__workspace__"} {
			if strings.Contains(strings.ReplaceAll(body, query, ""), secret) && !strings.Contains(query, secret) {
				t.Fatalf("%s %q shows %q: %s", path, query, secret, body)
			}
		}
		var answer struct{ Status, ErrorType, Error string }
		if err := json.Unmarshal([]byte(body), &answer); err != nil || (status == 200) != (answer.Status == "success") || status != 200 && answer.Error == "" || status == 500 {
			t.Fatalf("%s %q: %d %s", path, query, status, body)
		}
	})
}
