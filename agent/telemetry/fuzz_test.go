package telemetry

import (
	"encoding/json"
	"log/slog"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// FuzzCounters reads a file of what earlier backends counted, then three answers of
// the gateway about a backend that comes and goes. Totals never fall while the
// gateway is the same one, and another start of the agent reads what was saved.
func FuzzCounters(f *testing.F) {
	status := []byte(`{"started":5,"counters":[{"endpoint":"e","rollout":"r","deployment":"d","model":"m","version":1,"requests":{"2xx":3},"buckets":[1,2],"seconds":0.5}]}`)
	f.Add([]byte(`{"started":5,"lines":[{"endpoint":"e","deployment":"d","model":"m","version":1,"requests":{"2xx":9},"buckets":[1],"seconds":1}]}`), status)
	f.Add([]byte(`{"lines":[null,{}]}`), status)
	f.Add([]byte(`x`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, saved, answer []byte) {
		disk := durabletest.NewDisk()
		if err := disk.Mkdir("/spool", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := durable.WriteFile(disk, "/spool/retired.json", saved, 0o600); err != nil {
			t.Fatal(err)
		}
		var s atelier.GatewayStatus
		if json.Unmarshal(answer, &s) != nil {
			return
		}
		c := newEndpointCounters(disk, "/spool", slog.New(slog.DiscardHandler))
		first := count(c.take(&s))
		gone := s
		gone.Counters = nil
		second := c.take(&gone)
		for k, n := range first {
			if t2 := second[k]; t2 != nil && sum(t2) < n { // beyond maxRetired lines it is forgotten
				t.Fatalf("%+v fell from %d to %d when its backend went", k, n, sum(t2))
			}
		}
		third := count(newEndpointCounters(disk, "/spool", slog.New(slog.DiscardHandler)).take(&gone))
		for k, n := range count(second) {
			if third[k] != n {
				t.Fatalf("%+v was %d and is %d after a restart", k, n, third[k])
			}
		}
		endpointMetrics(&metrics{}, s.Started, second, nil)
	})
}

func sum(t *totals) (n uint64) {
	for _, r := range t.Requests {
		n += r >> 8 // so that absurd numbers do not overflow
	}
	return n
}

func count(sums map[served]*totals) map[served]uint64 {
	n := map[served]uint64{}
	for k, t := range sums {
		n[k] = sum(t)
	}
	return n
}
