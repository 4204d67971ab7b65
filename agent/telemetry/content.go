package telemetry

import "sync"

// Content counts how content came to the device since the agent started. The zero
// value counts from nothing; its methods are safe for concurrent use.
type Content struct {
	mu       sync.Mutex
	received map[string]int64 // bytes on the wire by way
	saved    int64            // bytes that did not have to come
	failed   int64            // differences
}

// Arrived counts a content of size bytes that came in a way ("whole", "difference"),
// with received bytes on the wire. failed tells that a difference to it was of no use.
func (c *Content) Arrived(way string, size, received int64, failed bool) {
	if way == "" {
		return // it was here
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.received == nil {
		c.received = map[string]int64{}
	}
	c.received[way] += received
	c.saved += max(0, size-received)
	if failed {
		c.failed++
	}
}

func (c *Content) measure(m *metrics, started uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.sum("atelier.content.received", "By", "Bytes of content on the wire, by the way in which it came.", started,
		point(float64(c.received["whole"]), "way", "whole"), point(float64(c.received["difference"]), "way", "difference"))
	m.sum("atelier.content.saved", "By", "Bytes of content that did not have to come, because a difference did.", started, point(float64(c.saved)))
	m.sum("atelier.content.differences.failed", "{difference}", "Differences that did not lead to the content, which then came as it is.", started, point(float64(c.failed)))
}
