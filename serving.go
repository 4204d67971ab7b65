package atelier

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// FeatureServing is what agents list in Facts.Features that give Module.Serving to
// the model server; others would ignore it.
const FeatureServing = "serving"

// ServingSettings say how a module answers requests. The zero value of a field leaves it to
// the model server.
type ServingSettings struct {
	// MaxBatch is how many rows of an ONNX model run together at most, of requests that
	// come while it is busy; MaxDelay how long a request may wait for others besides.
	MaxBatch int     `json:"max_batch,omitempty"`
	MaxDelay float64 `json:"max_delay_ms,omitempty"`
	// Threads share one inference of an ONNX model; Concurrency bounds the inferences
	// that run at a time.
	Threads     int `json:"threads,omitempty"`
	Concurrency int `json:"concurrency,omitempty"`
	// Workers are the processes that run a scoring script or a model in Python.
	Workers int `json:"workers,omitempty"`
	// WorkerMemory is how many bytes of resident memory one of them may have before it
	// is replaced.
	WorkerMemory int64 `json:"worker_memory_bytes,omitempty"`
	// Deadline is how long one request may take, in milliseconds.
	Deadline float64 `json:"deadline_ms,omitempty"`
	// Providers are the execution providers that an ONNX model may run on, the preferred
	// one first, with commas; see ParseProviders. It runs on the processor where none can.
	Providers string `json:"providers,omitempty"`
	// Server names the model server of a device in whose process the ONNX model runs,
	// with those of other deployments that name the same one, have the same limits and need
	// the same runtime; "" is a process of its own.
	Server string `json:"server,omitempty"`
}

// ServingChange says what to change of ServingSettings: nil leaves a field as it is, 0
// leaves it to the model server.
type ServingChange struct {
	MaxBatch     *int     `json:"max_batch,omitempty"`
	MaxDelay     *float64 `json:"max_delay_ms,omitempty"`
	Threads      *int     `json:"threads,omitempty"`
	Concurrency  *int     `json:"concurrency,omitempty"`
	Workers      *int     `json:"workers,omitempty"`
	WorkerMemory *int64   `json:"worker_memory_bytes,omitempty"`
	Deadline     *float64 `json:"deadline_ms,omitempty"`
	Providers    *string  `json:"providers,omitempty"`
	Server       *string  `json:"server,omitempty"`
}

// To returns s as c changes it.
func (c *ServingChange) To(s ServingSettings) ServingSettings {
	if c == nil {
		return s
	}
	change(&s.MaxBatch, c.MaxBatch)
	change(&s.MaxDelay, c.MaxDelay)
	change(&s.Threads, c.Threads)
	change(&s.Concurrency, c.Concurrency)
	change(&s.Workers, c.Workers)
	change(&s.WorkerMemory, c.WorkerMemory)
	change(&s.Deadline, c.Deadline)
	change(&s.Providers, c.Providers)
	change(&s.Server, c.Server)
	return s
}

func change[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// IsZero reports whether s leaves everything to the model server.
func (s ServingSettings) IsZero() bool { return s == ServingSettings{} }

// The bounds of ServingSettings.
const (
	maxServingCount  = 4096
	maxServingMillis = 24 * 3600 * 1000
	minWorkerMemory  = 1 << 20
)

// servingField is one field of ServingSettings: its name in JSON, on command lines and in
// messages, and which kinds of variants it is of use for.
type servingField struct {
	name, flag string
	kinds      []string // nil for all
	value      func(ServingSettings) float64
	most       float64 // Inf where value is none but tells whether it is set
	text       func(ServingSettings) string
}

var servingFields = func() []servingField {
	onnx, inPython := []string{VariantONNX}, []string{VariantPython, VariantMLflow, VariantPickle}
	count := func(name, flag string, kinds []string, of func(ServingSettings) int) servingField {
		return servingField{
			name, flag, kinds, func(s ServingSettings) float64 { return float64(of(s)) }, maxServingCount,
			func(s ServingSettings) string { return fmt.Sprint(of(s)) },
		}
	}
	millis := func(name, flag string, kinds []string, of func(ServingSettings) float64) servingField {
		return servingField{name, flag, kinds, of, maxServingMillis, func(s ServingSettings) string { return Millis(of(s)).String() }}
	}
	return []servingField{
		count("max_batch", "max-batch", onnx, func(s ServingSettings) int { return s.MaxBatch }),
		millis("max_delay_ms", "max-delay", onnx, func(s ServingSettings) float64 { return s.MaxDelay }),
		count("threads", "threads", onnx, func(s ServingSettings) int { return s.Threads }),
		count("concurrency", "concurrency", onnx, func(s ServingSettings) int { return s.Concurrency }),
		count("workers", "workers", inPython, func(s ServingSettings) int { return s.Workers }),
		{
			"worker_memory_bytes", "worker-memory", inPython, func(s ServingSettings) float64 { return float64(s.WorkerMemory) }, 1 << 50,
			func(s ServingSettings) string { return FormatBytes(s.WorkerMemory) },
		},
		millis("deadline_ms", "deadline", nil, func(s ServingSettings) float64 { return s.Deadline }),
		{
			"providers", "providers", onnx, func(s ServingSettings) float64 { return float64(len(s.Providers)) }, math.Inf(1),
			func(s ServingSettings) string { return s.Providers },
		},
		{
			"server", "server", onnx, func(s ServingSettings) float64 { return float64(len(s.Server)) }, math.Inf(1),
			func(s ServingSettings) string { return s.Server },
		},
	}
}()

// none is the value that takes the setting away on a command line.
func (f *servingField) none() string {
	if math.IsInf(f.most, 1) {
		return `""`
	}
	return "0"
}

// Millis is a number of milliseconds as a duration.
func Millis(ms float64) time.Duration {
	return time.Duration(math.Round(ms * float64(time.Millisecond)))
}

// Check returns an error with the code Invalid where s cannot be.
func (s ServingSettings) Check() error {
	for _, f := range servingFields {
		if v := f.value(s); !(v >= 0 && v <= f.most) {
			return Errorf(Invalid, "serving.%s is %v, 0 (what the model server does by itself) to %v was expected", f.name, v, f.most).
				WithField("serving." + f.name)
		}
	}
	if s.MaxDelay > 0 && s.MaxBatch < 2 {
		return Errorf(Invalid, "serving.max_delay_ms is %v and serving.max_batch is %d: a request has nothing to wait for", s.MaxDelay, s.MaxBatch).
			WithField("serving.max_delay_ms").WithRemedy("Set --max-batch to 2 rows or more as well, or --max-delay to 0.")
	}
	if _, err := ParseProviders(s.Providers); err != nil {
		return err
	}
	if s.Server != "" {
		if err := CheckName("server", s.Server); err != nil {
			return err
		}
	}
	if m := s.WorkerMemory; m > 0 && m < minWorkerMemory {
		return Errorf(Invalid, "serving.worker_memory_bytes is %d, no Python process has less than %s", m, FormatBytes(minWorkerMemory)).
			WithField("serving.worker_memory_bytes").WithRemedy("Write it with its unit, such as --worker-memory 512MiB.")
	}
	return nil
}

// CheckFor returns an error with the code Invalid where s sets what is of no use for
// any variant of v.
func (s ServingSettings) CheckFor(v *Version) error {
	for i := range servingFields {
		f := &servingFields[i]
		if f.value(s) == 0 || f.kinds == nil || slices.ContainsFunc(v.Variants, func(v Variant) bool { return slices.Contains(f.kinds, v.Kind) }) {
			continue
		}
		kinds := make([]string, len(v.Variants))
		for i := range v.Variants {
			kinds[i] = v.Variants[i].Kind
		}
		return Errorf(Invalid, "serving.%s is for models of the kind %s, and version %d of %s is of the kind %s",
			f.name, strings.Join(f.kinds, " or "), v.Number, v.Model, strings.Join(slices.Compact(kinds), ", ")).
			WithField("serving."+f.name).WithRemedy("Leave it out, or take it away with '--%s %s'.", f.flag, f.none())
	}
	return nil
}

// String lists what s sets, by the names that the command line has: "max-batch 8,
// max-delay 5ms"; "" where that is nothing.
func (s ServingSettings) String() string {
	var words []string
	for _, f := range servingFields {
		if f.value(s) != 0 {
			words = append(words, f.flag+" "+f.text(s))
		}
	}
	return strings.Join(words, ", ")
}
