package atelier

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

const goldenExample = `{"format":1,"tolerance":{"absolute":0.0001,"relative":0.001},"latency_ms":20,` +
	`"cases":[{"name":"three","request":{"inputs":[]},"response":{"outputs":[]},"tolerance":{"absolute":0,"relative":0,"integer":2}},` +
	`{"name":"four","request":{"inputs":[]},"response":{"outputs":[]}}]}`

func TestParseGolden(t *testing.T) {
	t.Parallel()
	g, err := ParseGolden([]byte(goldenExample))
	if err != nil {
		t.Fatal(err)
	}
	if g.Of(&g.Cases[0]).Integer != 2 || g.Of(&g.Cases[1]) != DefaultTolerance || g.Latency().Milliseconds() != 20 {
		t.Errorf("got %+v", g)
	}
	for with, old := range map[string]string{
		`"format":2`: `"format":1`, `"latency_ms":-1`: `"latency_ms":20`, `"latency_ms":1e300`: `"latency_ms":20`, `"name":"three"`: `"name":"four"`,
		`"name":""`: `"name":"four"`, `"absolute":-1`: `"absolute":0.0001`, `"integer":-2`: `"integer":2`, `"request":[]`: `"request":{"inputs":[]}`,
		`"respond":{}`: `"response":{"outputs":[]}`,
	} {
		if _, err := ParseGolden([]byte(strings.Replace(goldenExample, old, with, 1))); CodeOf(err) != Invalid {
			t.Errorf("%s instead of %s: got %v, want a refusal", with, old, err)
		}
	}
	for _, text := range []string{"", "null", "{}", `{"format":1,"tolerance":{},"cases":[]}`, goldenExample + "{}"} {
		if _, err := ParseGolden([]byte(text)); CodeOf(err) != Invalid {
			t.Errorf("%q: got %v, want a refusal", text, err)
		}
	}
	score := `{"format":1,"tolerance":{"absolute":0,"relative":0},"route":"score","cases":[{"name":"a","request":[1],"response":"x"}]}`
	g, err = ParseGolden([]byte(score))
	if err != nil || g.CheckFor(VariantPython) != nil || CodeOf(g.CheckFor(VariantONNX)) != Invalid {
		t.Errorf("of a script: %+v, %v", g, err)
	}
	for _, text := range []string{strings.Replace(score, "score", "ping", 1), strings.Replace(score, `,"response":"x"`, "", 1)} {
		if _, err := ParseGolden([]byte(text)); CodeOf(err) != Invalid {
			t.Errorf("%q: got %v, want a refusal", text, err)
		}
	}
	if _, err := ParseGolden(make([]byte, MaxGoldenSize+1)); CodeOf(err) != TooLarge {
		t.Errorf("a large one: got %v", err)
	}
}

// FuzzParseGolden holds what is accepted to its bounds, and to coming back the same.
func FuzzParseGolden(f *testing.F) {
	f.Add([]byte(goldenExample))
	f.Add([]byte(`{"format":1,"tolerance":{"absolute":1e999,"relative":0},"cases":[{"name":"a","request":{},"response":{}}]}`))
	f.Add([]byte(`{"format":1,"tolerance":{"absolute":0,"relative":0},"route":"score","cases":[{"name":"a","request":null,"response":0}]}`))
	f.Add([]byte(`{"format":1,"tolerance":null,"latency_ms":0.5,"cases":[{"name":"a","request":{"a":[{}]},"response":{}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := ParseGolden(b)
		if err != nil {
			return
		}
		if len(g.Cases) == 0 || g.Latency() < 0 || g.Tolerance.Absolute < 0 {
			t.Fatalf("accepted %+v", g)
		}
		text, err := json.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseGolden(text)
		if err != nil {
			t.Fatalf("%s came from %s and is refused: %v", text, b, err)
		}
		second, err := json.Marshal(again)
		if err != nil || !reflect.DeepEqual(text, second) {
			t.Fatalf("%s came back as %s, %v", text, second, err)
		}
	})
}
