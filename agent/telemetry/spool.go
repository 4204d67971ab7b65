package telemetry

import (
	"log/slog"

	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/spool"
	"github.com/atelier-edge/atelier/internal/wire"
)

// What keeps and sends measurements is internal/spool's.
type (
	// Spool keeps batches until the hub has them.
	Spool = spool.Spool
	// Batch is a round of measurements.
	Batch = spool.Batch
	// Dropped counts what was given up.
	Dropped = spool.Dropped
	// Sender sends a spool's batches.
	Sender = spool.Sender
	// Publisher is what a Sender needs of the link to the hub.
	Publisher = spool.Publisher
)

// OpenSpool opens a spool; see spool.Open.
func OpenSpool(fsys durable.FS, dir string, budget int64) (*Spool, error) {
	return spool.Open(fsys, dir, budget)
}

// NewSender returns a Sender; Run makes it send.
func NewSender(s *Spool, link Publisher, clock func() wire.Clock, log *slog.Logger) *Sender {
	return spool.NewSender(s, link, clock, log)
}
