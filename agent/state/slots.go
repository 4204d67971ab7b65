package state

import (
	"bytes"
	"fmt"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

// Slots say which rollout of each module holds which place on the device, and
// which route table came last. The runner is their only writer. That is all
// that must outlive the agent: every step of a module's life is idempotent, so
// that an agent that comes back does all of them again and finds most done.
type Slots struct {
	// RouteTable is the last table that was made for the gateway; its sequence
	// never goes back.
	RouteTable atelier.RouteTable `json:"route_table"`
	Modules    map[string]*Record `json:"modules"` // by deployment
}

// Record is one deployment on the device.
type Record struct {
	// Current is the rollout that takes the traffic; nil until the first was ready.
	Current *Slot `json:"current,omitempty"`
	// Candidate is the rollout that is coming up; nil when there is none.
	Candidate *Slot `json:"candidate,omitempty"`
	// Previous is the last that was current with another version of the model; its
	// content stays so that going back is quick.
	Previous *Slot `json:"previous,omitempty"`
	// Trial is the rollout that runs beside Current, nil where there is none, and Split
	// what of the requests it gets.
	Trial *Slot         `json:"trial,omitempty"`
	Split atelier.Split `json:"split,omitzero"`
	// Leaving are rollouts that get no new requests and are to be stopped and
	// removed when their last one is answered.
	Leaving []*Slot `json:"leaving,omitempty"`
}

// Slot is one rollout of a module, with everything that it takes to run it
// again without the hub.
type Slot struct {
	Module atelier.Module `json:"module"`
}

// Slots returns what was saved last. The caller gets a copy of its own.
func (s *Store) Slots() Slots {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.slots.clone()
}

// SaveSlots saves slots. On an error what was saved before still holds.
func (s *Store) SaveSlots(slots Slots) error {
	b, err := durable.Encode(slotsFormat, slots)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if now, err := durable.Encode(slotsFormat, s.slots); err == nil && bytes.Equal(now, b) {
		return nil
	}
	if err := s.write(slotsFile, b); err != nil {
		return err
	}
	s.slots = slots.clone()
	return nil
}

func (s *Store) openSlots() error {
	b, err := s.read(slotsFile)
	if err != nil || b == nil {
		return err
	}
	slots, err := decodeSlots(b)
	if err != nil {
		return fmt.Errorf("%s: %w", s.path(slotsFile), err)
	}
	s.slots = slots
	return nil
}

// decodeSlots reads what SaveSlots wrote. The file is the agent's own, and is
// checked all the same: its names become paths.
func decodeSlots(b []byte) (Slots, error) {
	var slots Slots
	if err := durable.Decode(b, slotsFile, slotsFormat, &slots); err != nil {
		return Slots{}, err
	}
	if slots.Modules == nil {
		slots.Modules = map[string]*Record{}
	}
	for deployment, r := range slots.Modules {
		if r == nil {
			return Slots{}, atelier.Errorf(atelier.Corrupt, "deployment %.80q has no record", deployment)
		}
		if r.Trial != nil {
			if err := r.Split.Check(); err != nil {
				return Slots{}, fmt.Errorf("deployment %s: %w", deployment, err)
			}
		}
		for _, slot := range r.All() {
			if slot == nil || slot.Module.Deployment != deployment {
				return Slots{}, atelier.Errorf(atelier.Corrupt, "deployment %.80q has a slot that is not its own", deployment)
			}
			if err := checkModule(&slot.Module); err != nil {
				return Slots{}, fmt.Errorf("deployment %s: %w", deployment, err)
			}
		}
	}
	return slots, nil
}

// All returns every slot of r.
func (r *Record) All() []*Slot {
	var all []*Slot
	for _, s := range []*Slot{r.Current, r.Candidate, r.Trial, r.Previous} {
		if s != nil {
			all = append(all, s)
		}
	}
	return append(all, r.Leaving...)
}

// clone copies the records; slots themselves are never changed in place.
func (s Slots) clone() Slots {
	c := Slots{RouteTable: s.RouteTable, Modules: make(map[string]*Record, len(s.Modules))}
	for k, r := range s.Modules {
		copied := *r
		copied.Leaving = append([]*Slot(nil), r.Leaving...)
		c.Modules[k] = &copied
	}
	return c
}
