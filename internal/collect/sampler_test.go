package collect

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// sampling starts a sampler and connects as its agent does.
func startSampler(t *testing.T, c atelier.Collection) (*Sampler, Agent) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewSampler(slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Second)
		defer cancel()
		s.Close(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	if s.Begin(DialectV2, "x") != nil {
		t.Error("a request is recorded though nobody asked for it")
	}
	return s, connect(t, s, path, c)
}

func connect(t *testing.T, s *Sampler, path string, c atelier.Collection) Agent {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	a := NewAgent(conn)
	configure(t, s, a, c)
	return a
}

func configure(t *testing.T, s *Sampler, a Agent, c atelier.Collection) {
	t.Helper()
	if err := a.Configure(c); err != nil {
		t.Fatal(err)
	}
	for {
		if now := s.settings.Load(); now != nil && now.Share == c.Share && slices.Equal(now.Mask, c.Mask) {
			return
		}
		if t.Context().Err() != nil {
			t.Fatal("the settings never came into force")
		}
		time.Sleep(time.Millisecond) // the sampler tells nobody
	}
}

func next(t *testing.T, a Agent) Record {
	t.Helper()
	b, _, err := a.Next()
	if err != nil {
		t.Fatal(err)
	}
	r, err := DecodeRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTensorsAreMaskedAndCut(t *testing.T) {
	t.Parallel()
	s, a := startSampler(t, atelier.Collection{Share: 1, Mask: []string{"inputs.secret", "outputs.*"}})
	x := s.Begin(DialectV2, strings.Repeat("r", 500))
	large := make([]byte, MaxData+400)
	x.Input(Tensor{Name: "secret", Type: "FP32", Shape: []int64{1}, Data: []byte("abcd")})
	for _, name := range []string{"a", "b", "c", "d"} {
		x.Input(Tensor{Name: name, Type: "FP64", Shape: []int64{int64(len(large) / 8)}, Data: large})
	}
	x.Input(Tensor{Name: "texts", Type: "BYTES", Shape: []int64{2}, Strings: []string{"", strings.Repeat("x", MaxData)}})
	x.Output(Tensor{Name: "y", Type: "INT64", Shape: []int64{1}, Data: []byte("12345678")})
	x.End(503)
	r := next(t, a)
	if r.Status != 503 || len(r.Request) != maxID || len(r.Inputs) != 6 {
		t.Fatalf("the record is %+v", r)
	}
	if v := r.Inputs[0]; !v.Masked || len(v.Data) != 0 || v.Shape[0] != 1 {
		t.Errorf("the masked input is %+v", v)
	}
	if v := r.Outputs[0]; !v.Masked || len(v.Data) != 0 {
		t.Errorf("the masked output is %+v", v)
	}
	if v := r.Inputs[1]; !v.Cut || len(v.Data) != MaxData {
		t.Errorf("the first large input has %d bytes, cut: %v", len(v.Data), v.Cut)
	}
	if v := r.Inputs[5]; !v.Cut {
		t.Errorf("the strings are %+v", v)
	}
}

func TestTextsAreMasked(t *testing.T) {
	t.Parallel()
	s, a := startSampler(t, atelier.Collection{Share: 1})
	for _, c := range []struct{ mask, body, want string }{
		{"", `{"b": 1, "a": {"x": 2}}`, `a={"x": 2} b=1`},
		{"", `[1, 2]`, `body=[1, 2]`},
		{"", "\xff", `body masked`},
		{"inputs.a", `{"b": 1, "a": {"x": 2}}`, `a masked b=1`},
		{"inputs.*", `{"b": 1}`, `b masked`},
		{"inputs.a.x", `{"a": {"x": "secret", "y": 1}}`, `a={"y":1}`},
		{"inputs.a.x", `{"a": [{"x": "secret"}, [{"x": "secret", "y": 2}]]}`, `a=[{},[{"y":2}]]`},
		{"inputs.a.x.z", `{"a": {"x.z": "secret", "x": {"z": "secret", "w": 12345678901234567890}}}`, `a={"x":{"w":12345678901234567890}}`},
		{"inputs.a.b", `{"a.b": "secret", "a": {"b": "secret"}}`, `a={} a.b masked`},
		{"inputs.a.x.*", `{"a": {"x": {"y": "secret"}, "z": 1}}`, `a={"z":1}`},
		{"inputs.a", `[{"a": "secret"}]`, `body masked`},
		{"inputs.a", `"{\"a\": \"secret\"}"`, `body masked`},
		{"outputs.a", `[1]`, `body=[1]`},
		{"inputs.a", `{"a": "secret"`, `body masked`},
	} {
		settings := atelier.Collection{Share: 1}
		if c.mask != "" {
			settings.Mask = []string{c.mask}
		}
		configure(t, s, a, settings)
		x := s.Begin(DialectScript, "r")
		x.InputText([]byte(c.body))
		x.End(200)
		var words []string
		for _, v := range next(t, a).Inputs {
			if v.Masked {
				words = append(words, v.Name+" masked")
			} else {
				words = append(words, v.Name+"="+string(v.Data))
			}
		}
		if got := strings.Join(words, " "); got != c.want {
			t.Errorf("%s without %s is recorded as %s, expected was %s", c.body, c.mask, got, c.want)
		}
	}
}

// An agent that does not read slows nobody: what it does not take is dropped and counted.
func TestNobodyWaitsForTheAgent(t *testing.T) {
	t.Parallel()
	s, a := startSampler(t, atelier.Collection{Share: 1})
	const sent = 2000
	body := make([]byte, 16<<10)
	for range sent {
		x := s.Begin(DialectV2, "r")
		x.Input(Tensor{Name: "x", Type: "UINT8", Shape: []int64{int64(len(body))}, Data: body})
		x.End(200)
	}
	// Until the end, which tells how many it dropped.
	var came, dropped uint64
	for {
		if s.bytes.Load() == 0 {
			s.Begin(DialectV2, "end").End(200)
		}
		b, n, err := a.Next()
		if err != nil {
			t.Fatal(err)
		}
		dropped += n
		if b == nil {
			continue
		}
		r, err := DecodeRecord(b)
		if err != nil {
			t.Fatal(err)
		}
		if r.Request == "end" {
			break
		}
		came++
	}
	if dropped == 0 || came+dropped != sent {
		t.Errorf("%d came and %d were dropped of %d", came, dropped, sent)
	}
}

func TestTheShareIsKept(t *testing.T) {
	t.Parallel()
	s, _ := startSampler(t, atelier.Collection{Share: 0.25})
	chosen := 0
	const all = 40000
	for range all {
		if s.Begin(DialectV2, "r") != nil {
			chosen++
		}
	}
	if chosen < all*23/100 || chosen > all*27/100 { // 9 standard deviations
		t.Errorf("%d of %d were chosen", chosen, all)
	}
}

// A model server may end before its sampler has begun to listen.
func TestClosedBeforeServed(t *testing.T) {
	t.Parallel()
	s := NewSampler(slog.New(slog.DiscardHandler))
	l, err := Listen(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s.Close(t.Context())
	if err := s.Serve(l); err != nil {
		t.Error(err)
	}
}
