package compare

import (
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// TypeGRPC is the Type of an Answer whose Body is a ModelInferResponse of Open Inference
// Protocol v2 in protobuf, without gRPC's prefix.
const TypeGRPC = "application/grpc"

// The numbers of fields (github.com/kserve/open-inference-protocol, open_inference_grpc.proto).
const (
	responseOutputs = 5
	responseRaw     = 6

	outputName     = 1
	outputDatatype = 2
	outputShape    = 3
	outputContents = 5
)

// callTensors returns the outputs of a ModelInferResponse, all in binary form; false where
// it is none.
func callTensors(message []byte) (all map[string]tensor, ok bool) {
	var names []string
	var raw [][]byte
	all = map[string]tensor{}
	ok = eachField(message, func(number protowire.Number, wire protowire.Type, _ uint64, b []byte) bool {
		switch {
		case number == responseRaw && wire == protowire.BytesType:
			raw = append(raw, b)
		case number == responseOutputs && wire == protowire.BytesType:
			name, t, ok := callTensor(b)
			if _, twice := all[name]; !ok || twice {
				return false
			}
			all[name] = t
			names = append(names, name)
		}
		return true
	})
	if !ok || len(raw) > 0 && len(raw) != len(names) {
		return nil, false
	}
	for i := range raw {
		t := all[names[i]]
		t.binary = raw[i]
		all[names[i]] = t
	}
	return all, true
}

// callTensor reads an InferOutputTensor.
func callTensor(message []byte) (name string, t tensor, ok bool) {
	t.shape, t.binary = []int64{}, []byte{}
	var contents []byte
	ok = eachField(message, func(number protowire.Number, wire protowire.Type, n uint64, b []byte) bool {
		switch {
		case number == outputName && wire == protowire.BytesType:
			name = string(b)
		case number == outputDatatype && wire == protowire.BytesType:
			t.datatype = string(b)
		case number == outputShape && wire == protowire.VarintType:
			t.shape = append(t.shape, int64(n))
		case number == outputShape && wire == protowire.BytesType:
			return eachVarint(b, func(n uint64) { t.shape = append(t.shape, int64(n)) })
		case number == outputContents && wire == protowire.BytesType:
			contents = b
		}
		return true
	})
	if ok && contents != nil {
		t.binary, ok = callContents(contents, t.datatype)
	}
	return name, t, ok
}

// callContents turns InferTensorContents of a datatype into binary form: whole numbers and
// truth values become as wide as the datatype, numbers with a fraction stay, and texts get
// their lengths.
func callContents(message []byte, datatype string) (out []byte, ok bool) {
	size := sizes[datatype]
	out = []byte{}
	whole := func(n uint64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], n)
		out = append(out, b[:size]...)
	}
	ok = eachField(message, func(_ protowire.Number, wire protowire.Type, n uint64, b []byte) bool {
		switch {
		case wire == protowire.VarintType:
			whole(n)
		case wire == protowire.Fixed32Type, wire == protowire.Fixed64Type:
			out = append(out, b...)
		case wire != protowire.BytesType:
		case datatype == "BYTES":
			if len(b) > math.MaxUint32 {
				return false
			}
			out = binary.LittleEndian.AppendUint32(out, uint32(len(b)))
			out = append(out, b...)
		case datatype == "FP32" || datatype == "FP64": // packed
			out = append(out, b...)
		default:
			return eachVarint(b, whole)
		}
		return true
	})
	return out, ok
}

// NamesVersion reports whether a ModelInferRequest asks for one version of its model.
func NamesVersion(message []byte) (named bool) {
	const version = 2
	eachField(message, func(number protowire.Number, _ protowire.Type, _ uint64, b []byte) bool {
		named = named || number == version && len(b) > 0
		return true
	})
	return named
}

// eachField reads a message field by field until each says false; ok tells that all was
// read. Numbers come as n, all else as b.
func eachField(message []byte, each func(number protowire.Number, wire protowire.Type, n uint64, b []byte) bool) (ok bool) {
	for len(message) > 0 {
		number, wire, length := protowire.ConsumeTag(message)
		if length < 0 {
			return false
		}
		message = message[length:]
		var n uint64
		if length = protowire.ConsumeFieldValue(number, wire, message); length < 0 {
			return false
		}
		b := message[:length:length]
		switch wire {
		case protowire.VarintType:
			n, _ = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			b, _ = protowire.ConsumeBytes(b)
		}
		if !each(number, wire, n, b) {
			return false
		}
		message = message[length:]
	}
	return true
}

// eachVarint reads packed numbers.
func eachVarint(b []byte, each func(n uint64)) (ok bool) {
	for len(b) > 0 {
		n, length := protowire.ConsumeVarint(b)
		if length < 0 {
			return false
		}
		each(n)
		b = b[length:]
	}
	return true
}
