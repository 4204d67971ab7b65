package collect

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

func sampleRecord() Record {
	return Record{
		Time: time.Date(2026, 7, 1, 2, 3, 4, 5000, time.UTC), Request: "01jz0000000000000000000s01-0123456789abcdef", Dialect: DialectV2, Status: 200, Latency: 1234 * time.Microsecond,
		Inputs:  []Value{{Name: "x", Type: "FP32", Shape: []int64{1, 2}, Data: make([]byte, 8)}, {Name: "secret", Type: "FP32", Shape: []int64{3}, Masked: true}},
		Outputs: []Value{{Name: "text", Type: "BYTES", Shape: []int64{2}, Data: []byte("\x01\x00\x00\x00a"), Cut: true}, {Name: "body", Type: TypeJSON, Data: []byte("{}")}},
	}
}

func TestRecordsComeBack(t *testing.T) {
	t.Parallel()
	want := sampleRecord()
	got, err := DecodeRecord(want.Encode(nil))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v: %+v came back of %+v", err, got, want)
	}
	b, err := DecodeBatch(AppendRecord(AppendBatch(nil, "01jz0000000000000000000s01"), want.Encode(nil)))
	if err != nil || b.Rollout != "01jz0000000000000000000s01" || len(b.Records) != 1 || !bytes.Equal(b.Records[0], want.Encode(nil)) {
		t.Errorf("%v: %+v", err, b)
	}
}

func TestMalformedRecords(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Record){
		"no time":             func(r *Record) { r.Time = time.UnixMicro(-1) },
		"a long id":           func(r *Record) { r.Request = strings.Repeat("x", 200) },
		"no UTF-8":            func(r *Record) { r.Dialect = "\xff" },
		"a status":            func(r *Record) { r.Status = 1000 },
		"an unknown type":     func(r *Record) { r.Inputs[0].Type = "FP31" },
		"half an element":     func(r *Record) { r.Inputs[0].Data = r.Inputs[0].Data[:7] },
		"too few elements":    func(r *Record) { r.Inputs[0].Data = r.Inputs[0].Data[:4] },
		"too many elements":   func(r *Record) { r.Inputs[0].Data = make([]byte, 12) },
		"a huge shape":        func(r *Record) { r.Inputs[0].Shape = []int64{1 << 20, 1 << 20, 1 << 20, 1 << 20} },
		"a size out of range": func(r *Record) { r.Inputs[0].Shape = []int64{-1} },
		"many dimensions":     func(r *Record) { r.Inputs[0].Shape = make([]int64, 17) },
		"masked and there":    func(r *Record) { r.Inputs[0].Masked = true },
		"a large value":       func(r *Record) { r.Outputs[1].Data = make([]byte, MaxData+1) },
		"many values":         func(r *Record) { r.Inputs = make([]Value, maxValues+1) },
	} {
		r := sampleRecord()
		change(&r)
		if _, err := DecodeRecord(r.Encode(nil)); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DecodeBatch(appendNumber(nil, batchFormat, 2)); atelier.CodeOf(err) != atelier.Unsupported {
		t.Errorf("a batch of a newer form: %v", err)
	}
}

// Whatever is decoded, encoding it gives the same again.
func FuzzRecord(f *testing.F) {
	r := sampleRecord()
	f.Add(r.Encode(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeRecord(b)
		if err != nil {
			return
		}
		again, err := DecodeRecord(r.Encode(nil))
		if err != nil || len(again.Inputs) != len(r.Inputs) || again.Request != r.Request || !again.Time.Equal(r.Time) {
			t.Fatalf("%+v became %+v: %v", r, again, err)
		}
	})
}

func FuzzBatch(f *testing.F) {
	r := sampleRecord()
	f.Add(AppendRecord(AppendBatch(nil, "01jz0000000000000000000s01"), r.Encode(nil)))
	f.Add([]byte{8, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if batch, err := DecodeBatch(b); err == nil && !atelier.IsID(batch.Rollout) {
			t.Fatalf("rollout %q", batch.Rollout)
		}
	})
}

func FuzzFrame(f *testing.F) {
	var b bytes.Buffer
	if err := writeFrame(&b, kindDropped, make([]byte, 8)); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 1, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		a := NewAgent(readOnly{bytes.NewReader(b)})
		for {
			if record, _, err := a.Next(); err != nil {
				return
			} else if len(record) > MaxRecord {
				t.Fatalf("a record of %d bytes", len(record))
			}
		}
	})
}

type readOnly struct{ *bytes.Reader }

func (readOnly) Write(p []byte) (int, error) { return len(p), nil }
