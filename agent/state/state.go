// Package state keeps what an agent must not lose: the trust that it pinned, the
// desired state exactly as it was received, and which rollout of each module
// holds which slot.
//
// A desired state is verified, then saved, and only then given to whoever acts on
// it; an agent that restarts without its hub acts on what is here. What was verified once and
// saved is not verified again, since the key that signed it may have been replaced.
// Everything is written through internal/durable: the old content or the new,
// never a part. When the disk is full, a ballast file makes room; when even that
// does not help, the store says so and keeps the old.
//
// The package knows no network and starts nothing.
package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/internal/wire"
)

// The files of a state directory.
const (
	desiredFile = "desired.json" // the envelope as it came
	trustFile   = "trust.json"
	slotsFile   = "slots.json"
	ballastFile = "ballast"
)

// The forms in which they are; desired.json has its own in the payload type.
const (
	trustFormat   = 1
	slotsFormat   = 1
	revokedFormat = 1
)

// Options say where a store lies and whose it is.
type Options struct {
	FS  durable.FS
	Dir string
	// Device and Workspace are ids. What was saved for another device or
	// workspace is left aside: the device was joined anew.
	Device, Workspace string
	// Root and Delegation are what was pinned when the device joined; they count
	// until newer ones have been applied.
	Root, Delegation []byte
	// Features are what the agent understands of DesiredState.Requires.
	Features []string
	// Ballast is the size of the ballast file in bytes; 0 is none.
	Ballast int64
	Now     func() time.Time // time.Now where nil
}

// Store is an agent's state. Its methods are safe for concurrent use.
type Store struct {
	opts Options

	mu      sync.Mutex
	pinned  *trust.Pinned
	desired *atelier.DesiredState // nil while there is none
	payload []byte                // that desired was read from
	slots   Slots
	durable atelier.Condition
}

// Open opens the store in opts.Dir, and makes it when it is missing.
func Open(opts Options) (*Store, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if err := durable.MkdirAll(opts.FS, opts.Dir, 0o700); err != nil {
		return nil, err
	}
	s := &Store{opts: opts, slots: Slots{Modules: map[string]*Record{}}}
	s.noteDurable(nil)
	if err := s.openTrust(); err != nil {
		return nil, err
	}
	if err := s.openDesired(); err != nil {
		return nil, err
	}
	if err := s.openSlots(); err != nil {
		return nil, err
	}
	s.fillBallast()
	return s, nil
}

// savedTrust is the form of trustFile. The device stands with it, since a
// device that joins anew pins anew.
type savedTrust struct {
	Device string          `json:"device"`
	Pinned json.RawMessage `json:"pinned"`
}

func (s *Store) openTrust() error {
	if b, err := s.read(trustFile); err != nil {
		return err
	} else if b != nil {
		var saved savedTrust
		if err := durable.Decode(b, s.path(trustFile), trustFormat, &saved); err != nil {
			return err
		}
		if saved.Device == s.opts.Device {
			pinned, err := trust.ParsePinned(saved.Pinned)
			if err != nil {
				return fmt.Errorf("%s: %w", s.path(trustFile), err)
			}
			s.pinned = pinned
			return nil
		}
	}
	pinned, err := trust.Pin(s.opts.Workspace, s.opts.Root)
	if err != nil {
		return fmt.Errorf("the root that was pinned at joining: %w", err)
	}
	if len(s.opts.Delegation) > 0 {
		if _, err := pinned.Apply(s.opts.Delegation); err != nil {
			return fmt.Errorf("the delegation that came at joining: %w", err)
		}
	}
	s.pinned = pinned
	return nil
}

func (s *Store) openDesired() error {
	raw, err := s.read(desiredFile)
	if err != nil || raw == nil {
		return err
	}
	payloadType, payload, err := trust.Peek(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", s.path(desiredFile), err)
	}
	if payloadType != wire.TypeDesired {
		return atelier.Errorf(atelier.Unsupported, "%s holds %s, this program reads %s", s.path(desiredFile), payloadType, wire.TypeDesired).
			WithRemedy("A newer agent wrote it: run that one, or remove the file; the hub sends the desired state again.")
	}
	desired, err := decodeDesired(payload)
	if err != nil {
		return fmt.Errorf("%s: %w", s.path(desiredFile), err)
	}
	if desired.Device == s.opts.Device && desired.Workspace == s.opts.Workspace {
		s.desired, s.payload = desired, payload
	}
	return nil
}

// Desired returns the newest desired state that was saved, nil while there is
// none. The caller must not change it.
func (s *Store) Desired() *atelier.DesiredState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.desired
}

// Position returns where the saved desired state stands; zero while there is none.
func (s *Store) Position() atelier.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.position()
}

func (s *Store) position() atelier.Position {
	if s.desired == nil {
		return atelier.Position{}
	}
	return s.desired.Position()
}

// Verify opens an envelope from the hub: one that a key of the workspace signed.
// The error is a *trust.Error.
func (s *Store) Verify(raw []byte) (payloadType string, payload []byte, err error) {
	s.mu.Lock()
	keys := s.pinned.StateKeys(s.opts.Workspace)
	s.mu.Unlock()
	return trust.Open(raw, keys)
}

// TrustVersions returns which root and delegation are held, for wire.Hello.
func (s *Store) TrustVersions() (root, delegation int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pinned.Versions()
}

// ApplyTrust takes newer root metadata and delegations, in order, and saves them
// before they count. What is older than what is held is passed over. Where an
// envelope is refused, those before it still count.
func (s *Store) ApplyTrust(envelopes []wire.Raw) (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := s.pinned.MarshalJSON()
	if err != nil {
		return false, err
	}
	next, err := trust.ParsePinned(now)
	if err != nil {
		return false, err
	}
	var refused error
	for _, e := range envelopes {
		did, err := next.Apply(e)
		var te *trust.Error
		if errors.As(err, &te) && te.Reason == atelier.ReasonReplayed {
			continue
		}
		if err != nil {
			refused = err
			break
		}
		changed = changed || did
	}
	if !changed {
		return false, refused
	}
	pinned, err := next.MarshalJSON()
	if err != nil {
		return false, err
	}
	b, err := durable.Encode(trustFormat, savedTrust{s.opts.Device, pinned})
	if err != nil {
		return false, err
	}
	if err := s.write(trustFile, b); err != nil {
		return false, err
	}
	s.pinned = next
	return true, refused
}

func (s *Store) path(name string) string { return filepath.Join(s.opts.Dir, name) }

// read returns a file's content, nil where there is none.
func (s *Store) read(name string) ([]byte, error) {
	b, err := durable.ReadFile(s.opts.FS, s.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// write saves a file. When the disk is full it gives the ballast up and tries
// once more. The caller holds s.mu.
func (s *Store) write(name string, b []byte) error {
	err := durable.WriteFile(s.opts.FS, s.path(name), b, 0o600)
	if atelier.CodeOf(err) == atelier.NoSpace && durable.Remove(s.opts.FS, s.path(ballastFile)) == nil {
		err = durable.WriteFile(s.opts.FS, s.path(name), b, 0o600)
	}
	s.noteDurable(err)
	return err
}

// noteDurable keeps the condition that says whether state can be saved.
func (s *Store) noteDurable(err error) {
	next := atelier.Holds(atelier.ConditionStateDurable, atelier.Because(atelier.ReasonAsDesired, "state is saved"))
	if err != nil {
		next = atelier.Fails(atelier.ConditionStateDurable, atelier.BecauseOf(atelier.ReasonStateNotDurable, err))
	}
	s.durable = next.Following(s.durable, s.opts.Now())
}

// Durable says whether the last attempt to save something worked.
func (s *Store) Durable() atelier.Condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable
}
