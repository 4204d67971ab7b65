package programming

import (
	"errors"
	"fmt"

	atelier "github.com/atelier-edge/atelier"
)

// Step is a part of programming, in the order in which they come.
type Step string

// The steps.
const (
	Verify   Step = "verify"   // signature, then digest
	Check    Step = "check"    // the image with its checksums; part, identification code and shell; the model
	Drain    Step = "drain"    // requests that still run end
	Intend   Step = "intend"   // the intent is on the disk
	Load     Step = "load"     // the device takes the image
	Settle   Step = "settle"   // its state becomes operating
	Identify Step = "identify" // the overlay says that it is the right one
	Weights  Step = "weights"  // the model is written and read back
	Golden   Step = "golden"   // the golden inputs give what they must
	Commit   Step = "commit"   // it is the last good one now
)

// Place says what a device runs.
type Place string

// The places. Nowhere is a device in quarantine.
const (
	New        Place = "new"
	LastGood   Place = "last-good"
	GoldenOnly Place = "golden"
	Unchanged  Place = "unchanged"
	Nowhere    Place = "quarantined"
)

// Failure is why a package is not on the device, and what is there instead.
type Failure struct {
	Step   Step
	Reason atelier.Reason
	On     Place
	Err    error
}

// Error implements error.
func (f *Failure) Error() string {
	after := map[Place]string{
		Unchanged: "the device is as it was", LastGood: "the device is back on its last good image",
		GoldenOnly: "the device is on its golden image", Nowhere: "the device is in quarantine",
	}
	return fmt.Sprintf("programming failed at %q: %v; %s", f.Step, f.Err, after[f.On])
}

// Unwrap returns what happened.
func (f *Failure) Unwrap() error { return f.Err }

// WhyOf returns the reason of an error of this package.
func WhyOf(err error) atelier.Why {
	var f *Failure
	if errors.As(err, &f) {
		return atelier.BecauseOf(f.Reason, err)
	}
	return atelier.BecauseOf(atelier.ReasonProgrammingFailed, err)
}
