package fleet

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Bounds of a log that is fetched from a device.
const (
	DefaultLog = 1 << 20  // bytes, where the caller asks for none
	MaxLog     = 64 << 20 // bytes

	logPatience  = 2 * time.Minute
	collectRetry = 2 * time.Second
	maxPending   = 64 // collections at once
)

// collections are the requests that wait for a device's answer.
type collections struct {
	mu      sync.Mutex
	pending map[string]collection // by the request's id
}

type collection struct {
	device string
	answer chan wire.Collected
}

// CollectLog fetches the end of a log from a device, at most limit bytes
// (DefaultLog where it is 0): that of the module of a deployment, or the agent's
// own where deployment is empty. device and deployment are names or ids. The
// caller closes the log. Unavailable where the device cannot be reached.
func (f *Fleet) CollectLog(ctx context.Context, workspace, device, deployment string, limit int64) (io.ReadCloser, error) {
	if limit == 0 {
		limit = DefaultLog
	}
	if limit < 0 || limit > MaxLog {
		return nil, atelier.Errorf(atelier.Invalid, "%d bytes of log were asked for, 1 to %d can be fetched", limit, MaxLog).WithField("max_bytes")
	}
	request := wire.Collect{ID: atelier.NewID(), What: wire.CollectAgentLog, MaxBytes: limit}
	var d atelier.Device
	err := f.store.View(ctx, func(tx store.Tx) (err error) {
		if d, err = catalog.Devices.Resolve(tx, workspace, "", device); err != nil || deployment == "" {
			return err
		}
		found, err := catalog.Deployments.Resolve(tx, workspace, "", deployment)
		request.What, request.Deployment = wire.CollectModuleLog, found.ID
		return err
	})
	if err != nil {
		return nil, err
	}
	if d.Revoked != nil || !d.Connected {
		why := connectionWhy(&d, f.clock.Now())
		return nil, atelier.Errorf(atelier.Unavailable, "the log of device %s cannot be fetched: %s", d.Name, why.Message()).WithRemedy("%s", why.Remedy())
	}
	ctx, cancel := context.WithTimeoutCause(ctx, logPatience,
		atelier.Errorf(atelier.Timeout, "device %s did not deliver its log within %v", d.Name, logPatience).
			WithRemedy("See with 'atelier why %s' whether the device is connected, and try again.", d.Name))
	defer cancel()
	got, err := f.collect(ctx, workspace, d.ID, request)
	if err != nil {
		return nil, err
	}
	return f.upload(ctx, d, limit, got)
}

// collect asks the device again and again until it answers.
func (f *Fleet) collect(ctx context.Context, workspace, device string, request wire.Collect) (wire.Collected, error) {
	c := collection{device, make(chan wire.Collected, 1)}
	f.logs.mu.Lock()
	if len(f.logs.pending) >= maxPending {
		f.logs.mu.Unlock()
		return wire.Collected{}, atelier.Errorf(atelier.Exhausted, "%d logs are being fetched already", maxPending).WithRemedy("Try again in a moment.")
	}
	f.logs.pending[request.ID] = c
	f.logs.mu.Unlock()
	defer func() {
		f.logs.mu.Lock()
		defer f.logs.mu.Unlock()
		delete(f.logs.pending, request.ID)
	}()
	for wait := collectRetry; ; wait *= 2 {
		if err := f.say(ctx, workspace, device, wire.TypeCollect, request); err != nil {
			return wire.Collected{}, err
		}
		select {
		case got := <-c.answer:
			return got, nil
		case <-ctx.Done():
			return wire.Collected{}, context.Cause(ctx)
		case <-f.clock.After(wait):
		}
	}
}

// collected takes a device's answer.
func (f *Fleet) collected(p *peer, c wire.Collected) error {
	f.heard(p.device)
	f.logs.mu.Lock()
	defer f.logs.mu.Unlock()
	waiting, ok := f.logs.pending[c.ID]
	if !ok || waiting.device != p.device {
		f.ignore(p.device, "it answers what was not asked, or not any more", "request", c.ID)
		return nil
	}
	select {
	case waiting.answer <- c:
	default: // the same answer twice
	}
	return nil
}

// upload fetches what a device offers. It goes into a store of its own: in the
// hub's a device that knows a digest could pass off others' content as its log.
func (f *Fleet) upload(ctx context.Context, d atelier.Device, limit int64, got wire.Collected) (_ io.ReadCloser, err error) {
	if !got.OK {
		return nil, atelier.Errorf(atelier.NotFound, "device %s has no such log: %s", d.Name, got.Why.Message()).WithRemedy("%s", got.Why.Remedy())
	}
	if _, err := atelier.ParseDigest(string(got.Digest)); err != nil || got.Size < 0 || got.Size > limit {
		return nil, atelier.Errorf(atelier.Invalid, "device %s offers a log of %d bytes with the digest %.80q, at most %d bytes were asked for", d.Name, got.Size, got.Digest, limit)
	}
	if got.Size == 0 {
		return io.NopCloser(strings.NewReader("")), nil
	}
	dir, err := os.MkdirTemp(f.uploadDir, "collect-")
	if err != nil {
		return nil, durable.Explain(err, "make a directory for an upload")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	s, err := content.Open(durable.OS{}, dir)
	if err != nil {
		return nil, err
	}
	if err := f.fetch(ctx, d.ID, s, atelier.File{Path: "log", Digest: got.Digest, Size: got.Size}); err != nil {
		return nil, err
	}
	blob, err := s.Open(got.Digest)
	if err != nil {
		return nil, err
	}
	return &uploaded{io.NewSectionReader(blob, 0, blob.Size()), blob, dir}, nil
}

// uploaded is a file that is gone when it is closed.
type uploaded struct {
	io.Reader
	blob *content.Blob
	dir  string
}

func (u *uploaded) Close() error { return errors.Join(u.blob.Close(), os.RemoveAll(u.dir)) }

// emptyUploads removes what an earlier run of the hub left behind.
func (f *Fleet) emptyUploads() error {
	err := os.RemoveAll(f.uploadDir)
	if err == nil {
		err = os.MkdirAll(f.uploadDir, 0o700)
	}
	return durable.Explain(err, "empty "+f.uploadDir)
}
