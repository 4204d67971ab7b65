package wire_test

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/wire"
)

var updateTelemetry = flag.Bool("update-telemetry", false, "write the telemetry frame's golden file anew")

func telemetryFrame() wire.TelemetryFrame {
	return wire.TelemetryFrame{
		Stream: "01jz3v4c5d6e7f8g9h0j1k2m3n", Sequence: 12, Previous: 10,
		Taken: wire.Clock{BootID: "4a6f0f5e-8a52-4a5a-9d0c-2f6f7f3e9b11", Monotone: 90 * time.Second, Wall: time.UnixMilli(1700000000123).UTC()},
		Sent:  wire.Clock{BootID: "b", Monotone: 5 * time.Second, Wall: time.UnixMilli(-1).UTC()}, Encoding: wire.Snappy,
		Payload: []byte("payload"),
	}
}

func TestTelemetryFrameGolden(t *testing.T) {
	t.Parallel()
	f := telemetryFrame()
	b, err := f.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "telemetry.hex")
	if *updateTelemetry {
		if err := os.WriteFile(golden, []byte(hex.EncodeToString(b)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("the form of version 1 has changed: got %x", b)
	}
	got, err := wire.DecodeTelemetry(want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, f) {
		t.Errorf("got %+v, want %+v", got, f)
	}
}

func TestTelemetryFrameRefuses(t *testing.T) {
	t.Parallel()
	f := telemetryFrame()
	good, err := f.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good { // no single flipped bit passes
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := wire.DecodeTelemetry(bad); err == nil {
			t.Errorf("byte %d was changed and nobody noticed", i)
		}
	}
	for n := range good {
		if _, err := wire.DecodeTelemetry(good[:n]); err == nil {
			t.Errorf("a frame of %d bytes instead of %d was taken", n, len(good))
		}
	}
	for name, c := range map[string]struct {
		change func(*wire.TelemetryFrame)
		code   atelier.Code
	}{
		"no stream":            {func(f *wire.TelemetryFrame) { f.Stream = "" }, atelier.Invalid},
		"sequence 0":           {func(f *wire.TelemetryFrame) { f.Sequence, f.Previous = 0, 0 }, atelier.Invalid},
		"previous is itself":   {func(f *wire.TelemetryFrame) { f.Previous = 12 }, atelier.Invalid},
		"an unknown encoding":  {func(f *wire.TelemetryFrame) { f.Encoding = 9 }, atelier.Unsupported},
		"a long boot id":       {func(f *wire.TelemetryFrame) { f.Sent.BootID = strings.Repeat("x", 65) }, atelier.Invalid},
		"time before boot":     {func(f *wire.TelemetryFrame) { f.Sent.Monotone = -1 }, atelier.Invalid},
		"the year 292 million": {func(f *wire.TelemetryFrame) { f.Taken.Wall = time.UnixMilli(1 << 62) }, atelier.Invalid},
		"too much payload":     {func(f *wire.TelemetryFrame) { f.Payload = make([]byte, wire.MaxPacket) }, atelier.TooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := telemetryFrame()
			c.change(&f)
			if b, err := f.Encode(nil); atelier.CodeOf(err) != c.code || len(b) != 0 {
				t.Fatalf("got %d bytes, %v; want code %s", len(b), err, c.code)
			}
		})
	}
}

func TestTelemetryPayloadLimitFits(t *testing.T) {
	t.Parallel()
	f := telemetryFrame()
	f.Taken.BootID, f.Sent.BootID = strings.Repeat("x", 64), strings.Repeat("y", 64)
	f.Payload = make([]byte, wire.MaxTelemetryPayload)
	b, err := f.Encode(nil)
	if err != nil || len(b) != wire.MaxPacket {
		t.Fatalf("got %d bytes, %v; want %d", len(b), err, wire.MaxPacket)
	}
}

func FuzzDecodeTelemetry(f *testing.F) {
	frame := telemetryFrame()
	b, err := frame.Encode(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:50])
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := wire.DecodeTelemetry(b)
		if err != nil {
			return
		}
		again, err := frame.Encode(nil)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("read %+v, wrote %x, %v", frame, again, err)
		}
	})
}
