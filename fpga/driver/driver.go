// Package driver defines what it takes to drive an FPGA: to load an image into it, to
// ask for its state, and to reach the overlay that it then is.
//
// A driver is a package below this one that implements Driver and passes drivertest.
// None of them decides anything: what may be loaded, and what to do when it fails,
// is package programming's.
package driver

import (
	"context"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/program"
)

// Driver drives one device, or one slot of it. Its methods are called one at a time, and
// they may hang, as devices do; Guard is for callers who must not.
type Driver interface {
	// Kind is the driver's name, "sim" for example.
	Kind() string
	// Load configures the device, and returns when it has taken the image or refused it. The
	// former configuration is gone in either case. A driver whose tools can be
	// stopped stops them when ctx ends.
	Load(ctx context.Context, image []byte) error
	// State returns what the device is at.
	State(ctx context.Context) (State, error)
	// Overlay returns the way to the registers and memories of the overlay that is loaded.
	// Where there is none, what is read from it means nothing.
	Overlay() program.Device
	// Close gives the device back and leaves its configuration.
	Close() error
}

// State says what a device is at.
type State struct {
	Phase Phase `json:"phase"`
	// Detail is what the kernel or the tool calls it, and what it says of an error.
	Detail string `json:"detail,omitempty"`
}

// Phase is a state in words that all drivers share.
type Phase string

// The phases. A device that cannot tell is Unknown.
const (
	Unknown   Phase = "unknown"
	Empty     Phase = "empty"
	Loading   Phase = "loading"
	Failed    Phase = "failed"
	Operating Phase = "operating"
)

// Identity reads what the overlay says of itself.
func Identity(d program.Device) (program.Identity, error) {
	var b [program.IdentitySize]byte
	if err := d.Read(program.AddressMagic, b[:]); err != nil {
		return program.Identity{}, err
	}
	return program.ParseIdentity(b[:])
}

// Await polls the overlay's status until it is idle; it is what Wait of devices that have
// no other way does.
func Await(d program.Device, within time.Duration) error {
	for end := time.Now().Add(within); ; {
		var status [1]byte
		if err := d.Read(program.AddressStatus, status[:]); err != nil {
			return err
		}
		if status[0]&program.StatusBusy == 0 {
			return nil
		}
		if time.Now().After(end) {
			return atelier.Errorf(atelier.Timeout, "the overlay is still busy after %v, its status is %#02x", within, status[0]).
				WithRemedy("Program the overlay anew; when it happens again, the link or the device is faulty.")
		}
	}
}
