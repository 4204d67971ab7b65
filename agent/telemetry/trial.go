package telemetry

import (
	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/otlp"
)

// sumOf returns the sum of what was counted of a shadow's answers, without samples. a
// may be nil; neither is changed.
func sumOf(a, b *atelier.ShadowReport) *atelier.ShadowReport {
	var sum atelier.ShadowReport
	for _, r := range []*atelier.ShadowReport{a, b} {
		if r == nil {
			continue
		}
		sum.Compared += r.Compared
		sum.Disagreed += r.Disagreed
		sum.Dropped += r.Dropped
		sum.Errors += r.Errors
		sum.Served, sum.Shadow = addBuckets(sum.Served, r.Served), addBuckets(sum.Shadow, r.Shadow)
		sum.ServedSeconds += r.ServedSeconds
		sum.ShadowSeconds += r.ShadowSeconds
	}
	return &sum
}

// addBuckets adds b to a, which may be shorter.
func addBuckets(a, b []uint64) []uint64 {
	if len(a) < len(b) {
		a = append(a, make([]uint64, len(b)-len(a))...)
	}
	for i, n := range b {
		a[i] += n
	}
	return a
}

// trialMetrics makes metrics of versions that run beside others.
func trialMetrics(m *metrics, start uint64, keys []served, sums map[served]*totals, names map[string]string) {
	var fallbacks, compared, disagreed, dropped, errors []otlp.Point
	var latencies []otlp.HistogramPoint
	for _, k := range keys {
		t, labels := sums[k], k.labels(names)
		if t.Fallbacks > 0 {
			fallbacks = append(fallbacks, point(float64(t.Fallbacks), labels...))
		}
		s := t.Shadow
		if s == nil {
			continue
		}
		compared = append(compared, point(float64(s.Compared), labels...))
		disagreed = append(disagreed, point(float64(s.Disagreed), labels...))
		dropped = append(dropped, point(float64(s.Dropped), labels...))
		errors = append(errors, point(float64(s.Errors), labels...))
		latencies = appendHistogram(latencies, m.now, start, s.Served, s.ServedSeconds, append(labels[:len(labels):len(labels)], "answer", "served"))
		latencies = appendHistogram(latencies, m.now, start, s.Shadow, s.ShadowSeconds, append(labels[:len(labels):len(labels)], "answer", "shadow"))
	}
	m.sum("atelier.endpoint.canary.fallbacks", "{request}", "Requests of a canary's share that the version beside it answered, since the canary did not.", start, fallbacks...)
	m.sum("atelier.endpoint.shadow.compared", "{request}", "Copies of requests that the shadow answered, and whose answers were compared.", start, compared...)
	m.sum("atelier.endpoint.shadow.disagreed", "{request}", "Those that it answered differently.", start, disagreed...)
	m.sum("atelier.endpoint.shadow.dropped", "{request}", "Requests of which the shadow got no copy, although it should.", start, dropped...)
	m.sum("atelier.endpoint.shadow.errors", "{request}", "Copies that the shadow did not answer.", start, errors...)
	m.histogram("atelier.endpoint.shadow.latency", "s", "Time that both versions took for what was compared.", latencies...)
}
