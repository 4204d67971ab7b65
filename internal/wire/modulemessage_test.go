package wire

import (
	"reflect"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func sampleMessages() []ModuleMessage {
	return []ModuleMessage{
		{Kind: FromOutput, Module: "camera", Output: "frames", Time: 1_700_000_000_000, TTL: 60, ContentType: "image/png", Properties: []Property{{"a", "ä"}, {"a", ""}}, Payload: []byte{0, 1, 255}},
		{Kind: FromTwin, Module: "a", Version: 7, Payload: []byte(`{"x":1}`)},
		{Kind: FromOutput, Module: "b", Output: "o", Payload: []byte{}},
	}
}

func encodeMessages(t testing.TB, list []ModuleMessage) (b []byte) {
	t.Helper()
	for i := range list {
		var err error
		if b, err = AppendMessages(b, &list[i]); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func TestMessages(t *testing.T) {
	t.Parallel()
	want := sampleMessages()
	b := encodeMessages(t, want)
	got, err := DecodeMessages(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for n := range b {
		if got, err := DecodeMessages(b[:n]); err == nil && len(got) >= len(want) {
			t.Errorf("cut at %d it reads as %+v", n, got)
		}
	}
	for _, m := range []ModuleMessage{
		{Kind: 3, Module: "a", Output: "o"}, {Kind: FromOutput, Module: "A", Output: "o"}, {Kind: FromOutput, Module: "a", Output: "o/p"}, {Kind: FromTwin, Module: "a", Output: "o"},
		{Kind: FromOutput, Module: "a", Output: "o", Payload: make([]byte, MaxMessagePayload+1)}, {Kind: FromOutput, Module: "a", Output: "o", Time: -1},
		{Kind: FromOutput, Module: "a", Output: "o", Properties: make([]Property, 33)}, {Kind: FromOutput, Module: "a", Output: "o", ContentType: "\xff"},
		{Kind: FromOutput, Module: "a", Output: "o", Properties: []Property{{"k", strings.Repeat("v", 9000)}}},
	} {
		if _, err := AppendMessages(nil, &m); err == nil {
			t.Errorf("%.200v was taken", m)
		}
	}
	if _, err := DecodeMessages([]byte{2}); atelier.CodeOf(err) != atelier.Unsupported {
		t.Errorf("another version: %v", err)
	}
	largest := ModuleMessage{Kind: FromOutput, Module: strings.Repeat("m", 63), Output: strings.Repeat("o", 63), Time: maxWall, TTL: 1<<32 - 1, Version: 1<<63 - 1, Payload: make([]byte, MaxMessagePayload)}
	for range 32 {
		largest.Properties = append(largest.Properties, Property{strings.Repeat("k", 128), strings.Repeat("v", 128)})
	}
	if b, err := AppendMessages(nil, &largest); err != nil || len(b) > MaxTelemetryPayload {
		t.Errorf("the largest has %d bytes, %v; a frame takes %d", len(b), err, MaxTelemetryPayload)
	}
}

func FuzzDecodeMessages(f *testing.F) {
	f.Add(encodeMessages(f, sampleMessages()))
	f.Add([]byte{1})
	f.Add([]byte{1, 1, 0, 0, 0, 1, 'a', 1, 'o', 0, 255, 255, 255, 255, 15})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := DecodeMessages(b)
		if err != nil {
			return
		}
		again, err := DecodeMessages(encodeMessages(t, list))
		if err != nil || !reflect.DeepEqual(again, list) {
			t.Errorf("%+v reads again as %+v, %v", list, again, err)
		}
	})
}
