// Package compare tells whether two versions of a model gave the same answer to a
// request, up to a tolerance. It knows the forms in which models answer: tensors of
// Open Inference Protocol v2, in JSON, in binary form and in protobuf, and any other JSON. All else is
// the same where its bytes are.
//
// Answers are taken for hostile: whatever they hold, a comparison ends, and takes no more
// memory than a small multiple of their size.
package compare

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"mime"
	"slices"
	"strconv"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// Answer is what a version answered.
type Answer struct {
	Status int
	Type   string // the media type, as the header field has it
	// HeaderLength is how many bytes of Body are JSON before binary tensors, "" where all
	// of it is what Type says: the field Inference-Header-Content-Length.
	HeaderLength string
	Body         []byte
}

// Difference says in words in what the shadow's answer differs from the one that was
// given, by more than the tolerance; "" where it does not. Of answers that tell of a
// failure only the status counts.
func Difference(given, shadow *Answer, t atelier.Tolerance) string {
	return Between(given, shadow, "the shadow", t)
}

// Between is Difference of any two answers; name says in words who gave the other one.
func Between(given, other *Answer, name string, t atelier.Tolerance) string {
	if given.Status != other.Status {
		return fmt.Sprintf("the status is %d, %s's %d", given.Status, name, other.Status)
	}
	if given.Status/100 != 2 || given.HeaderLength == other.HeaderLength && bytes.Equal(given.Body, other.Body) {
		return ""
	}
	a, aOK := parse(given)
	b, bOK := parse(other)
	c := comparison{t, name}
	if !aOK || !bOK {
		return c.bytes(given.Body, other.Body)
	}
	return c.answers(&a, &b)
}

// parsed is an answer that is JSON, perhaps with binary tensors behind it.
type parsed struct {
	value   any
	tail    []byte            // of binary tensors
	outputs map[string]tensor // of a call of gRPC, which has neither
}

// parse reads an answer; false where it is not in a form that can be.
func parse(a *Answer) (p parsed, ok bool) {
	if a.Type == TypeGRPC {
		p.outputs, ok = callTensors(a.Body)
		return p, ok
	}
	head := a.Body
	if a.HeaderLength != "" {
		n, err := strconv.Atoi(a.HeaderLength)
		if err != nil || n < 0 || n > len(a.Body) {
			return p, false
		}
		head, p.tail = a.Body[:n], a.Body[n:]
	} else if media, _, err := mime.ParseMediaType(a.Type); err != nil || media != "application/json" && !strings.HasSuffix(media, "+json") {
		return p, false
	}
	d := json.NewDecoder(bytes.NewReader(head))
	d.UseNumber()
	if d.Decode(&p.value) != nil {
		return p, false
	}
	_, err := d.Token()
	return p, err == io.EOF
}

func (c *comparison) bytes(a, b []byte) string {
	if len(a) != len(b) {
		return fmt.Sprintf("the answer has %d bytes, %s's %d", len(a), c.other, len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			return fmt.Sprintf("the answers differ from byte %d on", i)
		}
	}
	return ""
}

// comparison is of what was given with what another gave.
type comparison struct {
	tolerance atelier.Tolerance
	other     string // who that is, in words
}

// answers compares answers of Open Inference Protocol by their outputs, and all other by
// all that they have.
func (c *comparison) answers(a, b *parsed) string {
	x, xOK := tensors(a)
	y, yOK := tensors(b)
	if !xOK || !yOK {
		if len(a.tail) > 0 || len(b.tail) > 0 {
			return "the answers are not in the form of Open Inference Protocol"
		}
		return c.values(a.value, b.value, unknown).String()
	}
	if len(x) != len(y) {
		return fmt.Sprintf("there are %d outputs, %s has %d", len(x), c.other, len(y))
	}
	for _, name := range sortedKeys(x) {
		other, ok := y[name]
		if !ok {
			return fmt.Sprintf("%s has no output %q", c.other, clip(name))
		}
		if d := c.tensors(x[name], other); d != nil {
			return d.at("outputs." + clip(name)).String()
		}
	}
	return ""
}

// tensor is an output of a model.
type tensor struct {
	datatype string
	shape    []int64
	data     any    // in JSON; nil where it is in binary form
	binary   []byte // nil where it is not
}

// tensors returns the outputs of an answer of Open Inference Protocol by their names;
// false where it is none.
func tensors(p *parsed) (map[string]tensor, bool) {
	if p.outputs != nil {
		return p.outputs, true
	}
	object, _ := p.value.(map[string]any)
	list, ok := object["outputs"].([]any)
	if !ok {
		return nil, false
	}
	all := map[string]tensor{}
	tail := p.tail
	for _, item := range list {
		o, _ := item.(map[string]any)
		name, ok := o["name"].(string)
		datatype, typed := o["datatype"].(string)
		shape, sized := shapeOf(o["shape"])
		if _, twice := all[name]; !ok || !typed || !sized || twice {
			return nil, false
		}
		t := tensor{datatype: datatype, shape: shape, data: o["data"]}
		parameters, _ := o["parameters"].(map[string]any)
		if size, binary := parameters["binary_data_size"].(json.Number); binary {
			n, err := strconv.Atoi(size.String())
			if err != nil || n < 0 || n > len(tail) {
				return nil, false
			}
			t.data, t.binary, tail = nil, tail[:n:n], tail[n:]
		}
		all[name] = t
	}
	return all, len(tail) == 0
}

func shapeOf(v any) ([]int64, bool) {
	list, ok := v.([]any)
	shape := make([]int64, len(list))
	for i, item := range list {
		number, isNumber := item.(json.Number)
		n, err := number.Int64()
		if !isNumber || err != nil {
			return nil, false
		}
		shape[i] = n
	}
	return shape, ok
}

func (c *comparison) tensors(a, b tensor) *difference {
	switch {
	case a.datatype != b.datatype:
		return &difference{text: fmt.Sprintf("is of the type %s, %s's of %s", clip(a.datatype), c.other, clip(b.datatype))}
	case !slices.Equal(a.shape, b.shape):
		return &difference{text: fmt.Sprintf("has the shape %s, %s's %s", clip(fmt.Sprint(a.shape)), c.other, clip(fmt.Sprint(b.shape)))}
	case (a.binary == nil) != (b.binary == nil):
		return &difference{text: "is in binary form in one of the answers, and in JSON in the other"}
	case a.binary != nil:
		return c.binary(a, b)
	}
	kind := whole
	if fractions[a.datatype] {
		kind = fraction
	}
	return c.values(a.data, b.data, kind)
}

// kind says which tolerance numbers are compared with.
type kind int

const (
	unknown  kind = iota // whole where both numbers are written as such
	whole                // Tolerance.Integer
	fraction             // Tolerance.Absolute and Relative
)

var fractions = map[string]bool{"FP16": true, "BF16": true, "FP32": true, "FP64": true}

// values compares two values of JSON.
func (c *comparison) values(a, b any, k kind) *difference {
	switch x := a.(type) {
	case json.Number:
		if y, ok := b.(json.Number); ok {
			return c.numbers(x, y, k)
		}
	case map[string]any:
		if y, ok := b.(map[string]any); ok {
			return c.objects(x, y, k)
		}
	case []any:
		y, ok := b.([]any)
		if ok && len(x) != len(y) {
			return &difference{text: fmt.Sprintf("has %d items, %s's %d", len(x), c.other, len(y))}
		}
		if ok {
			for i := range x {
				if d := c.values(x[i], y[i], k); d != nil {
					return d.at("[" + strconv.Itoa(i) + "]")
				}
			}
			return nil
		}
	default: // a text, a truth value or null
		if a == b {
			return nil
		}
	}
	return c.differ(inJSON(a), inJSON(b))
}

func (c *comparison) objects(a, b map[string]any, k kind) *difference {
	for _, name := range sortedKeys(a) {
		other, ok := b[name]
		if !ok {
			return &difference{text: fmt.Sprintf("has the field %q, %s's has not", clip(name), c.other)}
		}
		if d := c.values(a[name], other, k); d != nil {
			return d.at("." + clip(name))
		}
	}
	for _, name := range sortedKeys(b) {
		if _, ok := a[name]; !ok {
			return &difference{text: fmt.Sprintf("has no field %q, %s's has", clip(name), c.other)}
		}
	}
	return nil
}

func (c *comparison) numbers(a, b json.Number, k kind) *difference {
	if a == b {
		return nil
	}
	x, xErr := strconv.ParseInt(a.String(), 10, 64)
	y, yErr := strconv.ParseInt(b.String(), 10, 64)
	if k != fraction && xErr == nil && yErr == nil {
		if c.wholeNear(x, y) {
			return nil
		}
		return c.differ(a.String(), b.String())
	}
	f, fErr := a.Float64()
	g, gErr := b.Float64()
	if k != whole && fErr == nil && gErr == nil && c.near(f, g) {
		return nil
	}
	return c.differ(a.String(), b.String())
}

// near reports whether got is near enough to what was given.
func (c *comparison) near(given, got float64) bool {
	if given == got || math.IsNaN(given) && math.IsNaN(got) {
		return true
	}
	return math.Abs(given-got) <= c.tolerance.Absolute+c.tolerance.Relative*math.Abs(given) && !math.IsInf(given, 0) && !math.IsInf(got, 0)
}

func (c *comparison) wholeNear(a, b int64) bool {
	apart := uint64(a) - uint64(b)
	if a < b {
		apart = uint64(b) - uint64(a)
	}
	return apart <= uint64(max(c.tolerance.Integer, 0))
}

// difference is one place where answers differ. Its path is made on the way back from
// there, since most places do not.
type difference struct {
	path string // "" for the answer as a whole; begins with a dot where it begins with a name
	text string // what is said of the place
}

func (c *comparison) differ(given, other string) *difference {
	return &difference{text: fmt.Sprintf("is %s, %s's %s", clip(given), c.other, clip(other))}
}

// at says that d is at a step below.
func (d *difference) at(step string) *difference {
	if len(d.path) < 2*maxWord { // of what lies very deep the end is told
		d.path = step + d.path
	}
	return d
}

func (d *difference) String() string {
	if d == nil {
		return ""
	}
	where := strings.TrimPrefix(d.path, ".")
	if where == "" {
		where = "the answer"
	}
	return where + " " + d.text
}

// maxWord bounds what of an answer goes into a sentence.
const maxWord = 60

func clip(s string) string {
	if len(s) > maxWord {
		s = s[:maxWord] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}

func inJSON(v any) string {
	switch v.(type) {
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "something else"
	}
	return string(b)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
