package atelier

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"time"
)

// ServingPath is where a version says among its files how it is to be served.
// Without that file it is served as suits most.
const ServingPath = "serving.json"

// The bounds of serving settings.
const (
	MaxServingSize = 64 << 10 // of the file, in bytes
	MaxBatchRows   = 4096
	MaxWorkers     = 256

	servingFormat = 1
	maxBatchDelay = time.Minute
)

// ServingSettings say how a version is served, as the file at ServingPath has them.
type ServingSettings struct {
	Format int `json:"format"` // 1
	// MaxBatch is how many rows of requests that come together run together at most;
	// 0 and 1 run each request alone. It is for ONNX models.
	MaxBatch int `json:"max_batch,omitempty"`
	// MaxDelayMS is how many milliseconds a request may wait for others to run with; 0
	// is no longer than the model is busy.
	MaxDelayMS float64 `json:"max_delay_ms,omitempty"`
	// Workers is how many processes run a scoring script; 0 is one.
	Workers int `json:"workers,omitempty"`
}

// MaxDelay returns how long a request may wait for others.
func (s *ServingSettings) MaxDelay() time.Duration {
	return time.Duration(s.MaxDelayMS * float64(time.Millisecond))
}

// HasServing reports whether the variant comes with settings for its serving.
func (v *Variant) HasServing() bool {
	return slices.ContainsFunc(v.Files, func(f File) bool { return f.Path == ServingPath })
}

// ParseServing reads the settings of a variant of the given kind. What is wrong with
// them gives an *Error with the code Invalid, or TooLarge.
func ParseServing(b []byte, kind string) (*ServingSettings, error) {
	if len(b) > MaxServingSize {
		return nil, Errorf(TooLarge, "%s has %s, at most %s were expected", ServingPath, FormatBytes(int64(len(b))), FormatBytes(MaxServingSize))
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	s := &ServingSettings{}
	if err := d.Decode(s); err != nil {
		return nil, Errorf(Invalid, "%s cannot be read: %w", ServingPath, err).
			WithRemedy(`It holds {"format": 1} with max_batch and max_delay_ms for an ONNX model, or workers for a scoring script.`)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, Errorf(Invalid, "%s goes on after its JSON ends, at byte %d", ServingPath, d.InputOffset())
	}
	return s, s.check(kind)
}

func (s *ServingSettings) check(kind string) error {
	const most = float64(maxBatchDelay / time.Millisecond)
	bad := func(field, format string, args ...any) error {
		return Errorf(Invalid, field+" is "+format, args...).WithField(field)
	}
	switch {
	case s.Format != servingFormat:
		return bad("format", "%d in %s, %d was expected", s.Format, ServingPath, servingFormat)
	case s.MaxBatch < 0 || s.MaxBatch > MaxBatchRows:
		return bad("max_batch", "%d in %s, 0 to %d rows were expected", s.MaxBatch, ServingPath, MaxBatchRows)
	case !(s.MaxDelayMS >= 0 && s.MaxDelayMS <= most):
		return bad("max_delay_ms", "%v in %s, 0 to %v were expected", s.MaxDelayMS, ServingPath, most)
	case s.Workers < 0 || s.Workers > MaxWorkers:
		return bad("workers", "%d in %s, 0 to %d were expected", s.Workers, ServingPath, MaxWorkers)
	case s.MaxDelayMS > 0 && s.MaxBatch < 2:
		return bad("max_delay_ms", "%v in %s, which is of no use without max_batch", s.MaxDelayMS, ServingPath)
	case s.Workers > 0 && kind != VariantPython:
		return bad("workers", "%d in %s, and only scoring scripts have workers", s.Workers, ServingPath)
	case s.MaxBatch > 1 && kind == VariantPython:
		return bad("max_batch", "%d in %s, and requests of scoring scripts are not run together", s.MaxBatch, ServingPath)
	}
	return nil
}
