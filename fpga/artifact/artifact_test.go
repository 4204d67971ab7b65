package artifact_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/artifact"
	"github.com/atelier-edge/atelier/fpga/artifact/artifacttest"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/bitstream/bitstreamtest"
	"github.com/atelier-edge/atelier/internal/trust"
)

var uuid = artifact.UUID{15: 9}

func TestOverlayIsSigned(t *testing.T) {
	t.Parallel()
	image := bitstreamtest.ICE40("hx8k", 3)
	model, encoded := artifacttest.Model(t, uuid, 1)
	_ = model
	o := artifacttest.Overlay(bitstream.ICE40, "hx8k", uuid, image, encoded)
	signer, keys := artifacttest.Key(t)
	envelope, err := o.Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	got, err := artifact.Open(envelope, keys)
	if err != nil || *got != *o {
		t.Fatalf("%+v, %v; want %+v", got, err, o)
	}
	if err := got.CheckDigest(image); err != nil {
		t.Error(err)
	}
	if err := got.CheckImage(image); err != nil {
		t.Error(err)
	}
	_, foreign := artifacttest.Key(t)
	if _, err := artifact.Open(envelope, foreign); trust.WhyOf(err).Reason() != atelier.ReasonKeyUnknown {
		t.Errorf("a foreign key: %v", err)
	}
	other, err := trust.Sign(trust.TypeRoot, []byte("{}"), signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := artifact.Open(other, keys); err == nil || !strings.Contains(err.Error(), "carries") {
		t.Errorf("another payload: %v", err)
	}
}

func TestOverlayRefuses(t *testing.T) {
	t.Parallel()
	image := bitstreamtest.ICE40("hx8k", 3)
	_, encoded := artifacttest.Model(t, uuid, 1)
	good := artifacttest.Overlay(bitstream.ICE40, "hx8k", uuid, image, encoded)
	for says, change := range map[string]func(o *artifact.Overlay){
		"format 2":                   func(o *artifact.Overlay) { o.Format = 2 },
		"version 7":                  func(o *artifact.Overlay) { o.ISA = 7 },
		"lacks part":                 func(o *artifact.Overlay) { o.Part = "" },
		"lacks overlay":              func(o *artifact.Overlay) { o.UUID = artifact.UUID{} },
		"lacks size":                 func(o *artifact.Overlay) { o.Size = 0 },
		"lacks fmax_mhz":             func(o *artifact.Overlay) { o.FmaxMHz = 0 },
		"no good digest":             func(o *artifact.Overlay) { o.Digest = "sha256:1" },
		"no good golden":             func(o *artifact.Overlay) { o.Golden = "" },
		"possible are 4, 8, 16":      func(o *artifact.Overlay) { o.Geometry.Lanes = 3 },
		"manifest says 118681":       func(o *artifact.Overlay) { o.Size++ },
		"digest ":                    func(o *artifact.Overlay) { o.Digest = o.Golden },
		"bitstream's part is hx8k":   func(o *artifact.Overlay) { o.Part = "up5k" },
		"bitstream's encoding is ic": func(o *artifact.Overlay) { o.Encoding = bitstream.GBS },
		"bitstream's shell is 0000":  func(o *artifact.Overlay) { o.Shell = artifact.UUID{1} },
	} {
		o := *good
		change(&o)
		err := o.Check()
		if err == nil {
			err = o.CheckDigest(image)
		}
		if err == nil {
			err = o.CheckImage(image)
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want an error that says %q", err, says)
		}
	}
	text, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{string(text) + "{}", strings.Replace(string(text), `"isa"`, `"is_a"`, 1), strings.ToUpper(string(text)), ""} {
		if _, err := artifact.ParseOverlay([]byte(bad)); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%.60q: %v", bad, err)
		}
	}
}

func TestTarget(t *testing.T) {
	t.Parallel()
	o := &artifact.Overlay{Part: "a", IDCode: 5, Shell: artifact.UUID{1}}
	for target, fits := range map[artifact.Target]bool{
		{Part: "a", IDCode: 5, Shell: artifact.UUID{1}}: true, {Part: "a", Shell: artifact.UUID{1}}: true,
		{Part: "b", IDCode: 5, Shell: artifact.UUID{1}}: false, {Part: "a", IDCode: 6, Shell: artifact.UUID{1}}: false,
		{Part: "a", IDCode: 5}: false, {Part: "a", IDCode: 5, Shell: artifact.UUID{2}}: false,
	} {
		if err := o.CheckTarget(target); (err == nil) != fits || err != nil && atelier.CodeOf(err) != atelier.Conflict {
			t.Errorf("%+v: %v", target, err)
		}
	}
}

func TestModel(t *testing.T) {
	t.Parallel()
	m, b := artifacttest.Model(t, uuid, 1)
	got, err := artifact.ParseModel(b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := got.Encode()
	if err != nil || !bytes.Equal(again, b) {
		t.Errorf("a model is read and written otherwise: %v", err)
	}
	if got.Overlay != uuid || got.Program.Input != m.Program.Input || got.Shape != m.Shape || !slices.Equal(got.Program.Weights, m.Program.Weights) || len(got.Golden) != len(m.Golden) {
		t.Errorf("%+v, want %+v", got, m)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"empty": func([]byte) []byte { return nil }, "torn": func(b []byte) []byte { return b[:len(b)/2] }, "longer": func(b []byte) []byte { return append(b, 0) },
		"a weight":      func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"header length": func(b []byte) []byte { binary.LittleEndian.PutUint32(b[8:], 1<<31); return b },
		"magic":         func(b []byte) []byte { b[0] = 0; return b },
		"cycles":        func(b []byte) []byte { return bytes.Replace(b, []byte(`"cycles":`), []byte(`"cycles":1`), 1) },
	} {
		if _, err := artifact.ParseModel(damage(bytes.Clone(b))); err == nil {
			t.Errorf("%s: it was read", name)
		}
	}
	for says, change := range map[string]func(m *artifact.Model){
		"predicted to take":      func(m *artifact.Model) { m.Cycles++ },
		"names no overlay":       func(m *artifact.Model) { m.Overlay = artifact.UUID{} },
		"scale of":               func(m *artifact.Model) { m.In.Scale = 0 },
		"tolerance":              func(m *artifact.Model) { m.Tolerance.Absolute = -1 },
		"0 golden inputs":        func(m *artifact.Model) { m.Golden = nil },
		"golden input 0 has 1":   func(m *artifact.Model) { m.Golden = slices.Clone(m.Golden); m.Golden[0].Input = []int8{1} },
		"signature has 0 inputs": func(m *artifact.Model) { m.Signature.Inputs = nil },
		"unknown":                func(m *artifact.Model) { m.Outputs = slices.Clone(m.Outputs); m.Outputs[0].Kind = "x" },
		"on a CPU": func(m *artifact.Model) {
			m.Golden = slices.Clone(m.Golden)
			m.Golden[0].CPU = map[string][]float64{"no": {1}}
		},
	} {
		bad := *m
		change(&bad)
		if _, err := bad.Encode(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want an error that says %q", err, says)
		}
	}
}

func FuzzParseOverlay(f *testing.F) {
	_, encoded := artifacttest.Model(f, uuid, 1)
	o := artifacttest.Overlay(bitstream.ICE40, "hx8k", uuid, bitstreamtest.ICE40("hx8k", 3), encoded)
	o.IDCode, o.Shell = 0x0362d093, artifact.UUID{1}
	b, err := json.Marshal(o)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := artifact.ParseOverlay(b)
		if err != nil {
			return
		}
		text, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := artifact.ParseOverlay(text); err != nil || *again != *o {
			t.Errorf("%s is read as %+v and written otherwise: %v", b, o, err)
		}
	})
}

func FuzzParseModel(f *testing.F) {
	_, b := artifacttest.Model(f, uuid, 1)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := artifact.ParseModel(b)
		if err != nil {
			return
		}
		text, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := artifact.ParseModel(text); err != nil {
			t.Error(err)
		}
	})
}
