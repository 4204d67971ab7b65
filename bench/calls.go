package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// call is one inference that is sent again and again over one connection. The
// request is made beforehand, and the answer read by blocking calls of the system, as
// clients in C or Python do: what is measured is the server and the way to it, and not
// what Go's poller and its timers take in a client.
type call struct {
	network, address string
	request          []byte
	conn             *os.File
	reader           *bufio.Reader
	answer           bytes.Buffer // of the last call
}

// newCall prepares an inference of endpoint over network and address; prefix comes
// before /v2 in the path.
func newCall(network, address, prefix, model, key string, in payload) *call {
	var b bytes.Buffer
	fmt.Fprintf(&b, "POST %s/v2/models/%s/infer HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n", prefix, model, len(in.body))
	if key != "" {
		fmt.Fprintf(&b, "X-Api-Key: %s\r\n", key)
	}
	if in.head > 0 {
		fmt.Fprintf(&b, "Content-Type: application/octet-stream\r\nInference-Header-Content-Length: %d\r\n\r\n", in.head)
	} else {
		fmt.Fprint(&b, "Content-Type: application/json\r\n\r\n")
	}
	b.Write(in.body)
	return &call{network: network, address: address, request: b.Bytes()}
}

// do sends the request and reads the whole answer, which must be a 200. After an
// error the next call connects anew.
func (c *call) do(ctx context.Context) (took time.Duration, err error) {
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.conn == nil {
		if c.conn, err = dialBlocking(ctx, c.network, c.address); err != nil {
			return 0, err
		}
		c.reader = bufio.NewReaderSize(c.conn, 64<<10)
	}
	began := time.Now()
	if _, err := c.conn.Write(c.request); err != nil {
		return 0, err
	}
	res, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }() // it was read to its end, or the connection is dropped
	c.answer.Reset()
	if _, err := io.Copy(&c.answer, res.Body); err != nil {
		return 0, err
	}
	took = time.Since(began)
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s answered %s: %s", c.address, res.Status, c.answer.Bytes())
	}
	if res.Close {
		c.close()
	}
	return took, nil
}

// dialBlocking connects. Reads and writes block their thread, each for 10 s at most.
func dialBlocking(ctx context.Context, network, address string) (*os.File, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }() // what is returned has a descriptor of its own
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	failed := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(failed, err); err != nil {
		return nil, err
	}
	wait := unix.Timeval{Sec: 10}
	err = errors.Join(unix.SetNonblock(fd, false), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait))
	f := os.NewFile(uintptr(fd), address) // which leaves what blocks to its thread
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// version is the model's version in the last answer, "" where it says none.
func (c *call) version() string {
	var v struct {
		Version string `json:"model_version"`
	}
	// Decode stops at the end of the JSON, where binary tensors begin.
	if err := json.NewDecoder(bytes.NewReader(c.answer.Bytes())).Decode(&v); err != nil {
		return ""
	}
	return v.Version
}

func (c *call) close() {
	if c.conn != nil {
		_ = c.conn.Close() // nothing is left to be sent
		c.conn = nil
	}
}

// inTurn calls each of calls count times, a block of each after the other, and
// returns the median of each in microseconds.
func inTurn(ctx context.Context, count int, calls ...*call) ([]float64, error) {
	const block = 50
	took := make([][]float64, len(calls))
	for range (count + block - 1) / block {
		for i, c := range calls {
			for range block {
				d, err := c.do(ctx)
				if err != nil {
					return nil, err
				}
				took[i] = append(took[i], float64(d.Nanoseconds())/1e3)
			}
		}
	}
	medians := make([]float64, len(calls))
	for i := range took {
		medians[i] = median(took[i])
	}
	return medians, nil
}

// payload is the body of an inference; the first head bytes are JSON, 0 where
// all of it is.
type payload struct {
	body []byte
	head int
}

// tensor is one input.
type tensor struct {
	Name       string         `json:"name"`
	Datatype   string         `json:"datatype"`
	Shape      []int          `json:"shape"`
	Data       any            `json:"data,omitempty"` // []float32 or []int64
	Parameters map[string]any `json:"parameters,omitempty"`
}

// inJSON encodes an inference in JSON alone.
func inJSON(inputs ...tensor) (payload, error) {
	body, err := json.Marshal(map[string]any{"inputs": inputs})
	return payload{body: body}, err
}

// inBinary encodes an inference with binary tensors, and asks for such.
func inBinary(inputs ...tensor) (payload, error) {
	var tail []byte
	for i, in := range inputs {
		before := len(tail)
		var err error
		if tail, err = binary.Append(tail, binary.LittleEndian, in.Data); err != nil {
			return payload{}, err
		}
		in.Data, in.Parameters = nil, map[string]any{"binary_data_size": len(tail) - before}
		inputs[i] = in
	}
	head, err := json.Marshal(map[string]any{"inputs": inputs, "parameters": map[string]any{"binary_data_output": true}})
	return payload{body: append(head, tail...), head: len(head)}, err
}

// speech is what silero is asked: its context and one window of a tone at 16 kHz,
// and a fresh state. BenchmarkSilero in serving/onnxruntime asks the same.
func speech() []tensor {
	sound := make([]float32, 64+512)
	for i := range sound {
		sound[i] = float32(0.1 * math.Sin(2*math.Pi*140*float64(i)/16000))
	}
	return []tensor{
		{Name: "input", Datatype: "FP32", Shape: []int{1, len(sound)}, Data: sound},
		{Name: "state", Datatype: "FP32", Shape: []int{2, 1, 128}, Data: make([]float32, 256)},
		{Name: "sr", Datatype: "INT64", Shape: []int{}, Data: []int64{16000}},
	}
}

// digit is one digit for the classifier.
func digit() []tensor {
	pixels := make([]float32, 64)
	for i := range pixels {
		pixels[i] = float32(i % 17)
	}
	return []tensor{{Name: "pixels", Datatype: "FP32", Shape: []int{1, 64}, Data: pixels}}
}
