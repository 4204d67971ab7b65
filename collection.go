package atelier

import (
	"slices"
	"strings"
)

// Collection says which requests of a deployment are recorded, inputs and outputs, and
// what that may cost a device. Changing it does not restart the module.
type Collection struct {
	// Share is the part of the requests that is recorded, 0 to 1, chosen at random; 0 is none.
	Share float64 `json:"share"`
	// Mask names values that are never recorded: inputs.NAME, outputs.NAME, inputs.* and
	// outputs.*; of a scoring script's JSON also a field within, inputs.NAME.FIELD.
	Mask []string `json:"mask,omitempty"`
	// Disk is how many bytes may wait on a device for the hub; the oldest go first.
	Disk int64 `json:"disk_bytes,omitempty"`
	// Rate is how many bytes a second a device sends at most.
	Rate int64 `json:"rate_bytes,omitempty"`
}

// What a Collection has where it says nothing else, and what it has at least.
const (
	DefaultCollectionDisk = 64 << 20
	DefaultCollectionRate = 256 << 10
	MinCollectionDisk     = 1 << 20
	MinCollectionRate     = 1 << 10
)

// The first parts of masks.
const (
	MaskInputs  = "inputs"
	MaskOutputs = "outputs"
	maskAll     = "*"
)

const (
	maxMasks = 64
	maxMask  = 256 // bytes
)

// FeatureCollect is what agents list in Facts.Features that act on Module.Collect; others
// are not sent it, and collect nothing.
const FeatureCollect = "collect"

// On reports whether anything is recorded.
func (c *Collection) On() bool { return c != nil && c.Share > 0 }

// Complete returns c with its defaults where it says nothing.
func (c Collection) Complete() Collection {
	if c.Disk == 0 {
		c.Disk = DefaultCollectionDisk
	}
	if c.Rate == 0 {
		c.Rate = DefaultCollectionRate
	}
	return c
}

// Check returns what is wrong with c, nil where nothing is.
func (c *Collection) Check() error {
	bad := func(field, format string, args ...any) error {
		return Errorf(Invalid, format, args...).WithField("collect." + field)
	}
	switch {
	case !(c.Share >= 0 && c.Share <= 1): // NaN is neither
		return bad("share", "the share of requests to collect is %v, a number from 0 to 1 was expected", c.Share)
	case c.Disk < MinCollectionDisk:
		return bad("disk_bytes", "collected data may take %d bytes on a device, at least %d were expected", c.Disk, MinCollectionDisk)
	case c.Rate < MinCollectionRate:
		return bad("rate_bytes", "collected data may be sent at %d bytes a second, at least %d were expected", c.Rate, MinCollectionRate)
	case len(c.Mask) > maxMasks:
		return bad("mask", "%d values are masked, at most %d are taken", len(c.Mask), maxMasks)
	}
	for _, m := range c.Mask {
		side, name, _ := strings.Cut(m, ".")
		if side != MaskInputs && side != MaskOutputs || name == "" || len(m) > maxMask {
			return bad("mask", "%.80q masks nothing; inputs.NAME, outputs.NAME, inputs.* or outputs.* was expected", m)
		}
	}
	return nil
}

// Masks reports whether the whole value of that name is masked; side is MaskInputs or
// MaskOutputs.
func (c *Collection) Masks(side, name string) bool {
	return slices.ContainsFunc(c.Mask, func(m string) bool {
		of, rest, _ := strings.Cut(m, ".")
		return of == side && (rest == maskAll || rest == name)
	})
}

// MasksWithin returns the fields within the value of that name that are masked, each as
// the names that lead to it.
func (c *Collection) MasksWithin(side, name string) [][]string {
	var paths [][]string
	for _, m := range c.Mask {
		if path, ok := strings.CutPrefix(m, side+"."+name+"."); ok {
			paths = append(paths, strings.Split(path, "."))
		}
	}
	return paths
}

// MasksAny reports whether anything of a side is masked.
func (c *Collection) MasksAny(side string) bool {
	return slices.ContainsFunc(c.Mask, func(m string) bool { return strings.HasPrefix(m, side+".") })
}

// CheckSignature returns an error where c masks a value that a model of that signature
// does not have: whoever misspells a mask must not find the value in the data.
func (c *Collection) CheckSignature(s *Signature) error {
	for _, m := range c.Mask {
		side, name, _ := strings.Cut(m, ".")
		specs := s.Inputs
		if side == MaskOutputs {
			specs = s.Outputs
		}
		var names []string
		for _, t := range specs {
			names = append(names, side+"."+t.Name)
		}
		if name != maskAll && !slices.Contains(names, m) {
			return Errorf(Invalid, "%.80q is to be masked, the model's %s are %s", m, side, strings.Join(names, ", ")).
				WithField("collect.mask").WithRemedy("Name one of them, or %s.* for all.", side)
		}
	}
	return nil
}
