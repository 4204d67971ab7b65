package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang/snappy"
)

// TestCollectedData records requests on a device, through kills of every program, and
// reads them with pyarrow: each that reached the device's disk is there once, and what is
// masked is nowhere.
func TestCollectedData(t *testing.T) {
	t.Parallel()
	reader := pyarrow(t)
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(1))
	d := w.join("press-4", "site=a")
	if out := w.fails(2, "deploy", "digits", "--to", "site=a", "--collect", "1", "--collect-mask", "inputs.pixel"); !strings.Contains(out, "inputs.pixels") {
		t.Errorf("a mask that fits nothing: %s", out)
	}
	w.atelier("deploy", "digits", "--to", "site=a", "--collect", "1", "--collect-mask", "inputs.pixels")
	e := w.endpoint("digits")
	c := &collected{w: w, d: d, e: e, reader: reader}

	c.begins("masked=[inputs.pixels]")
	first := c.score(5)
	c.arrive(5)

	// The hub is killed, then the agent; what is on the device's disk waits there.
	w.hub.signal(t, syscall.SIGKILL)
	waiting := c.score(5)
	c.onDisk(waiting)
	c.absent()
	d.agent.signal(t, syscall.SIGKILL)
	d.agent.start(t)
	w.startHub()
	c.arrive(10)
	w.hub.signal(t, syscall.SIGKILL) // what was acknowledged lies in files, or in the journal
	w.startHub()
	w.connected(d)

	// A module that was killed is recorded again, and without a mask values are there.
	w.signalModule(t, d, "digits", syscall.SIGKILL)
	c.absent()
	w.atelier("deploy", "digits", "--collect-mask", "")
	c.begins("masked=[]")
	before := time.Now().Truncate(time.Microsecond)
	last := c.score(1)
	eventually(t, patience, func() error {
		if restarts := w.query(`max(atelier_module_restarts_total)`); restarts != 1 {
			return fmt.Errorf("the module was restarted %v times; its kill should do that once", restarts)
		}
		return nil
	})
	eventually(t, patience, func() error { // others came besides it: from whoever asked whether the module runs again
		w.atelier("data", "flush")
		var files []struct{ Last time.Time }
		w.asked(&files, "data", "list", "digits")
		for _, f := range files {
			if !f.Last.Before(before) {
				return nil
			}
		}
		return fmt.Errorf("request %s is not there", last[0])
	})

	rows := c.rows()
	for _, id := range append(first, waiting...) {
		r, ok := rows[id]
		if !ok {
			t.Errorf("request %s is not there", id)
			continue
		}
		if r.Model != "digits" || r.Version != 1 || !strings.HasPrefix(r.Digest, "sha256:") || r.Status != 200 || r.Device != "press-4" {
			t.Errorf("a row is %+v", r)
		}
		if r.Inputs.Pixels != nil || !slices.Equal(r.Masked, []string{"inputs.pixels"}) {
			t.Errorf("of a masked input there is %+v; masked are %v", r.Inputs.Pixels, r.Masked)
		}
		if r.Outputs.Digit == nil || len(r.Outputs.Digit.Values) != 1 || !slices.Equal(r.Outputs.Probabilities.Shape, []int64{1, 10}) {
			t.Errorf("the outputs are %+v", r.Outputs)
		}
	}
	if got := rows[last[0]].Inputs.Pixels; got == nil || len(got.Values) != 64 || float32(got.Values[7]) != secret {
		t.Errorf("the input of an unmasked request is %+v", got)
	}
	w.atelier("deploy", "digits", "--collect", "0")
	if out := w.atelier("deployment", "show", "digits"); !strings.Contains(out, "nothing any more") {
		t.Errorf("the deployment shows: %s", out)
	}
}

// secret is what no file may have while it is masked.
const secret = float32(987.654321)

// collected is a deployment whose requests are recorded.
type collected struct {
	w      *world
	d      *device
	e      endpoint
	reader string
}

type row struct {
	Request, Device, Model, Digest string
	Version, Status                int
	Masked                         []string
	Inputs                         struct{ Pixels *values }
	Outputs                        struct{ Probabilities, Digit *values }
}

type values struct {
	Shape  []int64
	Values []float64
}

// pyarrow is a Python that reads Parquet with it.
func pyarrow(t testing.TB) string {
	t.Helper()
	path := filepath.Join(root, ".cache", "venv", "bin", "python")
	if err := exec.Command(path, "-c", "import pyarrow.parquet").Run(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("pyarrow is not installed: %v", err)
		}
		t.Skipf("pyarrow is not installed; 'make test-tools' installs it")
	}
	return path
}

// begins waits until the module says that it collects with a mask.
func (c *collected) begins(mask string) {
	c.w.t.Helper()
	eventually(c.w.t, patience, func() error {
		if out := c.w.atelier("device", "logs", c.d.name, c.e.name); !strings.Contains(out, mask) {
			return fmt.Errorf("the module's log: %s", out)
		}
		return nil
	})
}

// score sends n requests with the secret and returns their ids.
func (c *collected) score(n int) (ids []string) {
	c.w.t.Helper()
	pixels := make([]float32, 64)
	for i := range pixels {
		pixels[i] = secret
	}
	body, err := json.Marshal(map[string]any{"inputs": []any{map[string]any{"name": "pixels", "datatype": "FP32", "shape": []int{1, 64}, "data": pixels}}})
	if err != nil {
		c.w.t.Fatal(err)
	}
	for range n {
		req, err := http.NewRequest(http.MethodPost, "http://"+c.d.gateway+"/"+c.e.name+"/v2/models/digits/infer", bytes.NewReader(body))
		if err != nil {
			c.w.t.Fatal(err)
		}
		req.Header.Set("X-Api-Key", c.e.key)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			c.w.t.Fatal(err)
		}
		out, err := io.ReadAll(res.Body)
		_ = res.Body.Close() // it was read
		if err != nil || res.StatusCode != http.StatusOK {
			c.w.t.Fatalf("%s: %s, %v", res.Status, out, err)
		}
		ids = append(ids, res.Header.Get("X-Atelier-Request-Id"))
	}
	return ids
}

// rows returns all rows by request; each must be there once.
func (c *collected) rows() map[string]row {
	c.w.t.Helper()
	dir := c.w.t.TempDir()
	c.w.atelier("data", "get", c.e.name, "--to", dir)
	out, errOut, err := run(c.w.t.Context(), nil, c.reader, "testdata/parquet.py", dir)
	if err != nil {
		c.w.t.Fatalf("%v\n%s%s", err, out, errOut)
	}
	rows := map[string]row{}
	for line := range strings.Lines(out) {
		var r row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			c.w.t.Fatalf("%v: %s", err, line)
		}
		if _, twice := rows[r.Request]; twice {
			c.w.t.Errorf("request %s is there twice", r.Request)
		}
		rows[r.Request] = r
	}
	return rows
}

// arrive waits until the hub's files have at least n records.
func (c *collected) arrive(n int) {
	c.w.t.Helper()
	eventually(c.w.t, patience, func() error {
		c.w.atelier("data", "flush")
		var files []struct{ Records int }
		c.w.asked(&files, "data", "list", c.e.name)
		there := 0
		for _, f := range files {
			there += f.Records
		}
		if there < n {
			return fmt.Errorf("%d of %d records are there", there, n)
		}
		return nil
	})
}

// onDisk waits until the requests are in the device's spool.
func (c *collected) onDisk(ids []string) {
	c.w.t.Helper()
	eventually(c.w.t, patience, func() error {
		held := c.spooled()
		for _, id := range ids {
			if !bytes.Contains(held, []byte(id)) {
				return fmt.Errorf("request %s is not in the spool", id)
			}
		}
		return nil
	})
}

// spooled returns all that the device's spools hold, decompressed. A record of theirs is:
// length and checksum, 4 bytes each; sequence, samples, encoding and length of the boot id,
// 14 bytes; boot id; two times, 16 bytes; payload.
func (c *collected) spooled() (held []byte) {
	c.w.t.Helper()
	files, err := filepath.Glob(filepath.Join(c.d.state(), "data", "*", "*.seg"))
	if err != nil {
		c.w.t.Fatal(err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it went meanwhile
		}
		for len(b) > 38 {
			n := 8 + int(binary.BigEndian.Uint32(b))
			if n > len(b) {
				break // it is being written
			}
			payload, err := snappy.Decode(nil, b[8+14+int(b[21])+16:n])
			if err != nil {
				c.w.t.Fatalf("%s: %v", path, err)
			}
			held, b = append(held, payload...), b[n:]
		}
	}
	return held
}

// absent looks for the secret in all that device and hub have on disk, in the forms in
// which it would be there.
func (c *collected) absent() {
	c.w.t.Helper()
	bits := binary.LittleEndian.AppendUint32(nil, math.Float32bits(secret))
	text, err := json.Marshal(secret)
	if err != nil {
		c.w.t.Fatal(err)
	}
	for _, form := range [][]byte{append(bits, bits[:2]...), text} {
		if bytes.Contains(c.spooled(), form) {
			c.w.t.Error("a masked value is in the spool")
		}
		for _, dir := range []string{c.d.state(), filepath.Join(c.w.dir, "hub")} {
			if found := c.holders(dir, form); len(found) > 0 {
				c.w.t.Errorf("a masked value is in %v", found)
			}
		}
	}
}

// holders returns the files below a directory that hold b.
func (c *collected) holders(dir string, b []byte) (found []string) {
	c.w.t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || strings.HasSuffix(path, ".so") {
			return nil // it went meanwhile
		}
		if content, err := os.ReadFile(path); err == nil && bytes.Contains(content, b) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		c.w.t.Fatal(err)
	}
	return found
}
