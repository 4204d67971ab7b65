package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"

	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/util/annotations"
)

// errorKind is Prometheus' errorType, with the status that goes with it.
type errorKind struct {
	name   string
	status int
}

var (
	kindBadData     = errorKind{"bad_data", http.StatusBadRequest}
	kindExecution   = errorKind{"execution", http.StatusUnprocessableEntity}
	kindTimeout     = errorKind{"timeout", http.StatusServiceUnavailable}
	kindUnavailable = errorKind{"unavailable", http.StatusServiceUnavailable}
	kindCanceled    = errorKind{"canceled", 499} // as nginx has it, and Prometheus
	kindInternal    = errorKind{"internal", http.StatusInternalServerError}
	kindNotFound    = errorKind{"not_found", http.StatusNotFound}
)

// apiError is an error in the form of Prometheus' API.
type apiError struct {
	kind errorKind
	err  error
}

func (e *apiError) Error() string { return e.err.Error() }
func (e *apiError) Unwrap() error { return e.err }

func badData(format string, args ...any) error {
	return &apiError{kindBadData, fmt.Errorf(format, args...)}
}

func invalidParameter(name string, err error) error {
	return badData("invalid parameter %q: %w", name, err)
}

// kindOfError sorts what the engine and the TSDB return.
func kindOfError(err error) errorKind {
	var known *apiError
	var timeout promql.ErrQueryTimeout
	var canceled promql.ErrQueryCanceled
	var broken promql.ErrStorage
	switch {
	case errors.As(err, &known):
		return known.kind
	case errors.As(err, &timeout), errors.Is(err, context.DeadlineExceeded):
		return kindTimeout
	case errors.As(err, &canceled), errors.Is(err, context.Canceled):
		return kindCanceled
	case errors.As(err, &broken):
		return kindInternal
	}
	return kindExecution
}

// envelope is the form of every answer.
type envelope struct {
	Status    string   `json:"status"`
	Data      any      `json:"data,omitempty"`
	ErrorType string   `json:"errorType,omitempty"`
	Error     string   `json:"error,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
	Infos     []string `json:"infos,omitempty"`
}

func writeError(w http.ResponseWriter, err error) {
	kind := kindOfError(err)
	write(w, kind.status, envelope{Status: "error", ErrorType: kind.name, Error: err.Error()})
}

func writeAnswer(w http.ResponseWriter, data any, notes annotations.Annotations, query string) {
	warnings, infos := notes.AsStrings(query, 10, 10)
	write(w, http.StatusOK, envelope{Status: "success", Data: data, Warnings: warnings, Infos: infos})
}

func write(w http.ResponseWriter, status int, e envelope) {
	b, err := json.Marshal(e)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"status":"error","errorType":"internal","error":"the answer cannot be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // a client that has gone needs no answer
}

// encoded is JSON that is written as it is.
type encoded []byte

// MarshalJSON implements json.Marshaler.
func (e encoded) MarshalJSON() ([]byte, error) { return e, nil }

// appendResult writes {"resultType", "result"} as Prometheus does. The engine's
// own MarshalJSON methods make the same at many times the cost.
func appendResult(b []byte, value parser.Value) []byte {
	b = append(b, `{"resultType":"`...)
	b = append(b, value.Type()...)
	b = append(b, `","result":`...)
	switch v := value.(type) {
	case promql.Matrix:
		b = append(b, '[')
		for i, s := range v {
			b = appendSeries(separated(b, i), s)
		}
		b = append(b, ']')
	case promql.Vector:
		b = append(b, '[')
		for i, s := range v {
			b = append(separated(b, i), `{"metric":`...)
			b = appendJSON(b, s.Metric)
			if s.H != nil {
				b = append(b, `,"histogram":`...)
				b = appendJSON(b, promql.HPoint{T: s.T, H: s.H})
			} else {
				b = append(b, `,"value":`...)
				b = appendPoint(b, s.T, s.F)
			}
			b = append(b, '}')
		}
		b = append(b, ']')
	case promql.Scalar:
		b = appendPoint(b, v.T, v.V)
	default:
		b = appendJSON(b, v)
	}
	return append(b, '}')
}

func separated(b []byte, i int) []byte {
	if i > 0 {
		return append(b, ',')
	}
	return b
}

func appendSeries(b []byte, s promql.Series) []byte {
	b = append(b, `{"metric":`...)
	b = appendJSON(b, s.Metric)
	for i, p := range s.Floats {
		if i == 0 {
			b = append(b, `,"values":[`...)
		}
		b = appendPoint(separated(b, i), p.T, p.F)
	}
	if len(s.Floats) > 0 {
		b = append(b, ']')
	}
	for i, p := range s.Histograms {
		if i == 0 {
			b = append(b, `,"histograms":[`...)
		}
		b = appendJSON(separated(b, i), p)
	}
	if len(s.Histograms) > 0 {
		b = append(b, ']')
	}
	return append(b, '}')
}

// appendPoint writes [seconds, "value"].
func appendPoint(b []byte, ms int64, v float64) []byte {
	b = append(b, '[')
	if ms < 0 {
		b, ms = append(b, '-'), -ms
	}
	b = strconv.AppendInt(b, ms/1000, 10)
	if part := ms % 1000; part != 0 {
		b = append(b, '.', byte('0'+part/100), byte('0'+part/10%10), byte('0'+part%10))
	}
	b = append(b, ',', '"')
	b = appendValue(b, v)
	return append(b, '"', ']')
}

// appendValue writes a value as Prometheus does: without an exponent unless it
// is very large or very small.
func appendValue(b []byte, v float64) []byte {
	format := byte('f')
	if a := math.Abs(v); a != 0 && (a < 1e-6 || a >= 1e21) && !math.IsInf(v, 0) {
		format = 'e'
	}
	return strconv.AppendFloat(b, v, format, -1, 64)
}

func appendJSON(b []byte, v any) []byte {
	j, err := json.Marshal(v)
	if err != nil {
		return append(b, "null"...) // the engine's values can always be encoded
	}
	return append(b, j...)
}

// doorman counts the queries that run, and lets none in once it is closed.
type doorman struct {
	mu     sync.Mutex
	closed bool
	inside sync.WaitGroup
}

func (d *doorman) enter() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errors.New("the hub is shutting down")
	}
	d.inside.Add(1)
	return nil
}

func (d *doorman) leave() { d.inside.Done() }

// close waits for the queries that run.
func (d *doorman) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.inside.Wait()
}
