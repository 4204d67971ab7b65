package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// Bounds of a desired state, far above what a device can run.
const (
	maxModules = 256
	maxFiles   = 4096 // per module
)

// Receive takes the envelope of a desired state whose payload Verify returned. It saves
// the state where it is newer than the one that is held, and returns the answer
// for the hub. changed tells that there is a new state to act on. A state that is held already is
// acknowledged again. A refusal carries SignatureInvalid, UnsupportedFeature,
// Replayed or StateNotDurable as its reason, and what was held stays.
func (s *Store) Receive(raw, payload []byte) (ack wire.DesiredAck, changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	desired, ack, changed := s.consider(payload)
	if !changed {
		return ack, false
	}
	if err := s.write(desiredFile, raw); err != nil {
		ack.Saved, ack.Why = false, atelier.BecauseOf(atelier.ReasonStateNotDurable, err)
		return ack, false
	}
	s.desired, s.payload = desired, bytes.Clone(payload)
	return ack, true
}

// Consider returns the state in payload and what Receive would answer to it now,
// if it can be saved. It changes nothing.
func (s *Store) Consider(payload []byte) (*atelier.DesiredState, wire.DesiredAck) {
	s.mu.Lock()
	defer s.mu.Unlock()
	desired, ack, _ := s.consider(payload)
	return desired, ack
}

// consider decides on a desired state; fresh tells that it is to be saved. The
// caller holds s.mu.
func (s *Store) consider(payload []byte) (desired *atelier.DesiredState, ack wire.DesiredAck, fresh bool) {
	refuse := func(r atelier.Reason, format string, args ...any) (*atelier.DesiredState, wire.DesiredAck, bool) {
		ack.Why = atelier.Because(r, fmt.Sprintf(format, args...))
		return nil, ack, false
	}
	desired, err := decodeDesired(payload)
	if desired != nil {
		ack.Position = desired.Position()
	}
	if err != nil {
		return refuse(atelier.ReasonUnsupportedFeature, "the desired state cannot be used: %v", err)
	}
	if desired.Device != s.opts.Device || desired.Workspace != s.opts.Workspace {
		return refuse(atelier.ReasonSignatureInvalid, "the desired state is for device %s of workspace %s, this is device %s of workspace %s",
			desired.Device, desired.Workspace, s.opts.Device, s.opts.Workspace)
	}
	held := s.position()
	switch {
	case s.desired != nil && desired.Position() == held && bytes.Equal(payload, s.payload):
		ack.Saved, ack.Why = true, saved(held)
		return desired, ack, false
	case s.desired != nil && !desired.Position().After(held):
		return refuse(atelier.ReasonReplayed, "generation %d of epoch %d came, generation %d of epoch %d is held",
			desired.Generation, desired.Epoch, held.Generation, held.Epoch)
	}
	for _, feature := range desired.Requires {
		if !slices.Contains(s.opts.Features, feature) {
			return refuse(atelier.ReasonUnsupportedFeature, "the desired state needs %q, which this agent does not have", feature)
		}
	}
	ack.Saved, ack.Why = true, saved(desired.Position())
	return desired, ack, true
}

// Refusal is the answer to an envelope of a desired state that did not verify.
func Refusal(raw []byte, err error) wire.DesiredAck {
	ack := wire.DesiredAck{Why: trust.WhyOf(err)}
	// Which position it claims to have is no secret and lets the hub see what
	// was refused; nothing else of it is used.
	if _, payload, err := trust.Peek(raw); err == nil {
		if claimed, _ := decodeDesired(payload); claimed != nil {
			ack.Position = claimed.Position()
		}
	}
	return ack
}

func saved(p atelier.Position) atelier.Why {
	return atelier.Because(atelier.ReasonAsDesired, fmt.Sprintf("generation %d of epoch %d is saved", p.Generation, p.Epoch))
}

// decodeDesired reads a desired state and checks all that becomes a path or a
// size on this device. Where the state can be read but not used, it is returned
// with the error.
func decodeDesired(payload []byte) (*atelier.DesiredState, error) {
	var d atelier.DesiredState
	if err := json.Unmarshal(payload, &d); err != nil {
		return nil, atelier.Errorf(atelier.Invalid, "it is not the JSON of a desired state: %w", err)
	}
	if n := len(d.Modules) + len(d.Staged) + len(d.Trials); n > maxModules {
		return &d, atelier.Errorf(atelier.TooLarge, "it has %d modules, at most %d are allowed", n, maxModules)
	}
	seen := map[string]bool{}
	for i := range d.Modules {
		m := &d.Modules[i]
		if err := checkModule(m); err != nil {
			return &d, fmt.Errorf("module %.80q: %w", m.Name, err)
		}
		if seen[m.Deployment] || seen[m.Endpoint.Name] {
			return &d, atelier.Errorf(atelier.Invalid, "deployment %s or endpoint %q is there twice", m.Deployment, m.Endpoint.Name)
		}
		seen[m.Deployment], seen[m.Endpoint.Name] = true, true
	}
	staged := map[string]bool{}
	for i := range d.Staged {
		m := &d.Staged[i]
		if err := checkModule(m); err != nil {
			return &d, fmt.Errorf("staged module %.80q: %w", m.Name, err)
		}
		if staged[m.Deployment] {
			return &d, atelier.Errorf(atelier.Invalid, "deployment %s is staged twice", m.Deployment)
		}
		staged[m.Deployment] = true
	}
	return &d, checkTrials(&d)
}

// checkTrials checks what runs beside other modules.
func checkTrials(d *atelier.DesiredState) error {
	seen := map[string]bool{}
	for i := range d.Trials {
		m := &d.Trials[i]
		if err := checkModule(&m.Module); err != nil {
			return fmt.Errorf("%s for %.80q: %w", m.Split.Kind, m.Name, err)
		}
		if err := m.Split.Check(); err != nil {
			return fmt.Errorf("%.80q: %w", m.Name, err)
		}
		beside := slices.IndexFunc(d.Modules, func(other atelier.Module) bool { return other.Deployment == m.Deployment })
		if beside < 0 || d.Modules[beside].Rollout == m.Rollout || seen[m.Deployment] {
			return atelier.Errorf(atelier.Invalid, "the %s of deployment %s does not run beside one other module", m.Split.Kind, m.Deployment)
		}
		seen[m.Deployment] = true
	}
	return nil
}

// checkModule checks what a module says about paths, names and sizes.
func checkModule(m *atelier.Module) error {
	if !atelier.IsID(m.Deployment) || !atelier.IsID(m.Rollout) {
		return atelier.Errorf(atelier.Invalid, "deployment %.80q or rollout %.80q is not an id", m.Deployment, m.Rollout)
	}
	if err := atelier.CheckName("endpoint", m.Endpoint.Name); err != nil {
		return err
	}
	if err := checkMessages(m); err != nil {
		return err
	}
	if m.Limits.Memory < 0 || m.Limits.CPUs < 0 {
		return atelier.Errorf(atelier.Invalid, "a limit is negative")
	}
	if m.Image != nil {
		return checkImage(m)
	}
	if err := checkFiles(m.Model.Variant.Files, m.Model.Variant.Entry); err != nil {
		return fmt.Errorf("model: %w", err)
	}
	if m.Runtime != nil {
		if err := checkFiles(m.Runtime.Files, m.Runtime.Entry); err != nil {
			return fmt.Errorf("runtime: %w", err)
		}
	}
	return nil
}

// checkMessages checks what a module says of routes and its twin.
func checkMessages(m *atelier.Module) error {
	if len(m.Routes) > atelier.MaxMessageRoutes {
		return atelier.Errorf(atelier.TooLarge, "it has %d routes, at most %d are allowed", len(m.Routes), atelier.MaxMessageRoutes)
	}
	for _, r := range m.Routes {
		if _, err := r.Normal(); err != nil {
			return err
		}
	}
	if m.Twin == nil {
		return nil
	}
	_, err := atelier.MergePatch(nil, m.Twin.Properties)
	return err
}

// imageDir is where the files of an image lie among a module's.
const imageDir = "image/"

// checkImage checks a module that runs an image, and has no model.
func checkImage(m *atelier.Module) error {
	if len(m.Model.Variant.Files) > 0 || m.Runtime != nil {
		return atelier.Errorf(atelier.Invalid, "it runs an image, and brings a model besides")
	}
	files := m.Image.Files()
	if err := checkFiles(files, m.Image.Manifest.Path); err != nil {
		return fmt.Errorf("image: %w", err)
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Path, imageDir) {
			return atelier.Errorf(atelier.Invalid, "image: the file %.120q does not lie below %s", f.Path, imageDir)
		}
	}
	return m.Image.Container.Check()
}

func checkFiles(files []atelier.File, entry string) error {
	if len(files) == 0 || len(files) > maxFiles {
		return atelier.Errorf(atelier.Invalid, "it has %d files, expected 1 to %d", len(files), maxFiles)
	}
	found := false
	paths := map[string]bool{}
	for _, f := range files {
		if err := atelier.CheckFilePath(f.Path); err != nil {
			return err
		}
		if _, err := atelier.ParseDigest(string(f.Digest)); err != nil {
			return err
		}
		if f.Size < 0 || paths[f.Path] {
			return atelier.Errorf(atelier.Invalid, "file %q is there twice or has a negative size", f.Path)
		}
		paths[f.Path] = true
		found = found || f.Path == entry
	}
	if !found {
		return atelier.Errorf(atelier.Invalid, "its entry %.120q is none of its files", entry)
	}
	return nil
}
