package collect

import (
	"bytes"
	"reflect"
	"testing"
)

// Whatever lies in a journal is read or taken for its end, and what is read is what was written.
func FuzzJournal(f *testing.F) {
	b, err := (&record{Workspace: "w", Device: "d", Stream: stream, Sequence: 3, Payload: []byte("payload")}).encode(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := readRecord(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := r.encode(nil)
		if err != nil {
			return // its texts are longer once they are escaped
		}
		if back, err := readRecord(bytes.NewReader(again)); err != nil || !reflect.DeepEqual(back, r) {
			t.Fatalf("%+v became %+v: %v", r, back, err)
		}
		_, _, _ = r.batch()
	})
}
