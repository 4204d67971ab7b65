package atelier

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// GoldenPath is where the golden inputs of a version lie among its files. A version
// that has them proves itself on each device before it takes traffic.
const GoldenPath = "golden.json"

// The bounds of golden inputs.
const (
	MaxGoldenSize  = 64 << 20 // of the file, in bytes
	MaxGoldenCases = 1000

	goldenFormat = 1
)

// Golden are inputs of a model with the outputs that it must give for them, as the
// file at GoldenPath has them.
type Golden struct {
	Format int `json:"format"` // 1
	// Tolerance is that of all cases that have none of their own.
	Tolerance Tolerance `json:"tolerance"`
	// LatencyMS bounds the median time of an inference of these inputs on the
	// device, in milliseconds; 0 is no bound.
	LatencyMS float64 `json:"latency_ms,omitempty"`
	// Route says what the cases are: GoldenInfer or GoldenScore.
	Route string       `json:"route,omitempty"`
	Cases []GoldenCase `json:"cases"`
}

// What golden inputs are sent to.
const (
	// GoldenInfer is an inference of Open Inference Protocol v2; for models.
	GoldenInfer = ""
	// GoldenScore is POST /score, with any JSON; for scoring scripts.
	GoldenScore = "score"
)

// GoldenCase is one input with what must come out.
type GoldenCase struct {
	Name string `json:"name"`
	// Request is the body of an inference of Open Inference Protocol v2, in its JSON form,
	// or that of a POST /score.
	Request json.RawMessage `json:"request"`
	// Response has what the answer to it must have: {"outputs": [...]}. Outputs of the
	// model that are not among them may be anything. For GoldenScore it is the whole answer.
	Response  json.RawMessage `json:"response"`
	Tolerance *Tolerance      `json:"tolerance,omitempty"`
}

// Tolerance is how far an output may be from what is expected. A number with a
// fraction may be off by Absolute + Relative · |expected|, a whole number by Integer;
// anything else must be equal.
type Tolerance struct {
	Absolute float64 `json:"absolute"`
	Relative float64 `json:"relative"`
	Integer  int64   `json:"integer,omitempty"`
}

// DefaultTolerance is for models that give the same up to what processors and
// runtimes differ in.
var DefaultTolerance = Tolerance{Absolute: 1e-4, Relative: 1e-3}

// HasGolden reports whether the variant comes with golden inputs.
func (v *Variant) HasGolden() bool {
	return slices.ContainsFunc(v.Files, func(f File) bool { return f.Path == GoldenPath })
}

// CheckFor returns an error with the code Invalid where g is not for variants of the kind:
// scoring scripts are sent what POST /score takes, models inferences.
func (g *Golden) CheckFor(kind string) error {
	switch script := kind == VariantPython; {
	case script && g.Route != GoldenScore:
		return Errorf(Invalid, "%s has inferences of Open Inference Protocol, and a scoring script takes requests of POST /score", GoldenPath).WithField("route").
			WithRemedy("Record it with 'atelier model golden MODEL --route score'.")
	case !script && g.Route == GoldenScore:
		return Errorf(Invalid, "%s has requests of POST /score, which are for scoring scripts, and this version is of the kind %s", GoldenPath, kind).WithField("route").
			WithRemedy("Record it with 'atelier model golden MODEL', without --route.")
	}
	return nil
}

// Latency returns the bound of the median time of an inference, 0 for none.
func (g *Golden) Latency() time.Duration {
	return time.Duration(g.LatencyMS * float64(time.Millisecond))
}

// NewGolden returns golden inputs that are complete but for their cases.
func NewGolden(t Tolerance, latency time.Duration) *Golden {
	return &Golden{Format: goldenFormat, Tolerance: t, LatencyMS: float64(latency) / float64(time.Millisecond)}
}

// Of returns the tolerance of a case.
func (g *Golden) Of(c *GoldenCase) Tolerance {
	if c.Tolerance != nil {
		return *c.Tolerance
	}
	return g.Tolerance
}

// ParseGolden reads golden inputs. Whether they fit a model is not looked at. What is
// wrong with them gives an *Error with the code Invalid, or TooLarge.
func ParseGolden(b []byte) (*Golden, error) {
	if len(b) > MaxGoldenSize {
		return nil, Errorf(TooLarge, "%s has %s, at most %s were expected", GoldenPath, FormatBytes(int64(len(b))), FormatBytes(MaxGoldenSize))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	g := &Golden{}
	if err := d.Decode(g); err != nil {
		return nil, Errorf(Invalid, "%s cannot be read: %w", GoldenPath, err).
			WithRemedy("Record it anew with 'atelier model golden'.")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, Errorf(Invalid, "%s goes on after its JSON ends, at byte %d", GoldenPath, d.InputOffset())
	}
	return g, g.check()
}

func (g *Golden) check() error {
	if g.Format != goldenFormat {
		return Errorf(Invalid, "format is %d in %s, %d was expected", g.Format, GoldenPath, goldenFormat).WithField("format").
			WithRemedy("Record it anew with 'atelier model golden' of this version of Atelier.")
	}
	if g.Route != GoldenInfer && g.Route != GoldenScore {
		return Errorf(Invalid, "route is %.40q in %s, %q or none was expected", g.Route, GoldenPath, GoldenScore).WithField("route")
	}
	if n := len(g.Cases); n == 0 || n > MaxGoldenCases {
		return Errorf(Invalid, "%s has %d cases, 1 to %d were expected", GoldenPath, n, MaxGoldenCases).WithField("cases")
	}
	if !(g.LatencyMS >= 0 && g.LatencyMS <= float64(time.Hour/time.Millisecond)) {
		return Errorf(Invalid, "latency_ms is %v in %s, 0 (no bound) to an hour was expected", g.LatencyMS, GoldenPath).WithField("latency_ms")
	}
	if err := g.Tolerance.check("tolerance"); err != nil {
		return err
	}
	seen := map[string]bool{}
	for i := range g.Cases {
		c := &g.Cases[i]
		field := fmt.Sprintf("cases[%d]", i)
		switch {
		case c.Name == "" || len(c.Name) > 100:
			return Errorf(Invalid, "%s.name has %d bytes in %s, 1 to 100 were expected", field, len(c.Name), GoldenPath).WithField(field + ".name")
		case seen[c.Name]:
			return Errorf(Invalid, "two cases are named %q in %s", c.Name, GoldenPath).WithField(field + ".name")
		case g.Route == GoldenScore && (len(c.Request) == 0 || len(c.Response) == 0):
			return Errorf(Invalid, "%s has no request or no response in %s, both were expected", field, GoldenPath).WithField(field)
		case g.Route == GoldenScore:
		case len(c.Request) == 0 || c.Request[0] != '{':
			return Errorf(Invalid, "%s.request is no object in %s; an inference request of Open Inference Protocol v2 was expected", field, GoldenPath).WithField(field + ".request")
		case len(c.Response) == 0 || c.Response[0] != '{':
			return Errorf(Invalid, "%s.response is no object in %s; {\"outputs\": [...]} was expected", field, GoldenPath).WithField(field + ".response")
		}
		seen[c.Name] = true
		if c.Tolerance != nil {
			if err := c.Tolerance.check(field + ".tolerance"); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t Tolerance) valid() bool {
	return t.Absolute >= 0 && t.Relative >= 0 && t.Integer >= 0 && !math.IsInf(t.Absolute, 0) && !math.IsInf(t.Relative, 0)
}

func (t Tolerance) check(field string) error {
	if !t.valid() {
		return Errorf(Invalid, "%s is absolute %v, relative %v, integer %d in %s; none may be negative or infinite", field, t.Absolute, t.Relative, t.Integer, GoldenPath).
			WithField(field)
	}
	return nil
}
