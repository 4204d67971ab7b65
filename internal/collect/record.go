// Package collect has the form of collected records, and both ends of the socket over
// which a model server hands them to the agent.
//
// A record is one request with its answer. Masked values are left out where the record is
// made, in the model server: they reach neither a socket nor a disk. The package knows
// neither MQTT nor Parquet. What it decodes is hostile until checked.
package collect

import (
	"math"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	atelier "github.com/atelier-edge/atelier"
)

// Record is one request and its answer.
type Record struct {
	Time    time.Time // when it came, by the device's clock; whole microseconds
	Request string    // the request's id
	Dialect string    // one of the dialects
	Status  int       // HTTP status of the answer; that of the same error for gRPC
	Latency time.Duration
	Inputs  []Value
	Outputs []Value
}

// The dialects.
const (
	DialectV2     = "v2"
	DialectGRPC   = "grpc"
	DialectScore  = "score"
	DialectMLflow = "mlflow"
	DialectScript = "script"
)

// Value is an input or an output.
type Value struct {
	Name string
	// Type is a datatype of Open Inference Protocol, or TypeJSON.
	Type  string
	Shape []int64 // of the whole value, also where it was cut; nil for TypeJSON
	// Data holds the elements in row-major order, little-endian; of BYTES each with its
	// length before it, 4 bytes; of TypeJSON it is the text.
	Data   []byte
	Cut    bool // Data is only the beginning
	Masked bool // Data was left out
}

// TypeJSON is the type of what a scoring script takes and gives.
const TypeJSON = "JSON"

// Format is the version of the form that this program writes.
const Format = 1

// The bounds. MaxRecord fits a frame of telemetry however little it can be compressed.
const (
	MaxRecord = 96 << 10 // bytes of an encoded record
	MaxData   = 32 << 10 // bytes of one value
	maxValues = 128      // of inputs, and of outputs
	maxName   = 256
	maxID     = 128
	maxDims   = 16
)

// The fields' numbers. As in Protocol Buffers, unknown ones are passed over.
const (
	recordTime, recordRequest, recordDialect, recordStatus, recordLatency, recordInput, recordOutput = 1, 2, 3, 4, 5, 6, 7

	valueName, valueType, valueShape, valueData, valueCut, valueMasked = 1, 2, 3, 4, 5, 6

	batchFormat, batchRollout, batchRecord = 1, 2, 3
)

// Encode appends the record's binary form.
func (r *Record) Encode(dst []byte) []byte {
	dst = appendNumber(dst, recordTime, uint64(r.Time.UnixMicro()))
	dst = appendText(dst, recordRequest, r.Request)
	dst = appendText(dst, recordDialect, r.Dialect)
	dst = appendNumber(dst, recordStatus, uint64(r.Status))
	dst = appendNumber(dst, recordLatency, uint64(r.Latency.Microseconds()))
	var scratch []byte
	for _, side := range []struct {
		field  protowire.Number
		values []Value
	}{{recordInput, r.Inputs}, {recordOutput, r.Outputs}} {
		for i := range side.values {
			scratch = side.values[i].encode(scratch[:0])
			dst = protowire.AppendBytes(protowire.AppendTag(dst, side.field, protowire.BytesType), scratch)
		}
	}
	return dst
}

func (v *Value) encode(dst []byte) []byte {
	dst = appendText(appendText(dst, valueName, v.Name), valueType, v.Type)
	var shape []byte
	for _, d := range v.Shape {
		shape = protowire.AppendVarint(shape, uint64(d))
	}
	if len(shape) > 0 {
		dst = protowire.AppendBytes(protowire.AppendTag(dst, valueShape, protowire.BytesType), shape)
	}
	if len(v.Data) > 0 {
		dst = protowire.AppendBytes(protowire.AppendTag(dst, valueData, protowire.BytesType), v.Data)
	}
	if v.Cut {
		dst = appendNumber(dst, valueCut, 1)
	}
	if v.Masked {
		dst = appendNumber(dst, valueMasked, 1)
	}
	return dst
}

func appendNumber(dst []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(dst, field, protowire.VarintType), v)
}

func appendText(dst []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(dst, field, protowire.BytesType), s)
}

// DecodeRecord reads what Encode wrote and checks every bound, and that each value's data
// fits its type and shape. Values' Data share b's memory. Errors have the code Invalid or
// TooLarge.
func DecodeRecord(b []byte) (Record, error) {
	var r Record
	if len(b) > MaxRecord {
		return r, atelier.Errorf(atelier.TooLarge, "a collected record has %d bytes, at most %d are taken", len(b), MaxRecord)
	}
	err := fields(b, func(f protowire.Number, number uint64, text []byte) (err error) {
		var v Value
		switch f {
		case recordTime:
			if micros := int64(number); micros < 0 || micros > maxMicros {
				return bad("its time is out of bounds")
			}
			r.Time = time.UnixMicro(int64(number)).UTC()
		case recordRequest:
			r.Request, err = readText(text, maxID)
		case recordDialect:
			r.Dialect, err = readText(text, maxID)
		case recordStatus:
			if number > 999 {
				return bad("its status is %d", number)
			}
			r.Status = int(number)
		case recordLatency:
			if number > math.MaxInt64/1000 {
				return bad("its latency is out of bounds")
			}
			r.Latency = time.Duration(number) * time.Microsecond
		case recordInput:
			if v, err = decodeValue(text); err == nil {
				r.Inputs = append(r.Inputs, v)
			}
		case recordOutput:
			if v, err = decodeValue(text); err == nil {
				r.Outputs = append(r.Outputs, v)
			}
		}
		if len(r.Inputs) > maxValues || len(r.Outputs) > maxValues {
			return bad("it has more than %d values", maxValues)
		}
		return err
	})
	if err == nil && r.Time.IsZero() {
		err = bad("it has no time")
	}
	if err != nil {
		return Record{}, err
	}
	return r, nil
}

// maxMicros is the year 9999's end.
const maxMicros = 253402300799999999

func decodeValue(b []byte) (Value, error) {
	var v Value
	err := fields(b, func(f protowire.Number, number uint64, text []byte) (err error) {
		switch f {
		case valueName:
			v.Name, err = readText(text, maxName)
		case valueType:
			v.Type, err = readText(text, maxName)
		case valueShape:
			for len(text) > 0 {
				d, n := protowire.ConsumeVarint(text)
				if n < 0 || d > math.MaxInt32 || len(v.Shape) == maxDims {
					return bad("a shape is out of bounds")
				}
				v.Shape, text = append(v.Shape, int64(d)), text[n:]
			}
		case valueData:
			v.Data = text
		case valueCut:
			v.Cut = number != 0
		case valueMasked:
			v.Masked = number != 0
		}
		return err
	})
	if err != nil {
		return v, err
	}
	return v, v.check()
}

// check checks that the data fit type and shape.
func (v *Value) check() error {
	if len(v.Data) > MaxData || v.Masked && len(v.Data) > 0 {
		return bad("value %q has %d bytes", v.Name, len(v.Data))
	}
	if v.Type == TypeJSON || v.Masked {
		return nil
	}
	n := int64(1)
	for _, d := range v.Shape {
		if n *= d; n > math.MaxInt32 {
			return bad("the shape of value %q is out of bounds", v.Name)
		}
	}
	size := Size(v.Type)
	var have int64
	switch {
	case v.Type == typeBytes:
		have = int64(len(Strings(v.Data)))
	case size == 0:
		return bad("value %q has the type %.20q", v.Name, v.Type)
	case int64(len(v.Data))%size != 0:
		return bad("value %q ends within an element", v.Name)
	default:
		have = int64(len(v.Data)) / size
	}
	if have > n || have < n && !v.Cut {
		return bad("value %q has %d elements, its shape %v has %d", v.Name, have, v.Shape, n)
	}
	return nil
}

const typeBytes = "BYTES"

// Size returns the bytes of one element of a datatype; 0 for BYTES and for what is none.
func Size(datatype string) int64 {
	switch datatype {
	case "BOOL", "UINT8", "INT8":
		return 1
	case "UINT16", "INT16", "FP16", "BF16":
		return 2
	case "UINT32", "INT32", "FP32":
		return 4
	case "UINT64", "INT64", "FP64":
		return 8
	}
	return 0
}

// Strings returns the elements of BYTES up to the first that is torn. They share b's memory.
func Strings(b []byte) [][]byte {
	var all [][]byte
	for len(b) >= 4 {
		n := int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16 | int64(b[3])<<24
		if n > int64(len(b)-4) {
			break
		}
		all, b = append(all, b[4:4+n]), b[4+n:]
	}
	return all
}

// Batch is records of one rollout, as they go to the hub.
type Batch struct {
	Rollout string // the rollout's id
	Records [][]byte
}

// AppendBatch begins a batch; AppendRecord adds to it.
func AppendBatch(dst []byte, rollout string) []byte {
	return appendText(appendNumber(dst, batchFormat, Format), batchRollout, rollout)
}

// AppendRecord adds an encoded record to a batch.
func AppendRecord(dst, record []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, batchRecord, protowire.BytesType), record)
}

// DecodeBatch reads a batch. Its records are not decoded, and share b's memory.
// Unsupported where it has a newer form.
func DecodeBatch(b []byte) (Batch, error) {
	var batch Batch
	format := uint64(0)
	err := fields(b, func(f protowire.Number, number uint64, text []byte) error {
		switch f {
		case batchFormat:
			format = number
		case batchRollout:
			batch.Rollout = string(text)
		case batchRecord:
			batch.Records = append(batch.Records, text)
		}
		return nil
	})
	switch {
	case err != nil:
		return Batch{}, err
	case format != Format:
		return Batch{}, atelier.Errorf(atelier.Unsupported, "collected records have the form %d, this program reads %d", format, Format).WithRemedy("Update the hub.")
	case !atelier.IsID(batch.Rollout):
		return Batch{}, bad("%.40q is no rollout's id", batch.Rollout)
	}
	return batch, nil
}

// fields calls fn with each field: number of one with a number, text of one with bytes.
func fields(b []byte, fn func(f protowire.Number, number uint64, text []byte) error) error {
	for len(b) > 0 {
		f, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return bad("it is torn")
		}
		b = b[n:]
		var number uint64
		var text []byte
		switch kind {
		case protowire.VarintType:
			number, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			text, n = protowire.ConsumeBytes(b)
		default:
			return bad("it has a field of kind %d", kind)
		}
		if n < 0 {
			return bad("it is torn")
		}
		b = b[n:]
		if err := fn(f, number, text); err != nil {
			return err
		}
	}
	return nil
}

func readText(b []byte, most int) (string, error) {
	if len(b) > most || !utf8.Valid(b) {
		return "", bad("a text of %d bytes is too long or no UTF-8", len(b))
	}
	return string(b), nil
}

func bad(format string, args ...any) error {
	return atelier.Errorf(atelier.Invalid, "a collected record is malformed: "+format, args...)
}
