package fleet

import (
	"context"
	"errors"
	"time"

	"github.com/atelier-edge/atelier/internal/wire"
)

// cutPatience bounds how long a revocation waits for the broker.
const cutPatience = 5 * time.Second

// Revoked ends all dealings with a device that was revoked or deleted: it is told
// so, its connections end, and nothing that it says counts any more. The caller
// has stored the revocation, which is what counts; that the broker cannot be
// reached changes nothing about it, and is only logged.
func (f *Fleet) Revoked(device string) {
	f.peers.forget(device)
	f.sender.Drop(device)
	ctx, cancel := context.WithTimeout(context.Background(), cutPatience)
	defer cancel()
	if err := f.cut(ctx, device); err != nil {
		f.log.Warn("could not tell a revoked device, or not end its connections; whatever it says is ignored", "device", device, "error", err)
	}
}

func (f *Fleet) cut(ctx context.Context, device string) error {
	workspace := f.workspaceOf(ctx, device)
	var told, gone error
	if workspace != "" {
		told = f.say(ctx, workspace, device, wire.TypeRevoked, wire.Revoked{Time: f.clock.Now().UTC(), Reason: "The device was revoked."})
	}
	ended := f.bus.Disconnect(ctx, device)
	if workspace != "" {
		if gone = f.gone(ctx, &peer{device: device, workspace: workspace}, ""); isNotFound(gone) {
			gone = nil // it was deleted
		}
	}
	return errors.Join(told, ended, gone)
}

// workspaceOf returns the device's workspace, "" where nobody knows it any more.
func (f *Fleet) workspaceOf(ctx context.Context, device string) string {
	f.mu.Lock()
	s := f.sessions[device]
	f.mu.Unlock()
	if s != nil {
		return s.workspace
	}
	if p, err := f.peer(ctx, device); err == nil {
		return p.workspace
	}
	return ""
}
