package rest

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// weights is content that exists only while it is read.
type weights struct{ at, size int64 }

func (w *weights) Read(p []byte) (int, error) {
	if w.at == w.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), w.size-w.at)) &^ 7
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(w.at+int64(i))*0x9e3779b97f4a7c15)
	}
	w.at += int64(n)
	return n, nil
}

// TestLargeModel takes a model of 300 MB in and out again. It does not run beside
// other tests, whose memory it would count.
func TestLargeModel(t *testing.T) {
	const size, bound = 300 << 20, 48 << 20
	h := newHub(t)
	h.workspace("lab")
	model := h.upload("lab", "model.onnx", smallModel(1))
	sum := sha256.New()
	if _, err := io.Copy(sum, &weights{size: size}); err != nil {
		t.Fatal(err)
	}
	want := atelier.DigestFrom(sum)

	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	req, err := http.NewRequest("POST", h.url+"/v1/workspaces/lab/blobs?digest="+string(want), &weights{size: size})
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	req.Header.Set("Authorization", "Bearer "+h.admin)
	start := time.Now()
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || res.StatusCode != 201 || !strings.Contains(string(answer), string(want)) {
		t.Fatal(err, res.Status, string(answer))
	}
	in := time.Since(start)
	files := []atelier.File{model, {Path: "weights.bin", Digest: want, Size: size}}
	h.do(h.admin, "POST", "/v1/workspaces/lab/models/large/versions", map[string]any{"files": files}).into(t, 201, nil)

	req, err = http.NewRequest("GET", h.url+"/v1/workspaces/lab/models/large/versions/1/files/weights.bin", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+h.admin)
	start = time.Now()
	if res, err = http.DefaultTransport.RoundTrip(req); err != nil {
		t.Fatal(err)
	}
	sum.Reset()
	n, err := io.Copy(sum, res.Body)
	res.Body.Close()
	if err != nil || n != size || atelier.DigestFrom(sum) != want {
		t.Fatal(n, err)
	}
	runtime.ReadMemStats(&after)
	took := after.TotalAlloc - before.TotalAlloc
	t.Logf("in %.0f MB/s, out %.0f MB/s, %d KiB allocated by hub and client together",
		size/1e6/in.Seconds(), size/1e6/time.Since(start).Seconds(), took>>10)
	if took > bound {
		t.Errorf("%d bytes were allocated for %d bytes of content, want at most %d", took, size, bound)
	}
}

// TestUploadBreaks leaves nothing of an upload that did not come whole.
func TestUploadBreaks(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.workspace("lab")
	h.server.stall = 200 * time.Millisecond
	for name, c := range map[string]struct {
		close  bool
		status int
	}{"the connection breaks": {true, 0}, "the sender stalls": {false, 504}} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(h.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST /v1/workspaces/lab/blobs HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\nhalf of it", h.admin); err != nil {
			t.Fatal(err)
		}
		if c.close {
			conn.Close()
			continue
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(name, err)
		}
		if res.StatusCode != c.status {
			t.Errorf("%s: %s, want %d", name, res.Status, c.status)
		}
		res.Body.Close()
		conn.Close()
	}
	digest := atelier.DigestOf([]byte("half of it"))
	h.do(h.admin, "GET", "/v1/workspaces/lab/blobs/"+string(digest), nil).fails(t, atelier.NotFound)

	// Of unknown length, in chunks.
	req, err := http.NewRequest("POST", h.url+"/v1/workspaces/lab/blobs", io.MultiReader(strings.NewReader("half "), strings.NewReader("of it")))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+h.admin)
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 201 {
		t.Errorf("in chunks: %s", res.Status)
	}
	h.do(h.admin, "GET", "/v1/workspaces/lab/blobs/"+string(digest), nil).into(t, 200, nil)
}
