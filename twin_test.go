package atelier

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestMergePatch(t *testing.T) {
	t.Parallel()
	for _, c := range [][3]string{
		{`{"a":"b"}`, `{"a":"c"}`, `{"a":"c"}`}, {`{"a":"b"}`, `{"b":"c"}`, `{"a":"b","b":"c"}`}, {`{"a":"b"}`, `{"a":null}`, `{}`},
		{`{"a":"b","b":"c"}`, `{"a":null}`, `{"b":"c"}`}, {`{"a":["b"]}`, `{"a":"c"}`, `{"a":"c"}`}, {`{"a":"c"}`, `{"a":["b"]}`, `{"a":["b"]}`},
		{`{"a":{"b":"c"}}`, `{"a":{"b":"d","c":null}}`, `{"a":{"b":"d"}}`}, {`{"a":[{"b":"c"}]}`, `{"a":[1]}`, `{"a":[1]}`}, {`{"e":null}`, `{"a":1}`, `{"a":1,"e":null}`},
		{`{}`, `{"a":{"bb":{"ccc":null}}}`, `{"a":{"bb":{}}}`}, {``, `{"n":1e400,"m":12345678901234567890}`, `{"m":12345678901234567890,"n":1e400}`}, {`{"a":1}`, `{"a":{"b":2}}`, `{"a":{"b":2}}`},
		{`{}`, `{"<":"&"}`, `{"<":"&"}`},
	} {
		got, err := MergePatch(json.RawMessage(c[0]), json.RawMessage(c[1]))
		if err != nil || string(got) != c[2] {
			t.Errorf("%s with %s is %s, %v, want %s", c[0], c[1], got, err, c[2])
		}
	}
	for patch, code := range map[string]Code{
		`[]`: Invalid, `null`: Invalid, `1`: Invalid, ``: Invalid, `{}{}`: Invalid, `{"a":`: Invalid,
		strings.Repeat(`{"a":`, 11) + `1` + strings.Repeat(`}`, 11): Invalid,
		`{"a":"` + strings.Repeat("x", MaxTwin) + `"}`:              TooLarge,
		`{"a":"` + strings.Repeat("x", 3*MaxTwin) + `"}`:            TooLarge,
	} {
		if got, err := MergePatch(nil, json.RawMessage(patch)); CodeOf(err) != code {
			t.Errorf("%.40s: %.40s, %v, want %s", patch, got, err, code)
		}
	}
}

func FuzzMergePatch(f *testing.F) {
	f.Add([]byte(`{"a":{"b":1}}`), []byte(`{"a":{"b":null,"c":[{}]}}`))
	f.Add([]byte(``), []byte(`{"a":1e9999}`))
	f.Fuzz(func(t *testing.T, properties, patch []byte) {
		got, err := MergePatch(properties, patch)
		if err != nil {
			return
		}
		if len(got) > MaxTwin || !json.Valid(got) {
			t.Fatalf("%q", got)
		}
		again, err := MergePatch(got, patch)
		if err != nil || string(again) != string(got) {
			t.Errorf("%s, and once more %s, %v", got, again, err)
		}
	})
}
