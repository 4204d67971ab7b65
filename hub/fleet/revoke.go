package fleet

import (
	"context"
	"time"

	"github.com/atelier-edge/atelier/internal/wire"
)

// cutPatience bounds how long a revocation waits for the broker.
const cutPatience = 5 * time.Second

// Cut ends all dealings with a device that was revoked or deleted: it is told so,
// its connections end, and nothing that it says counts any more. The caller has
// stored the revocation. An error means that the broker could not be reached; the
// device is ignored all the same.
func (f *Fleet) Cut(ctx context.Context, device string) error {
	f.mu.Lock()
	workspace := ""
	if s := f.sessions[device]; s != nil {
		workspace = s.workspace
	}
	f.mu.Unlock()
	f.peers.forget(device)
	f.sender.Drop(device)
	ctx, cancel := context.WithTimeout(ctx, cutPatience)
	defer cancel()
	if workspace == "" {
		if p, err := f.peer(ctx, device); err == nil {
			workspace = p.workspace
		}
	}
	if workspace != "" {
		message := wire.Revoked{Time: f.clock.Now().UTC(), Reason: "The device was revoked."}
		if err := f.say(ctx, workspace, device, wire.TypeRevoked, message); err != nil {
			return err
		}
	}
	err := f.bus.Disconnect(ctx, device)
	if workspace != "" {
		if gone := f.gone(ctx, &peer{device: device, workspace: workspace}, ""); gone != nil && !isNotFound(gone) {
			return gone
		}
	}
	return err
}
