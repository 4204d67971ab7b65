package fleet

import (
	"context"
	"slices"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/content/transfer"
	"github.com/atelier-edge/atelier/internal/wire"
)

// framePatience is how long a frame may wait for a busy connection to the broker.
const framePatience = 10 * time.Second

// contentCache is how many bytes of content are held in memory for devices that pull
// the same.
const contentCache = 64 << 20

// newSender returns what gives content to devices.
func (f *Fleet) newSender() *transfer.Sender {
	o := transfer.SenderOptions{
		Open:     f.openFor,
		Send:     f.sendFrame,
		Meter:    f.meter,
		Cache:    contentCache,
		MaxFrame: wire.MaxPacket,
		Log:      f.log,
	}
	if f.differences != nil {
		o.Difference = f.difference
	}
	return transfer.NewSender(o)
}

// meter counts bytes that are sent to devices.
func (f *Fleet) meter(_ string, _ atelier.Digest, way string, bytes int) {
	if way == transfer.WayDifference {
		f.sentDifferences.Add(uint64(bytes))
	} else {
		f.sentWhole.Add(uint64(bytes))
	}
}

// Sent returns how many bytes of content were sent to devices since the hub started,
// as they are and as differences.
func (f *Fleet) Sent() (whole, differences uint64) {
	return f.sentWhole.Load(), f.sentDifferences.Load()
}

// openFor opens content for a device: only what its desired state reaches.
func (f *Fleet) openFor(ctx context.Context, device string, d atelier.Digest) (transfer.Blob, error) {
	p, err := f.peer(ctx, device)
	if err != nil || p.revoked {
		return nil, atelier.Errorf(atelier.Forbidden, "the device is not known")
	}
	if err := f.access.Authorize(p.as(ctx), access.ContentPull, p.object()); err != nil {
		return nil, err
	}
	var desired catalog.DesiredState
	err = f.store.View(ctx, func(tx store.Tx) (err error) {
		desired, err = catalog.DesiredStates.Get(tx, p.workspace, device)
		return err
	})
	if err != nil && !isNotFound(err) {
		return nil, err
	}
	if !reaches(desired.Modules, d) {
		// The same answer for what is not there and for what is not the device's.
		return nil, atelier.Errorf(atelier.Forbidden, "the device's desired state does not need %s", d)
	}
	blob, err := f.content.Open(d)
	if err != nil {
		return nil, err
	}
	return blob, nil
}

func reaches(modules []atelier.Module, d atelier.Digest) bool {
	return slices.ContainsFunc(modules, func(m atelier.Module) bool { return m.Has(d) })
}

// sendFrame publishes a frame of content to a device.
func (f *Fleet) sendFrame(device string, frame []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), framePatience)
	defer cancel()
	return f.bus.Publish(ctx, wire.DownTopic(device, wire.Content), frame)
}

// frame takes a frame of content from a device. The kinds of frames tell which
// of both halves of the protocol it is for; each drops the other's.
func (f *Fleet) frame(ctx context.Context, p *peer, frame []byte) {
	f.heard(p.device)
	f.sender.Handle(p.device, frame)
	if r := f.uploads.of(p.device); r != nil {
		if err := f.access.Authorize(p.as(ctx), access.ContentPush, p.object()); err != nil {
			f.ignore(p.device, "the upload is not authorised", "error", err)
			return
		}
		r.handle(frame)
	}
}

// uploads knows which devices the hub is fetching from right now.
type uploads struct {
	mu     sync.Mutex
	active map[string][]*transfer.Receiver
}

// receivers are the hub's receivers from one device.
type receivers []*transfer.Receiver

func (rs receivers) handle(frame []byte) {
	for _, r := range rs {
		r.Handle(frame)
	}
}

func (u *uploads) of(device string) receivers {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.active[device])
}

// reconnected tells that the device's connection is a new one.
func (u *uploads) reconnected(device string) {
	for _, r := range u.of(device) {
		r.Reconnected()
	}
}

// fetch fetches a file from a device into s.
func (f *Fleet) fetch(ctx context.Context, device string, s *content.Store, file atelier.File) error {
	r := transfer.NewReceiver(s, func(frame []byte) error { return f.sendFrame(device, frame) },
		transfer.ReceiverOptions{MaxFrame: wire.MaxPacket})
	u := &f.uploads
	u.mu.Lock()
	if u.active == nil {
		u.active = map[string][]*transfer.Receiver{}
	}
	u.active[device] = append(u.active[device], r)
	u.mu.Unlock()
	defer func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		rest := slices.DeleteFunc(slices.Clone(u.active[device]), func(other *transfer.Receiver) bool { return other == r })
		if u.active[device] = rest; len(rest) == 0 {
			delete(u.active, device)
		}
	}()
	_, err := r.Fetch(ctx, file, nil, nil)
	return err
}
