package collect

import (
	"encoding/binary"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/collect"
)

// row is a record with what the hub knows of it.
type row struct {
	collect.Record
	device, name string
	received     time.Time
	rollout      *atelier.Rollout
}

// rows go into one file.
type rows struct {
	origin *origin
	list   []row
}

// texts reports whether a record is of a script.
func texts(r *collect.Record) bool { return r.Dialect == collect.DialectScript }

// variantOf returns which variant of a version a record is of: a script, or a model with
// its inputs and outputs. Invalid where it is of none.
func variantOf(v *atelier.Version, r *collect.Record) (int, error) {
	for i := range v.Variants {
		if variant := &v.Variants[i]; (variant.Kind == atelier.VariantPython) == texts(r) && fitsVariant(variant, r) {
			return i, nil
		}
	}
	return 0, atelier.Errorf(atelier.Invalid, "a record is none of version %d of %s", v.Number, v.Model)
}

func fitsVariant(variant *atelier.Variant, r *collect.Record) bool {
	if variant.Kind == atelier.VariantPython {
		return !slices.ContainsFunc(slices.Concat(r.Inputs, r.Outputs), func(v collect.Value) bool { return v.Type != collect.TypeJSON })
	}
	s := variant.Signature
	return s != nil && fitsSpecs(s.Inputs, r.Inputs) && fitsSpecs(s.Outputs, r.Outputs)
}

func fitsSpecs(specs []atelier.TensorSpec, values []collect.Value) bool {
	seen := map[string]bool{}
	for _, v := range values {
		i := slices.IndexFunc(specs, func(s atelier.TensorSpec) bool { return s.Name == v.Name })
		if i < 0 || seen[v.Name] || specs[i].Type != v.Type || len(v.Shape) != len(specs[i].Shape) {
			return false
		}
		seen[v.Name] = true
	}
	return true
}

// The columns. inputs and outputs are, of a model, a struct of the tensors by name, each
// with its shape and its values in row-major order, null where it was masked or not asked
// for; of a script, a map of JSON texts. masked and cut name the values that were left out
// and those of which only the beginning is there: "inputs.x".
func schemaOf(s *atelier.Signature) *parquet.Schema {
	text := func() parquet.Node { return parquet.Encoded(parquet.String(), &parquet.RLEDictionary) }
	columns := parquet.Group{
		"time": parquet.Timestamp(parquet.Microsecond), "received": parquet.Timestamp(parquet.Microsecond),
		"request": parquet.String(), "device": text(), "device_id": text(), "deployment": text(), "endpoint": text(), "rollout": text(),
		"model": text(), "version": parquet.Int(32), "digest": text(), "dialect": text(), "status": parquet.Int(32), "latency_us": parquet.Int(64),
		"masked": parquet.List(parquet.String()), "cut": parquet.List(parquet.String()),
	}
	if s == nil {
		columns[atelier.MaskInputs] = parquet.Map(parquet.String(), parquet.String())
		columns[atelier.MaskOutputs] = parquet.Map(parquet.String(), parquet.String())
	} else {
		columns[atelier.MaskInputs], columns[atelier.MaskOutputs] = tensors(s.Inputs), tensors(s.Outputs)
	}
	return parquet.NewSchema("record", columns)
}

func tensors(specs []atelier.TensorSpec) parquet.Node {
	g := parquet.Group{}
	for _, t := range specs {
		g[t.Name] = parquet.Optional(parquet.Group{"shape": parquet.List(parquet.Int(64)), "values": parquet.List(element(t.Type))})
	}
	if len(g) == 0 { // Parquet has no empty structs
		g["none"] = parquet.Optional(parquet.Group{"shape": parquet.List(parquet.Int(64)), "values": parquet.List(parquet.Int(64))})
	}
	return g
}

// element is the type of a tensor's values. Half floats become floats, which hold them all.
func element(datatype string) parquet.Node {
	switch datatype {
	case "BOOL":
		return parquet.Leaf(parquet.BooleanType)
	case "UINT8":
		return parquet.Uint(8)
	case "UINT16":
		return parquet.Uint(16)
	case "UINT32":
		return parquet.Uint(32)
	case "UINT64":
		return parquet.Uint(64)
	case "INT8":
		return parquet.Int(8)
	case "INT16":
		return parquet.Int(16)
	case "INT32":
		return parquet.Int(32)
	case "INT64":
		return parquet.Int(64)
	case "FP64":
		return parquet.Leaf(parquet.DoubleType)
	case "BYTES":
		return parquet.Leaf(parquet.ByteArrayType)
	}
	return parquet.Leaf(parquet.FloatType)
}

// rowsAtOnce bounds what is held as Parquet's values.
const rowsAtOnce = 64

// writeParquet writes rows of a variant as a Parquet file.
func writeParquet(to io.Writer, variant *atelier.Variant, list []row) error {
	signature := variant.Signature
	if variant.Kind == atelier.VariantPython {
		signature = nil
	}
	schema := schemaOf(signature)
	w := parquet.NewWriter(to, schema, parquet.Compression(&parquet.Zstd), parquet.CreatedBy("atelier", "", ""))
	columns := map[string]int{}
	for i, path := range schema.Columns() {
		columns[strings.Join(path, "\x00")] = i
	}
	batch := make([]parquet.Row, 0, rowsAtOnce)
	for i := range list {
		b := rowBuilder{columns: columns, row: make([][]parquet.Value, len(columns))}
		b.record(&list[i], signature)
		batch = append(batch, b.flat())
		if len(batch) == rowsAtOnce || i == len(list)-1 {
			if _, err := w.WriteRows(batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return w.Close()
}

// rowBuilder makes a row of values with their levels (Dremel's): the repetition level is
// above 0 where a value goes on with a list, the definition level tells how far of the
// column's path is there.
type rowBuilder struct {
	columns map[string]int
	row     [][]parquet.Value
}

func (b *rowBuilder) put(v parquet.Value, repetition, definition int, path ...string) {
	i := b.columns[strings.Join(path, "\x00")]
	b.row[i] = append(b.row[i], v.Level(repetition, definition, i))
}

func (b *rowBuilder) text(column, s string) { b.put(parquet.ByteArrayValue([]byte(s)), 0, 0, column) }

// flat returns the row's values column by column.
func (b *rowBuilder) flat() parquet.Row { return slices.Concat(b.row...) }

func (b *rowBuilder) record(r *row, s *atelier.Signature) {
	b.put(parquet.Int64Value(r.Time.UnixMicro()), 0, 0, "time")
	b.put(parquet.Int64Value(r.received.UnixMicro()), 0, 0, "received")
	b.text("request", r.Request)
	b.text("device", r.name)
	b.text("device_id", r.device)
	b.text("deployment", r.rollout.DeploymentName)
	b.text("endpoint", r.rollout.Endpoint)
	b.text("rollout", r.rollout.ID)
	b.text("model", r.rollout.Model)
	b.put(parquet.Int32Value(int32(r.rollout.Version)), 0, 0, "version")
	b.text("digest", string(r.rollout.Digest))
	b.text("dialect", r.Dialect)
	b.put(parquet.Int32Value(int32(r.Status)), 0, 0, "status")
	b.put(parquet.Int64Value(r.Latency.Microseconds()), 0, 0, "latency_us")
	var masked, cut []parquet.Value
	for _, side := range []struct {
		name   string
		values []collect.Value
	}{{atelier.MaskInputs, r.Inputs}, {atelier.MaskOutputs, r.Outputs}} {
		for i := range side.values {
			v := &side.values[i]
			if v.Masked {
				masked = append(masked, parquet.ByteArrayValue([]byte(side.name+"."+v.Name)))
			}
			if v.Cut {
				cut = append(cut, parquet.ByteArrayValue([]byte(side.name+"."+v.Name)))
			}
		}
	}
	b.list(masked, 0, "masked", "list", "element")
	b.list(cut, 0, "cut", "list", "element")
	if s == nil {
		b.texts(atelier.MaskInputs, r.Inputs)
		b.texts(atelier.MaskOutputs, r.Outputs)
		return
	}
	b.tensors(atelier.MaskInputs, s.Inputs, r.Inputs)
	b.tensors(atelier.MaskOutputs, s.Outputs, r.Outputs)
}

// list puts a list, which is there from the definition level on.
func (b *rowBuilder) list(values []parquet.Value, level int, path ...string) {
	if len(values) == 0 {
		b.put(parquet.NullValue(), 0, level, path...)
	}
	for i, v := range values {
		b.put(v, min(i, 1), level+1, path...)
	}
}

func (b *rowBuilder) texts(side string, values []collect.Value) {
	var keys, contents []parquet.Value
	seen := map[string]bool{}
	for i := range values {
		if v := &values[i]; !v.Masked && !seen[v.Name] {
			seen[v.Name] = true
			keys = append(keys, parquet.ByteArrayValue([]byte(v.Name)))
			contents = append(contents, parquet.ByteArrayValue([]byte(strings.ToValidUTF8(string(v.Data), "\ufffd"))))
		}
	}
	b.list(keys, 0, side, "key_value", "key")
	b.list(contents, 0, side, "key_value", "value")
}

func (b *rowBuilder) tensors(side string, specs []atelier.TensorSpec, values []collect.Value) {
	if len(specs) == 0 {
		b.put(parquet.NullValue(), 0, 0, side, "none", "shape", "list", "element")
		b.put(parquet.NullValue(), 0, 0, side, "none", "values", "list", "element")
	}
	for _, t := range specs {
		shape, content := []string{side, t.Name, "shape", "list", "element"}, []string{side, t.Name, "values", "list", "element"}
		i := slices.IndexFunc(values, func(v collect.Value) bool { return v.Name == t.Name && !v.Masked })
		if i < 0 {
			b.put(parquet.NullValue(), 0, 0, shape...)
			b.put(parquet.NullValue(), 0, 0, content...)
			continue
		}
		var sizes []parquet.Value
		for _, d := range values[i].Shape {
			sizes = append(sizes, parquet.Int64Value(d))
		}
		b.list(sizes, 1, shape...)
		b.list(elements(t.Type, values[i].Data), 1, content...)
	}
}

// elements returns a tensor's values.
func elements(datatype string, data []byte) []parquet.Value {
	if datatype == "BYTES" {
		var all []parquet.Value
		for _, s := range collect.Strings(data) {
			all = append(all, parquet.ByteArrayValue(s))
		}
		return all
	}
	size := int(collect.Size(datatype))
	all := make([]parquet.Value, 0, len(data)/size)
	for ; len(data) >= size; data = data[size:] {
		all = append(all, number(datatype, data))
	}
	return all
}

func number(datatype string, b []byte) parquet.Value {
	switch datatype {
	case "BOOL":
		return parquet.BooleanValue(b[0] != 0)
	case "UINT8":
		return parquet.Int32Value(int32(b[0]))
	case "INT8":
		return parquet.Int32Value(int32(int8(b[0])))
	case "UINT16":
		return parquet.Int32Value(int32(binary.LittleEndian.Uint16(b)))
	case "INT16":
		return parquet.Int32Value(int32(int16(binary.LittleEndian.Uint16(b))))
	case "UINT32", "INT32":
		return parquet.Int32Value(int32(binary.LittleEndian.Uint32(b)))
	case "UINT64", "INT64":
		return parquet.Int64Value(int64(binary.LittleEndian.Uint64(b)))
	case "FP64":
		return parquet.DoubleValue(math.Float64frombits(binary.LittleEndian.Uint64(b)))
	case "FP16":
		return parquet.FloatValue(half(binary.LittleEndian.Uint16(b)))
	case "BF16":
		return parquet.FloatValue(math.Float32frombits(uint32(binary.LittleEndian.Uint16(b)) << 16))
	}
	return parquet.FloatValue(math.Float32frombits(binary.LittleEndian.Uint32(b)))
}

// half widens a half-precision float (IEEE 754 binary16).
func half(h uint16) float32 {
	sign, exponent, fraction := uint32(h>>15)<<31, uint32(h>>10)&0x1f, uint32(h)&0x3ff
	switch exponent {
	case 0:
		f := float32(fraction) / (1 << 24)
		return math.Float32frombits(math.Float32bits(f) | sign)
	case 0x1f:
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	}
	return math.Float32frombits(sign | (exponent+112)<<23 | fraction<<13)
}
