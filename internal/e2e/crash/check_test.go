//go:build linux

package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"syscall"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/client"
	"github.com/atelier-edge/atelier/internal/boot"
)

// recover starts again what was struck, and checks that nothing is lost.
func (w *world) recover(ctx context.Context) error {
	if err := w.lose(); err != nil {
		return err
	}
	if err := w.looksWhole(); err != nil {
		return fmt.Errorf("before the start: %w", err)
	}
	if w.side == "agent" {
		if err := w.recoverAgent(ctx); err != nil {
			return err
		}
	} else if err := w.startHub(ctx); err != nil {
		return err
	}
	return w.remembers(ctx)
}

// recoverAgent starts the agent, first without a hub: what was served is served
// again by itself.
func (w *world) recoverAgent(ctx context.Context) error {
	if !w.one.runs {
		return nil // it had not joined for sure
	}
	if w.how == "kill" && w.seed%4 != 0 && w.acked.served > 0 {
		if _, err := w.answers(ctx); err != nil {
			return fmt.Errorf("the agent was killed, and with it what it served: %w", err)
		}
	}
	if w.acked.served > 0 {
		if err := w.hub.Stop(syscall.SIGTERM, patience); err != nil {
			return err
		}
	}
	if err := w.one.agent.Start(); err != nil {
		return err
	}
	if w.acked.served == 0 {
		return nil
	}
	if err := w.serves(ctx, w.acked.served); err != nil {
		return fmt.Errorf("started without a hub: %w", err)
	}
	return w.startHub(ctx)
}

// looksWhole looks at the disk itself: content is what its name says.
func (w *world) looksWhole() error {
	for name, b := range w.disk.Files() {
		dir, base := path.Split(name)
		switch {
		case strings.Contains(dir, "content/blobs/"):
			if got := atelier.DigestOf(b); got.Hex() != base {
				return fmt.Errorf("%s of %d bytes has the digest %s", name, len(b), got)
			}
		case base == "identity.json":
			if !json.Valid(b) {
				return fmt.Errorf("%s is no JSON: %.80q", name, b)
			}
		}
	}
	return nil
}

// remembers checks that all that was acknowledged is there, and that what is
// visible is whole.
func (w *world) remembers(ctx context.Context) error {
	if !w.acked.workspace {
		return w.whole(ctx)
	}
	for _, version := range w.acked.registered {
		model, number, _ := strings.Cut(version, ":")
		v, err := w.client.Version(ctx, workspace, model, number)
		if err != nil {
			return fmt.Errorf("version %s was acknowledged: %w", version, err)
		}
		if got := v.Variants[0].Files[0].Digest; got != w.acked.versions[version] {
			return fmt.Errorf("version %s has become %s", version, got)
		}
	}
	for name, id := range w.acked.device {
		shown, err := w.client.Device(ctx, workspace, name)
		if err != nil || id != "?" && shown.ID != id {
			return fmt.Errorf("device %s had joined as %s: it is %q now (%w)", name, id, shown.ID, err)
		}
	}
	if w.acked.deployed > 0 {
		d, err := w.client.Deployment(ctx, workspace, deployment)
		if err != nil || d.Version < w.acked.deployed {
			return fmt.Errorf("version %d was deployed: it is %d now (%w)", w.acked.deployed, d.Version, err)
		}
	}
	if w.acked.key != "" {
		keys, err := w.client.Keys(ctx, workspace, deployment)
		if err != nil || keys.Primary != w.acked.key {
			return fmt.Errorf("the endpoint's key has changed (%w)", err)
		}
	}
	return errors.Join(w.measured(ctx), w.images(ctx), w.whole(ctx))
}

// measured checks that telemetry which the hub has shown is still there.
func (w *world) measured(ctx context.Context) error {
	if len(w.acked.telemetry) == 0 {
		return nil
	}
	shown, err := w.samples(ctx)
	if err != nil {
		return err
	}
	for name, samples := range w.acked.telemetry {
		for at, value := range samples {
			if shown[name][at] != value {
				return fmt.Errorf("%s had measured %s at %s, the hub shows %q now", name, value, at, shown[name][at])
			}
		}
	}
	return nil
}

// whole checks that every version and runtime that the hub shows has its content.
func (w *world) whole(ctx context.Context) error {
	runtimes, err := client.Collect(w.client.Runtimes(ctx))
	if err != nil {
		return err
	}
	if w.acked.runtime && len(runtimes) != 1 {
		return fmt.Errorf("the runtime was acknowledged, and the hub shows %d", len(runtimes))
	}
	spaces, err := client.Collect(w.client.Workspaces(ctx))
	if err != nil {
		return err
	}
	if len(spaces) == 0 {
		if w.acked.workspace {
			return errors.New("the workspace was acknowledged, and is gone")
		}
		return nil
	}
	for model, err := range w.client.Models(ctx, workspace) {
		if err != nil {
			return err
		}
		for v, err := range w.client.Versions(ctx, workspace, model.Name) {
			if err != nil {
				return err
			}
			for _, f := range v.Variants[0].Files {
				if err := w.download(ctx, model.Name, fmt.Sprint(v.Number), f); err != nil {
					return fmt.Errorf("%s:%d is shown: %w", model.Name, v.Number, err)
				}
			}
		}
	}
	return nil
}

func (w *world) download(ctx context.Context, model, number string, f atelier.File) error {
	r, err := w.client.OpenFile(ctx, workspace, model, number, f.Path)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	var b bytes.Buffer
	if _, err := io.Copy(&b, r); err != nil {
		return err
	}
	if got := atelier.DigestOf(b.Bytes()); got != f.Digest {
		return fmt.Errorf("%s comes with the digest %s, expected was %s", f.Path, got, f.Digest)
	}
	return nil
}

// settled checks the end of the job: all is as it was asked for, on both sides.
func (w *world) settled(ctx context.Context) error {
	if err := w.remembers(ctx); err != nil {
		return err
	}
	err := boot.Eventually(ctx, patience, func() error {
		for _, d := range []*device{w.one, w.two} {
			why, err := w.client.Why(ctx, workspace, d.name)
			if err != nil {
				return err
			}
			if !why.InSync {
				return fmt.Errorf("%s is not as desired: %+v", d.name, why.Findings)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	devices, err := client.Collect(w.client.Devices(ctx, workspace, ""))
	if err != nil {
		return err
	}
	if len(devices) != 2 {
		return fmt.Errorf("two devices have joined, and the hub knows %d", len(devices))
	}
	if log := w.logs(); strings.Contains(log, "panic:") || strings.Contains(log, "fatal error:") {
		return errors.New("a program has panicked")
	}
	return nil
}
