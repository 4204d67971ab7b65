package e2e

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
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// held is the largest body that the gateway holds to be able to send it twice; a
// byte more streams. A request of lent bytes is answered by the model server itself,
// on the connection that the gateway lends it.
const (
	held = 1 << 20
	lent = 16 << 10
)

// TestSwitchingAtSaturation changes between two versions 20 times while clients send
// bodies of a megabyte, in every way in which a body may be sent, as fast as they are
// answered. Each request is answered once, by 200, with what the version that the answer
// names computes; no connection is reset or ended by the gateway; and the device counts as many
// answers as the clients do.
func TestSwitchingAtSaturation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	d := w.join("one", "site=a")
	for version := range 2 {
		path := filepath.Join(w.dir, "adder.onnx")
		if err := os.WriteFile(path, adder(float32(version+1)), 0o600); err != nil {
			t.Fatal(err)
		}
		w.atelier("model", "register", "adder", path)
	}
	w.atelier("deploy", "adder:1", "--to", "site=a")
	e := w.endpoint("adder")

	s := &saturation{quit: make(chan struct{}), answers: map[string]int{}}
	for i, way := range []sending{
		{binary: true, size: held},
		{binary: true, size: held + 1},
		{size: held},
		{size: held + 1},
		{binary: true, size: held, chunked: true},
		{binary: true, size: held + 1, chunked: true},
		{binary: true, size: held + 1, expect: true},
		{binary: true, size: lent},
		{size: lent},
		{binary: true, size: held, slow: true},
		{binary: true, size: held + 1, slow: true, chunked: true},
	} {
		s.wg.Go(func() { s.client(t, e, d, i, way) })
	}
	s.wg.Go(func() { s.pipeline(e, d, 11, sending{binary: true, size: held}) })
	s.wg.Go(func() { s.pipeline(e, d, 12, sending{binary: true, size: lent}) })
	began := time.Now()
	const switches = 20
	for i := range switches {
		version := strconv.Itoa(2 - i%2)
		before := s.count(version)
		w.atelier("deploy", "adder:"+version)
		eventually(t, 2*time.Minute, func() error { // under load, not between two loads
			if s.count(version) < before+5 {
				return fmt.Errorf("version %s does not answer: %v", version, s.failed)
			}
			return nil
		})
	}
	lasted := time.Since(began)
	close(s.quit)
	s.wg.Wait()
	for _, failed := range s.failed[:min(5, len(s.failed))] {
		t.Error(failed)
	}
	one, two := s.answers["1"], s.answers["2"]
	if s.sent != one+two {
		t.Errorf("%d requests were sent, %d answered", s.sent, one+two)
	}
	for version, n := range map[string]int{"1": one, "2": two} {
		eventually(t, time.Minute, func() error {
			counted := w.query(fmt.Sprintf(`sum(atelier_endpoint_requests_total{endpoint="adder",version=%q})`, version))
			if int(counted) != n {
				return fmt.Errorf("the device counted %v answers of version %s, the clients %d", counted, version, n)
			}
			return nil
		})
	}
	t.Logf("%d switches in %s: %d requests sent, %d answered by version 1 and %d by version 2, %d failed; %.0f a second",
		switches, lasted.Round(time.Second), s.sent, one, two, len(s.failed), float64(s.sent)/lasted.Seconds())
}

// sending is a way in which a client sends its bodies.
type sending struct {
	binary  bool // the tensor as bytes after the JSON, otherwise as numbers in it
	size    int  // of the body
	chunked bool
	expect  bool // Expect: 100-continue
	slow    bool // in pieces, with pauses
}

type saturation struct {
	wg   sync.WaitGroup
	quit chan struct{}

	mu      sync.Mutex
	sent    int
	answers map[string]int // by version
	failed  []error
}

func (s *saturation) count(version string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answers[version]
}

// client sends one request after the other over one connection until it is told to
// stop.
func (s *saturation) client(t *testing.T, e endpoint, d *device, number int, way sending) {
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		return &keptConn{Conn: c, ended: s.ended}, err
	}
	transport := &http.Transport{DialContext: dial, MaxConnsPerHost: 1, ExpectContinueTimeout: time.Minute, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 2 * time.Minute}
	for i := 0; ; i++ {
		select {
		case <-s.quit:
			return
		default:
		}
		s.sends()
		version, err := s.once(t, client, e, d, way, float32(number*1000+i%1000))
		if err != nil {
			err = fmt.Errorf("client %d %+v, request %d: %w", number, way, i, err)
		}
		s.answered(version, err)
	}
}

func (s *saturation) sends() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent++
}

func (s *saturation) answered(version string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed = append(s.failed, err)
	} else {
		s.answers[version]++
	}
}

// ended tells that the gateway ended a connection that its client still held.
func (s *saturation) ended(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = append(s.failed, fmt.Errorf("the gateway ended a connection: %w", err))
}

// keptConn tells when the other side ends it.
type keptConn struct {
	net.Conn
	closed atomic.Bool
	ended  func(error)
}

func (c *keptConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil && !c.closed.Load() && !errors.Is(err, os.ErrDeadlineExceeded) { // the client's own way to stop a read
		c.ended(err)
	}
	return n, err
}

func (c *keptConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// pipelined is how many requests a client that pipelines has under way.
const pipelined = 3

// pipeline sends several requests, slowly, before it has read the answer to the
// first, over one connection.
func (s *saturation) pipeline(e endpoint, d *device, number int, way sending) {
	conn, err := net.Dial("tcp", d.gateway)
	if err != nil {
		s.answered("", err)
		return
	}
	defer func() { _ = conn.Close() }()
	in := bufio.NewReader(conn)
	for i := 0; ; i += pipelined {
		select {
		case <-s.quit:
			return
		default:
		}
		written := make(chan error, 1)
		go func() {
			for j := range pipelined {
				body, header, _ := way.body(float32(number*1000 + (i+j)%1000))
				s.sends()
				_, err := fmt.Fprintf(conn, "POST /%s/v2/models/adder/infer HTTP/1.1\r\nHost: %s\r\nX-Api-Key: %s\r\n%s: %d\r\nContent-Length: %d\r\n\r\n",
					e.name, d.gateway, e.key, headerLength, header, len(body))
				if err == nil {
					_, err = io.Copy(struct{ io.Writer }{conn}, &slowReader{bytes.NewReader(body)})
				}
				if err != nil {
					written <- err
					return
				}
			}
			written <- nil
		}()
		_, _, n := way.body(0)
		for j := range pipelined {
			version, err := readAnswer(in, way, float32(number*1000+(i+j)%1000), n)
			if err != nil {
				s.answered("", fmt.Errorf("the client that pipelines, request %d: %w", i+j, err))
				_ = conn.Close() // ends the writing
				<-written
				return
			}
			s.answered(version, nil)
		}
		if err := <-written; err != nil {
			s.answered("", err)
			return
		}
	}
}

func readAnswer(in *bufio.Reader, way sending, first float32, n int) (version string, err error) {
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		return "", err
	}
	out, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err != nil {
		return "", err
	}
	if res.StatusCode != http.StatusOK || res.Close {
		return "", fmt.Errorf("%s, connection ended: %v: %.300s", res.Status, res.Close, out)
	}
	return way.check(res.Header.Get(headerLength), out, first, n)
}

func (s *saturation) once(t *testing.T, client *http.Client, e endpoint, d *device, way sending, first float32) (version string, err error) {
	body, header, n := way.body(first)
	var content io.Reader = bytes.NewReader(body)
	if way.slow {
		content = &slowReader{content}
	}
	if way.chunked {
		content = io.MultiReader(content) // of no length that the client could know
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+d.gateway+"/"+e.name+"/v2/models/adder/infer", content)
	if err != nil {
		return "", err
	}
	if !way.chunked {
		req.ContentLength = int64(len(body))
	}
	req.Header.Set("X-Api-Key", e.key)
	if way.binary {
		req.Header.Set(headerLength, strconv.Itoa(header))
	}
	if way.expect {
		req.Header.Set("Expect", "100-continue")
	}
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	out, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return "", err
	case res.StatusCode != http.StatusOK:
		return "", fmt.Errorf("%s: %.300s", res.Status, out)
	}
	return way.check(res.Header.Get(headerLength), out, first, n)
}

const headerLength = "Inference-Header-Content-Length"

// value is element i of a tensor that begins with first; all are exact in FP32.
func value(first float32, i int) float32 { return first + float32(i%89) }

// body returns a body of exactly the size, the length of its JSON, and how many
// elements its tensor has.
func (y sending) body(first float32) (body []byte, header, n int) {
	const ahead = `{"inputs":[{"name":"x","datatype":"FP32","shape":[`
	if y.binary {
		n = (y.size - 400) / 4
		body = fmt.Appendf(nil, ahead+`%d],"parameters":{"binary_data_size":%d}}],"parameters":{"binary_data_output":true}}`, n, 4*n)
		body = append(body, bytes.Repeat([]byte(" "), y.size-4*n-len(body))...)
		header = len(body)
		for i := range n {
			body = binary.LittleEndian.AppendUint32(body, math.Float32bits(value(first, i)))
		}
		return body, header, n
	}
	n = (y.size - 400) / 6 // values have 4 digits at most
	body = fmt.Appendf(nil, ahead+`%d],"data":[`, n)
	for i := range n {
		if i > 0 {
			body = append(body, ',')
		}
		body = strconv.AppendInt(body, int64(value(first, i)), 10)
	}
	body = append(body, `]}]}`...)
	return append(body, bytes.Repeat([]byte(" "), y.size-len(body))...), y.size, n
}

// check compares an answer with what the version that it names computes: each
// element plus the version.
func (y sending) check(header string, out []byte, first float32, n int) (version string, err error) {
	text, tail := out, []byte(nil)
	if y.binary {
		length, err := strconv.Atoi(header)
		if err != nil || length > len(out) {
			return "", fmt.Errorf("%s is %q in an answer of %d bytes", headerLength, header, len(out))
		}
		text, tail = out[:length], out[length:]
	}
	var answer struct {
		Version string `json:"model_version"`
		Outputs []struct{ Data []float32 }
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return "", fmt.Errorf("%w: %.200s", err, text)
	}
	add, err := strconv.Atoi(answer.Version)
	if err != nil || len(answer.Outputs) != 1 {
		return "", fmt.Errorf("the answer is %.200s", text)
	}
	got := answer.Outputs[0].Data
	if y.binary {
		for i := 0; i+4 <= len(tail); i += 4 {
			got = append(got, math.Float32frombits(binary.LittleEndian.Uint32(tail[i:])))
		}
	}
	if len(got) != n {
		return "", fmt.Errorf("%d elements came back of %d", len(got), n)
	}
	for i, v := range got {
		if want := value(first, i) + float32(add); v != want {
			return "", fmt.Errorf("element %d is %v, version %s computes %v", i, v, answer.Version, want)
		}
	}
	return answer.Version, nil
}

// slowReader gives 32 KiB at a time, with a pause before each.
type slowReader struct{ r io.Reader }

func (s *slowReader) Read(p []byte) (int, error) {
	<-time.After(10 * time.Millisecond)
	return s.r.Read(p[:min(len(p), 32<<10)])
}

// adder is a model that adds a constant to a vector of any length; onnx.proto has
// the numbers of the fields.
func adder(constant float32) []byte {
	type message = []byte
	num := func(m message, field protowire.Number, v uint64) message {
		return protowire.AppendVarint(protowire.AppendTag(m, field, protowire.VarintType), v)
	}
	sub := func(m message, field protowire.Number, v []byte) message {
		return protowire.AppendBytes(protowire.AppendTag(m, field, protowire.BytesType), v)
	}
	str := func(m message, field protowire.Number, v string) message { return sub(m, field, []byte(v)) }
	vector := func(name string) message {
		shape := sub(nil, 1, str(nil, 2, "n"))
		return sub(str(nil, 1, name), 2, sub(nil, 1, sub(num(nil, 1, 1), 2, shape)))
	}
	node := str(str(str(str(nil, 1, "x"), 1, "c"), 2, "y"), 4, "Add")
	initial := sub(str(num(nil, 2, 1), 8, "c"), 9, binary.LittleEndian.AppendUint32(nil, math.Float32bits(constant)))
	graph := sub(sub(sub(sub(str(nil, 2, "adder"), 1, node), 5, initial), 11, vector("x")), 12, vector("y"))
	return sub(sub(num(nil, 1, 8), 7, graph), 8, num(nil, 2, 13))
}
