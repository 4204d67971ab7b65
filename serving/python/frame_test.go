package python

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	atelier "github.com/atelier-edge/atelier"
)

func number(kind byte) uint16 {
	if kind == kindRequest || kind == kindAnswer {
		return 0x1234
	}
	return 0
}

func encode(t testing.TB, kind byte, meta any, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeFrame(&b, kind, number(kind), meta, body); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestFrames(t *testing.T) {
	t.Parallel()
	large := bytes.Repeat([]byte("0123456789"), 400_000)
	for _, body := range [][]byte{{}, []byte("x"), large} {
		raw := encode(t, kindAnswer, Answer{Status: 200}, body)
		f, err := readFrame(iotest.OneByteReader(bytes.NewReader(raw[:len(raw)-len(body)])))
		if len(body) == 0 {
			if err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("a frame without its body: %v", err)
		}
		if f, err = readFrame(bytes.NewReader(raw)); err != nil || f.kind != kindAnswer || f.number != 0x1234 || !bytes.Equal(f.body, body) {
			t.Errorf("a frame with a body of %d bytes came back with %d, %v", len(body), len(f.body), err)
		}
		var a Answer
		if err := f.decode(&a); err != nil || a.Status != 200 {
			t.Errorf("its meta came back as %+v, %v", a, err)
		}
	}
}

func TestMalformedFrames(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		head []byte
		code atelier.Code
	}{
		"version":    {[]byte{2, kindAnswer, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, atelier.Invalid},
		"kind":       {[]byte{1, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, atelier.Invalid},
		"number":     {[]byte{1, kindReady, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0}, atelier.Invalid},
		"large meta": {[]byte{1, kindAnswer, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, atelier.Invalid},
		"large body": {[]byte{1, kindAnswer, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, atelier.TooLarge},
		"no bytes":   {[]byte{1, kindAnswer, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0f}, atelier.Internal},
	} {
		if _, err := readFrame(bytes.NewReader(c.head)); atelier.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := writeFrame(io.Discard, kindRequest, 1, requestMeta{Query: string(make([]byte, maxMeta))}, nil); atelier.CodeOf(err) != atelier.TooLarge {
		t.Errorf("a request with a meta that is too large: %v", err)
	}
}

// Whatever a worker sends is taken as a frame or refused, and a frame that was
// taken is written as it came.
func FuzzReadFrame(f *testing.F) {
	f.Add(encode(f, kindReady, about{Raw: true}, nil))
	f.Add(encode(f, kindFailed, failedMeta{Stage: "init", Error: "x"}, nil))
	f.Add(encode(f, kindAnswer, Answer{Status: 200, Headers: [][2]string{{"A", "b"}}, Took: 0.5}, []byte("body")))
	f.Add([]byte{1, kindAnswer, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0x0f, '{', '}'})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := readFrame(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if n := headSize + len(got.meta) + len(got.body); n > len(raw) {
			t.Fatalf("a frame of %d bytes was read from %d", n, len(raw))
		}
		if !bytes.Equal(raw[headSize:headSize+len(got.meta)], got.meta) || !bytes.HasPrefix(raw[headSize+len(got.meta):], got.body) {
			t.Fatal("the frame is not what came")
		}
		var a Answer
		var ab about
		_, _ = got.decode(&a), got.decode(&ab) // they must not panic
	})
}

func TestEnds(t *testing.T) {
	t.Parallel()
	for _, step := range []int{1, 7, 1000, 1 << 20} {
		var all []byte
		for i := range 20_000 {
			all = append(all, byte('a'+i%26))
		}
		e := ends{}
		for rest := all; len(rest) > 0; {
			n := min(step, len(rest))
			e.add(rest[:n])
			rest = rest[n:]
		}
		got := e.String()
		if want := string(all[:keptHead]) + "\n[16928 bytes left out]\n" + string(all[len(all)-keptTail:]); got != want {
			t.Errorf("in steps of %d: %d bytes, want %d", step, len(got), len(want))
		}
	}
}
