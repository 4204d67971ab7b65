package gateway

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/grpc"
)

// inferAnswer writes a ModelInferResponse with one output.
func inferAnswer(w http.ResponseWriter, value float32) {
	field := func(b []byte, n protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), value)
	}
	output := field(field(nil, 1, []byte("y")), 2, []byte("FP32"))
	output = protowire.AppendVarint(protowire.AppendTag(output, 3, protowire.VarintType), 1)
	message := field(make([]byte, grpc.Prefix), 5, output)
	message = field(message, 6, binary.LittleEndian.AppendUint32(nil, math.Float32bits(value)))
	grpc.Finish(message)
	grpc.Begin(w)
	_, _ = w.Write(message)
	grpc.End(w)
}

// A shadow gets copies of calls of ModelInfer, and what it answers otherwise is counted;
// other calls, those for one version and those that are too large are not compared.
func TestShadowOfCalls(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	one := d.grpcModule("one", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		inferAnswer(w, 1)
	})
	two := d.grpcModule("two", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Header.Get("X-Api-Key") != "" {
			t.Error("the shadow got the key")
		}
		if bytes.Contains(body, []byte("odd")) {
			inferAnswer(w, 2)
			return
		}
		inferAnswer(w, 1.0001)
	})
	two.Version = 2
	d.beside(one, two, shadowSplit(atelier.Tolerance{Absolute: 0.01}))
	client := caller(t)
	infer := func(path, id, version string) {
		message := make([]byte, grpc.Prefix)
		for n, text := range map[protowire.Number]string{1: "m", 2: version, 3: id} {
			message = protowire.AppendString(protowire.AppendTag(message, n, protowire.BytesType), text)
		}
		grpc.Finish(message)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.url+path, bytes.NewReader(message))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("X-Api-Key", key)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close() // it was read
		if err != nil || resp.Trailer.Get(grpc.StatusField) != "0" || !bytes.HasSuffix(body, binary.LittleEndian.AppendUint32(nil, math.Float32bits(1))) {
			t.Fatalf("%s: %v, trailers %v, %x", id, err, resp.Trailer, body)
		}
	}
	told := func(compared, disagreed, dropped uint64) {
		t.Helper()
		until(t, "the copies were compared", func() bool {
			s := d.of(two).Shadow
			return s != nil && s.Compared == compared && s.Disagreed == disagreed && s.Dropped == dropped && s.Errors == 0
		})
	}
	infer(inferCall, "even", "")
	told(1, 0, 0)
	infer(inferCall, "odd", "")
	told(2, 1, 0)
	infer(inferCall, "odd", "1")
	infer("/inference.GRPCInferenceService/ModelMetadata", "odd", "")
	infer(inferCall, strings.Repeat("odd ", maxCall/4), "")
	told(2, 1, 1)
	s := d.of(two).Shadow.Samples
	if len(s) != 1 || s[0].Difference != "outputs.y[0] is 1, the shadow's 2" || s[0].Path != inferCall || !strings.HasPrefix(s[0].Shadow, "a message of ") {
		t.Errorf("the disagreement is told as %+v", s)
	}
}
