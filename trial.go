package atelier

import (
	"strings"
	"time"
)

// TrialKind says what a version does that runs beside the one that serves.
type TrialKind string

// The kinds of trials.
const (
	Canary TrialKind = "canary" // it answers a share of the requests
	Shadow TrialKind = "shadow" // it gets copies of requests; its answers are compared, and given to nobody
)

// Trial is a version that devices run beside the one that serves, to try it on live
// requests of the same endpoint.
type Trial struct {
	Version   int       `json:"version"` // of the deployment's model
	VersionID string    `json:"version_id"`
	Rollout   string    `json:"rollout"` // the version keeps it when it is promoted
	Since     time.Time `json:"since"`
	Split
}

// Split says what of an endpoint's requests a version gets that runs beside the one
// that serves.
type Split struct {
	Kind TrialKind `json:"kind"`
	// Weight is the share of the requests, in percent, that a canary answers.
	Weight float64 `json:"weight,omitempty"`
	// Sticky says which requests of a canary's endpoint belong together: "key", those
	// with the same key, or "header:NAME", those with the same value of that field. The
	// same version answers them for as long as the weight stays. Where it is "", and
	// for requests without the field, each request is by itself.
	Sticky string `json:"sticky,omitempty"`
	// Sample is the share of the requests of which a shadow gets a copy, over 0 to 1.
	Sample float64 `json:"sample,omitempty"`
	// Tolerance is how far a shadow's answer may be from the one that was given.
	Tolerance Tolerance `json:"tolerance,omitzero"`
}

// What Split.Sticky may be.
const (
	StickyKey    = "key"
	stickyHeader = "header:"
)

// StickyHeader returns the name of the header field whose value decides, "" where
// none does.
func (s *Split) StickyHeader() string {
	name, _ := strings.CutPrefix(s.Sticky, stickyHeader)
	if name == s.Sticky {
		return ""
	}
	return name
}

// Takes reports whether the request with the number u belongs to the canary. Numbers
// are spread evenly over all of uint64; a weight that grows takes only more of them.
func (s *Split) Takes(u uint64) bool {
	const bits = 53 // of which a float64 has each number
	return float64(u>>(64-bits))/(1<<bits)*100 < s.Weight
}

// Samples reports whether a shadow gets a copy of the request with the number u.
func (s *Split) Samples(u uint64) bool {
	const bits = 53
	return float64(u>>(64-bits))/(1<<bits) < s.Sample
}

// maxSticky bounds Split.Sticky, in bytes.
const maxSticky = 100

// Check returns what is wrong with s: an *Error with the code Invalid.
func (s *Split) Check() error {
	switch s.Kind {
	case Canary:
		return s.checkCanary()
	case Shadow:
		return s.checkShadow()
	}
	return Errorf(Invalid, "a version beside the one that serves is a %.20q; %q or %q was expected", s.Kind, Canary, Shadow).WithField("kind")
}

func (s *Split) checkCanary() error {
	if !(s.Weight >= 0 && s.Weight <= 100) {
		return Errorf(Invalid, "the weight of the canary is %v; a share from 0 to 100 percent was expected", s.Weight).WithField("weight")
	}
	if s.Sample != 0 || s.Tolerance != (Tolerance{}) {
		return Errorf(Invalid, "a canary answers requests itself; sample and tolerance are for a shadow").WithField("sample")
	}
	if s.Sticky == "" || s.Sticky == StickyKey || isFieldName(s.StickyHeader()) && len(s.Sticky) <= maxSticky {
		return nil
	}
	return Errorf(Invalid, "requests cannot be told apart by %.120q; %q or %qNAME was expected", s.Sticky, StickyKey, stickyHeader).WithField("sticky").
		WithRemedy("Name a header field, as in header:X-Customer, or say %q for the caller's key.", StickyKey)
}

func (s *Split) checkShadow() error {
	if !(s.Sample > 0 && s.Sample <= 1) {
		return Errorf(Invalid, "the sample of the shadow is %v; a share over 0 and up to 1 was expected", s.Sample).WithField("sample")
	}
	if s.Weight != 0 || s.Sticky != "" {
		return Errorf(Invalid, "a shadow answers nobody; weight and sticky are for a canary").WithField("weight")
	}
	if !s.Tolerance.valid() {
		return Errorf(Invalid, "the tolerance of the shadow is absolute %v, relative %v, integer %d; none may be negative or infinite",
			s.Tolerance.Absolute, s.Tolerance.Relative, s.Tolerance.Integer).WithField("tolerance")
	}
	return nil
}

// isFieldName reports whether s can be the name of a header field (RFC 9110, token).
func isFieldName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return s != ""
}

// TrialModule is a module that runs beside the one of the same deployment in
// DesiredState.Modules.
type TrialModule struct {
	Module
	Split Split `json:"split"`
}

// FeatureTrial is what agents list in Facts.Features that run a version beside the one
// that serves (DesiredState.Trials).
const FeatureTrial = "trial"

// ShadowReport is what a gateway counted of a shadow's comparisons since it started.
type ShadowReport struct {
	Compared  uint64 `json:"compared"`
	Disagreed uint64 `json:"disagreed"`
	// Dropped are copies that were not made or not sent: the queue was full, there was no
	// time beside live requests, or the request or its answer was too large.
	Dropped uint64 `json:"dropped"`
	// Errors are copies that the shadow did not answer.
	Errors uint64 `json:"errors"`
	// Served and Shadow are how long the two versions took for the requests that were
	// compared: counts by LatencyBounds, with one more for what was slower.
	Served        []uint64 `json:"served,omitempty"`
	Shadow        []uint64 `json:"shadow,omitempty"`
	ServedSeconds float64  `json:"served_seconds"`
	ShadowSeconds float64  `json:"shadow_seconds"`
	// Samples are some of the disagreements, the newest last.
	Samples []Disagreement `json:"samples,omitempty"`
}

// Bounds of what is told of disagreements.
const (
	MaxDisagreements  = 5   // of one shadow on one device
	MaxDisagreeDetail = 300 // bytes of Disagreement.Difference and of each excerpt
)

// Disagreement is a request that two versions answered differently.
type Disagreement struct {
	Request    string    `json:"request"` // its id
	Time       time.Time `json:"time"`
	Path       string    `json:"path"`       // below the endpoint
	Difference string    `json:"difference"` // in words: where, what was given, what the shadow gave
	Served     string    `json:"served"`     // the beginning of the answer that was given
	Shadow     string    `json:"shadow"`     // and of the shadow's
}
