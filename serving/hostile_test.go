package serving_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/atelier-edge/atelier/serving"
)

// length is an element's length in the binary form of BYTES.
func length(n uint32) string { return string(binary.LittleEndian.AppendUint32(nil, n)) }

// TestHostileBinary sends binary tensors that are not what they say they are.
func TestHostileBinary(t *testing.T) {
	t.Parallel()
	h := handler(newMirror(spec(serving.FP32, -1, 2), spec(serving.Bytes, -1)), 0)
	numbers := func(shape string, size int) string {
		return fmt.Sprintf(`{"name":"in0","shape":%s,"datatype":"FP32","parameters":{"binary_data_size":%d}}`, shape, size)
	}
	texts := func(shape string, size int) string {
		return fmt.Sprintf(`{"name":"in1","shape":%s,"datatype":"BYTES","parameters":{"binary_data_size":%d}}`, shape, size)
	}
	const eight = "12345678"
	for name, c := range map[string]struct {
		inputs, tail string
		field, says  string
	}{
		"cut":                    {numbers("[1,2]", 8) + "," + texts("[1]", 5), eight, "inputs[1].parameters.binary_data_size", "only 0 bytes are left"},
		"cut within":             {numbers("[1,2]", 8) + "," + texts("[1]", 5), eight + length(1), "inputs[1].parameters.binary_data_size", "only 4 bytes are left"},
		"more":                   {numbers("[1,2]", 8) + "," + texts("[1]", 5), eight + length(1) + "ab", "", "1 bytes follow"},
		"too short for shape":    {numbers("[2,2]", 8) + "," + texts("[1]", 5), eight + length(1) + "a", "inputs[0].parameters.binary_data_size", "needs 16 bytes"},
		"no whole element":       {numbers("[1,2]", 7) + "," + texts("[1]", 5), eight[1:] + length(1) + "a", "inputs[0].parameters.binary_data_size", "needs 8 bytes"},
		"size negative":          {numbers("[1,2]", -8) + "," + texts("[1]", 5), eight + length(1) + "a", "inputs[0].parameters.binary_data_size", "a number of bytes was expected"},
		"size enormous":          {numbers("[1,2]", math.MaxInt64) + "," + texts("[1]", 5), eight + length(1) + "a", "inputs[0].parameters.binary_data_size", ""},
		"length lies":            {numbers("[1,2]", 8) + "," + texts("[1]", 5), eight + length(2) + "a", "inputs[1]", "element 0 is longer than what is left"},
		"length lies enormously": {numbers("[1,2]", 8) + "," + texts("[1]", 5), eight + length(math.MaxUint32) + "a", "inputs[1]", "element 0 is longer than what is left"},
		"second length lies":     {numbers("[1,2]", 8) + "," + texts("[2]", 10), eight + length(1) + "a" + length(1<<31) + "b", "inputs[1]", "element 1 is longer than what is left"},
		"torn length":            {numbers("[1,2]", 8) + "," + texts("[2]", 7), eight + length(1) + "a" + "\x00\x00", "inputs[1]", "element 1 is longer than what is left"},
		"too few texts":          {numbers("[1,2]", 8) + "," + texts("[2]", 5), eight + length(1) + "a", "inputs[1]", "holds 1 strings, shape [2] needs 2"},
		"too many texts":         {numbers("[1,2]", 8) + "," + texts("[1]", 8), eight + length(0) + length(0), "inputs[1]", "holds 2 strings, shape [1] needs 1"},
		"no texts":               {numbers("[1,2]", 8) + "," + texts("[1]", 0), eight, "inputs[1]", "holds 0 strings, shape [1] needs 1"},
	} {
		head := `{"inputs":[` + c.inputs + `]}`
		code, answer, w := ask(h, "POST", inferPath, head+c.tail, "Inference-Header-Content-Length", fmt.Sprint(len(head)))
		message, _ := answer["error"].(string)
		field, _ := answer["field"].(string)
		if code != 400 || !strings.Contains(message, c.says) || message == "" || c.field != "" && field != c.field {
			t.Errorf("%s: %d %s, want 400 at %q, saying %q", name, code, w.Body, c.field, c.says)
		}
	}
	head := `{"inputs":[` + numbers("[1,2]", 8) + "," + texts("[2]", 9) + `]}`
	if code, _, w := ask(h, "POST", inferPath, head+eight+length(0)+length(1)+"a", "Inference-Header-Content-Length", fmt.Sprint(len(head))); code != 200 {
		t.Errorf("after all that, a sound request is answered with %d %s", code, w.Body)
	}
}

// TestHugeDimensions asks for tensors of gigabytes in a few bytes: it is refused
// before anything of that size is allocated.
func TestHugeDimensions(t *testing.T) { // not parallel: it counts what is allocated
	texts := handler(newMirror(spec(serving.Bytes, -1, -1)), 0)
	numbers := handler(newMirror(spec(serving.FP64, -1, -1)), 0)
	const few = `[1,2]`
	for _, shape := range []string{
		"[268435456,1]", "[1,268435456]", "[16384,16384]", "[268435457,1]", "[4294967296,4294967296]", "[9223372036854775807,9223372036854775807]",
		"[-1,-1]", "[-9223372036854775808,2]", "[18446744073709551616,1]", "[1e300,1]", "[0,9223372036854775807]",
	} {
		for form, body := range map[string]string{
			"JSON":   `{"inputs":[{"name":"in0","shape":` + shape + `,"datatype":"%s","data":` + few + `}]}`,
			"blank":  `{"inputs":[{"name":"in0","shape":` + shape + `,"datatype":"%s","data":[` + strings.Repeat(" ", 1<<20) + `1]}]}`,
			"blanks": `{"inputs":[{"name":"in0","shape":` + shape + `,"datatype":"%s","data":[1` + strings.Repeat(" ", 1<<20) + `]}]}`,
			"binary": `{"inputs":[{"name":"in0","shape":` + shape + `,"datatype":"%s","parameters":{"binary_data_size":16}}]}`,
		} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for typ, h := range map[string]*serving.Handler{"BYTES": texts, "FP64": numbers} {
				text := fmt.Sprintf(body, typ)
				var header []string
				if form == "binary" {
					header = []string{"Inference-Header-Content-Length", fmt.Sprint(len(text))}
					text += strings.Repeat("\x00", 16)
				}
				if code, answer, w := ask(h, "POST", inferPath, text, header...); code != 400 || answer["error"] == "" {
					t.Errorf("%s %s in %s: %d %.300s", typ, shape, form, code, w.Body)
				}
			}
			runtime.ReadMemStats(&after)
			if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
				t.Errorf("%s in %s: %d MB were allocated to refuse it", shape, form, got>>20)
			}
		}
	}
}
