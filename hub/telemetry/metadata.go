package telemetry

import (
	"sync"

	"github.com/prometheus/common/model"
)

// Metadata describes a metric, in the words of Prometheus' API.
type Metadata struct {
	Type model.MetricType `json:"type"`
	Help string           `json:"help"`
	Unit string           `json:"unit"`
}

// maxMetadata bounds how many metrics of a workspace are described.
const maxMetadata = 2000

// metadata describes metrics by workspace and name, as their devices last did.
// It is filled by what comes in, and by the journal when the hub starts.
type metadata struct {
	mu         sync.Mutex
	workspaces map[string]map[string]Metadata
}

func newMetadata() metadata { return metadata{workspaces: map[string]map[string]Metadata{}} }

func (m *metadata) set(workspace, name string, md Metadata) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.workspaces[workspace]
	if w == nil {
		w = map[string]Metadata{}
		m.workspaces[workspace] = w
	}
	if _, known := w[name]; known || len(w) < maxMetadata {
		w[name] = md
	}
}

// list returns the descriptions of a workspace's metrics: all, or the one named.
func (m *metadata) list(workspace, name string, limit int) map[string][]Metadata {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string][]Metadata{}
	for n, md := range m.workspaces[workspace] {
		if limit >= 0 && len(out) >= limit {
			break
		}
		if name == "" || name == n {
			out[n] = []Metadata{md}
		}
	}
	return out
}
