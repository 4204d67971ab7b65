package telemetry

import (
	"fmt"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// Condition says whether measurements reach the hub, or are kept until they can:
// it fails while any are given up, and holds again once the hub has all that are left.
func (t *Telemetry) Condition() atelier.Condition {
	s := t.spool.Stats()
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.Pending == 0 && t.failure == nil {
		t.mourned = s.Dropped
	}
	next := atelier.Holds(atelier.ConditionTelemetry, atelier.Because(atelier.ReasonAsDesired,
		fmt.Sprintf("%d batches of measurements wait for the hub, in %s", s.Pending, atelier.FormatBytes(s.Bytes))))
	if lost := s.Dropped.Batches - t.mourned.Batches; lost > 0 {
		why := fmt.Sprintf("%d batches with %d measurements were given up; %d wait for the hub, in %s of at most %s",
			lost, s.Dropped.Samples-t.mourned.Samples, s.Pending, atelier.FormatBytes(s.Bytes), atelier.FormatBytes(t.opts.Budget))
		if t.failure != nil {
			why += "; " + t.failure.Error()
		}
		next = atelier.Fails(atelier.ConditionTelemetry, atelier.Because(atelier.ReasonTelemetryLost, why))
	}
	t.condition = next.Following(t.condition, time.Now())
	return t.condition
}

// note keeps why the last round of measurements could not be kept, nil where it
// was, and tells where that changes the condition.
func (t *Telemetry) note(err error) {
	t.mu.Lock()
	t.failure = err
	before := t.condition
	t.mu.Unlock()
	now := t.Condition()
	switch {
	case err != nil:
		t.opts.Log.Warn("cannot keep measurements", "why", now.Why())
	case !now.True() && (before.True() || before.Type() == ""):
		t.opts.Log.Warn("cannot keep all measurements", "why", now.Why())
	}
	if now.True() != before.True() && t.opts.Changed != nil {
		t.opts.Changed()
	}
}
