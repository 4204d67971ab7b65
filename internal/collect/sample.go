package collect

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"time"
	"unicode/utf8"

	atelier "github.com/atelier-edge/atelier"
)

// reserved is what a record may take besides its values' data.
const reserved = 24 << 10

// Sample is a request that is being recorded. What it is given is copied, as far as it is
// kept. A nil Sample takes everything and does nothing.
type Sample struct {
	sampler *Sampler
	masks   *atelier.Collection
	began   time.Time
	room    int // bytes of data that still fit
	record  Record
}

// Tensor is a value that is to be recorded; data and strings are as serving.Tensor has them.
type Tensor struct {
	Name, Type string
	Shape      []int64
	Data       []byte
	Strings    []string
}

// Input records an input of the model.
func (x *Sample) Input(t Tensor) {
	if x != nil {
		x.tensor(&x.record.Inputs, atelier.MaskInputs, &t)
	}
}

// Output records an output.
func (x *Sample) Output(t Tensor) {
	if x != nil {
		x.tensor(&x.record.Outputs, atelier.MaskOutputs, &t)
	}
}

// End ends the request with the status of its answer.
func (x *Sample) End(status int) {
	if x == nil {
		return
	}
	x.record.Status, x.record.Latency = status, time.Since(x.began)
	x.sampler.put(&x.record)
}

func (x *Sample) tensor(to *[]Value, side string, t *Tensor) {
	if len(*to) == maxValues || len(t.Name) > maxName || len(t.Shape) > maxDims {
		return
	}
	v := Value{Name: t.Name, Type: t.Type, Shape: slices.Clone(t.Shape)}
	room := min(x.room, MaxData)
	switch size := Size(t.Type); {
	case x.masks.Masks(side, t.Name):
		v.Masked = true
	case size > 0:
		n := min(len(t.Data), room/int(size)*int(size))
		v.Data, v.Cut = bytes.Clone(t.Data[:n]), n < len(t.Data)
	default:
		v.Data, v.Cut = pack(t.Strings, room)
	}
	x.room -= len(v.Data)
	*to = append(*to, v)
}

// pack packs strings as BYTES has them, as many as fit. What does not fit is left out, so
// that no half a string is taken for a whole one.
func pack(strings []string, room int) (b []byte, cut bool) {
	for _, s := range strings {
		if len(b)+4+len(s) > room {
			return b, true
		}
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	return b, false
}

// InputText records what a scoring script is given, OutputText what it returns: the fields
// of a JSON object each under its name, anything else as "body".
func (x *Sample) InputText(body []byte) {
	if x != nil {
		x.text(&x.record.Inputs, atelier.MaskInputs, body)
	}
}

// OutputText is InputText for what comes back.
func (x *Sample) OutputText(body []byte) {
	if x != nil {
		x.text(&x.record.Outputs, atelier.MaskOutputs, body)
	}
}

// wholeBody is the name of a text that is no JSON object.
const wholeBody = "body"

// largestText is the largest text that is taken apart: of a larger one nobody could tell
// cheaply what in it is masked.
const largestText = 1 << 20

func (x *Sample) text(to *[]Value, side string, body []byte) {
	var object map[string]json.RawMessage
	if len(body) <= largestText && json.Unmarshal(body, &object) == nil && object != nil {
		names := make([]string, 0, len(object))
		for name := range object {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			x.field(to, side, name, object[name])
		}
		return
	}
	v := Value{Name: wholeBody, Type: TypeJSON}
	// What cannot be taken apart is left out where any of it is masked.
	if x.masks.MasksAny(side) || !utf8.Valid(body) {
		v.Masked = true
	} else {
		x.keep(&v, body)
	}
	*to = append(*to, v)
}

// field records one field of a JSON object.
func (x *Sample) field(to *[]Value, side, name string, text []byte) {
	if len(*to) == maxValues || len(name) > maxName {
		return
	}
	v := Value{Name: name, Type: TypeJSON}
	switch within := x.masks.MasksWithin(side, name); {
	case x.masks.Masks(side, name) || !utf8.Valid(text):
		v.Masked = true
	case len(within) > 0:
		left, ok := without(text, within)
		v.Masked = !ok
		x.keep(&v, left)
	default:
		x.keep(&v, text)
	}
	*to = append(*to, v)
}

// keep copies as much of a text as fits.
func (x *Sample) keep(v *Value, text []byte) {
	n := min(len(text), x.room, MaxData)
	if v.Cut = n < len(text); v.Cut {
		for n > 0 && !utf8.RuneStart(text[n]) {
			n--
		}
	}
	v.Data = bytes.Clone(text[:n])
	x.room -= n
}

// without returns a JSON text without the fields that paths lead to, in objects and in
// all elements of lists.
func without(text []byte, paths [][]string) ([]byte, bool) {
	var value any
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	if d.Decode(&value) != nil {
		return nil, false
	}
	for _, path := range paths {
		strip(value, path)
	}
	left, err := json.Marshal(value)
	return left, err == nil
}

func strip(value any, path []string) {
	switch v := value.(type) {
	case []any:
		for _, element := range v {
			strip(element, path)
		}
	case map[string]any:
		// A name may have dots itself.
		for n := 1; n <= len(path); n++ {
			name := joined(path[:n])
			if n == len(path) || path[n] == "*" && n == len(path)-1 {
				delete(v, name)
			} else if inner, ok := v[name]; ok {
				strip(inner, path[n:])
			}
		}
	}
}

func joined(path []string) string {
	name := path[0]
	for _, p := range path[1:] {
		name += "." + p
	}
	return name
}
