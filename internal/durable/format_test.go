package durable_test

import (
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
)

func TestFormat(t *testing.T) {
	t.Parallel()
	type form struct {
		Name string `json:"name,omitempty"`
	}
	for _, v := range []form{{}, {"press"}} {
		b, err := durable.Encode(2, v)
		if err != nil {
			t.Fatal(err)
		}
		var got form
		if err := durable.Decode(b, "x.json", 2, &got); err != nil || got != v {
			t.Errorf("%s: %+v, %v", b, got, err)
		}
		if err := durable.Decode(b, "x.json", 1, &got); atelier.CodeOf(err) != atelier.Unsupported {
			t.Errorf("a newer form: %v", err)
		}
	}
	for text, want := range map[string]atelier.Code{
		`{"name":"press"}`:                           "", // before there were numbers
		`{"format":1,"name":"press","later":[true]}`: "",
		`{"format":3,"name":7}`:                      atelier.Unsupported,
		`{"name":7}`:                                 atelier.Corrupt,
		`{"format":"x"}`:                             atelier.Corrupt,
		`[]`:                                         atelier.Corrupt,
		``:                                           atelier.Corrupt,
	} {
		var got form
		if code := atelier.CodeOf(durable.Decode([]byte(text), "x.json", 1, &got)); code != want {
			t.Errorf("%s: %q, want %q", text, code, want)
		}
	}
	if _, err := durable.Encode(1, 7); atelier.CodeOf(err) != atelier.Internal {
		t.Errorf("a number has a form: %v", err)
	}
}
