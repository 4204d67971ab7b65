package atelier

import (
	"encoding/json"
	"testing"
	"time"
)

func TestParseServing(t *testing.T) {
	t.Parallel()
	s, err := ParseServing([]byte(`{"format": 1, "max_batch": 64, "max_delay_ms": 2.5}`), VariantONNX)
	if err != nil || s.MaxBatch != 64 || s.MaxDelay() != 2500*time.Microsecond {
		t.Errorf("got %+v, %v", s, err)
	}
	if s, err := ParseServing([]byte(`{"format": 1, "workers": 3}`), VariantPython); err != nil || s.Workers != 3 {
		t.Errorf("got %+v, %v", s, err)
	}
	for text, kind := range map[string]string{
		"": VariantONNX, "{}": VariantONNX, `{"format": 2}`: VariantONNX, `{"format": 1} {}`: VariantONNX, `{"format": 1, "batch": 2}`: VariantONNX,
		`{"format": 1, "max_batch": -1}`: VariantONNX, `{"format": 1, "max_batch": 5000}`: VariantONNX, `{"format": 1, "max_delay_ms": 5}`: VariantONNX,
		`{"format": 1, "max_batch": 2, "max_delay_ms": 60001}`: VariantONNX, `{"format": 1, "workers": 2}`: VariantONNX,
		`{"format": 1, "workers": 257}`: VariantPython, `{"format": 1, "max_batch": 2}`: VariantPython,
	} {
		if _, err := ParseServing([]byte(text), kind); CodeOf(err) != Invalid {
			t.Errorf("%s: got %v, want a refusal", text, err)
		}
	}
	if _, err := ParseServing(make([]byte, MaxServingSize+1), VariantONNX); CodeOf(err) != TooLarge {
		t.Errorf("a large one: got %v", err)
	}
}

// FuzzParseServing holds what is accepted to its bounds, and to coming back the same.
func FuzzParseServing(f *testing.F) {
	f.Add([]byte(`{"format":1,"max_batch":64,"max_delay_ms":2.5}`), VariantONNX)
	f.Add([]byte(`{"format":1,"max_batch":2,"max_delay_ms":1e999}`), VariantONNX)
	f.Add([]byte(`{"format":1,"workers":2}`), VariantPython)
	f.Fuzz(func(t *testing.T, b []byte, kind string) {
		s, err := ParseServing(b, kind)
		if err != nil {
			return
		}
		if s.MaxBatch < 0 || s.MaxBatch > MaxBatchRows || s.MaxDelay() < 0 || s.MaxDelay() > time.Minute || s.Workers < 0 || s.Workers > MaxWorkers {
			t.Fatalf("accepted %+v", s)
		}
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseServing(text, kind); err != nil || *again != *s {
			t.Fatalf("%s came back as %+v, %v", text, again, err)
		}
	})
}
