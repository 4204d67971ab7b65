package store

import (
	"context"
	"log/slog"
	"time"
)

// Retention says how long events and the audit trail are kept.
type Retention struct {
	Events time.Duration
	Audit  time.Duration
	Log    *slog.Logger
}

// trimEvery is the time between passes, and trimBatch how many rows a
// transaction removes at most: others want to write, too.
const (
	trimEvery = 10 * time.Minute
	trimBatch = 500
)

// Run trims s now and then until ctx ends.
func (r Retention) Run(ctx context.Context, s Store) {
	every := min(trimEvery, max(time.Second, min(r.Events, r.Audit)/2))
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := r.trim(ctx, s); err != nil && ctx.Err() == nil {
			r.Log.Error("old events and audit entries could not be removed; it is tried again", slog.Any("error", err), slog.Duration("in", every))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// trim makes one pass.
func (r Retention) trim(ctx context.Context, s Store) error {
	for {
		var removed int64
		now := time.Now()
		err := s.Update(ctx, By{}, func(tx Tx) (err error) {
			removed, err = tx.Trim(now.Add(-r.Events), now.Add(-r.Audit), trimBatch)
			return err
		})
		if err != nil || removed == 0 {
			return err
		}
	}
}
