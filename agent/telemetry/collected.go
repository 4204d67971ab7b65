package telemetry

import "github.com/atelier-edge/atelier/internal/otlp"

// Collected counts the records that are collected of a deployment.
type Collected struct {
	Deployment string // its name
	Records    uint64 // put into the spool since the agent started
	Dropped    uint64 // given up: the module had no time, or the spool no room
	Pending    int    // batches that wait for the hub's acknowledgement
	Bytes      int64  // that the spool takes on disk
}

func collectedMetrics(m *metrics, started uint64, all []Collected) {
	var records, dropped, pending, bytes []otlp.Point
	for _, c := range all {
		records = append(records, point(float64(c.Records), "deployment", c.Deployment))
		dropped = append(dropped, point(float64(c.Dropped), "deployment", c.Deployment))
		pending = append(pending, point(float64(c.Pending), "deployment", c.Deployment))
		bytes = append(bytes, point(float64(c.Bytes), "deployment", c.Deployment))
	}
	m.sum("atelier.collect.records", "{record}", "Records of requests that were collected, since the agent started.", started, records...)
	m.sum("atelier.collect.dropped", "{record}", "Records that were given up before they reached the hub, since the agent started.", started, dropped...)
	m.gauge("atelier.collect.pending", "{batch}", "Batches of records that the hub has not acknowledged.", pending...)
	m.gauge("atelier.collect.size", "By", "Bytes that records take on disk until the hub has them.", bytes...)
}
