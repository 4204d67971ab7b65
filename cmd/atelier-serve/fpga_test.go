package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/artifact"
	"github.com/atelier-edge/atelier/fpga/artifact/artifacttest"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/overlay"
	"github.com/atelier-edge/atelier/fpga/reference"
	"github.com/atelier-edge/atelier/internal/trust"
)

const digitsONNX = repository + "/examples/digits/digits-v2.onnx"

// digits compiles the demo's classifier for an overlay, its first calibration inputs being the
// golden ones.
func digits(t *testing.T, uuid artifact.UUID) []byte {
	t.Helper()
	var calibration [][]float64
	b, err := os.ReadFile(repository + "/fpga/overlay/testdata/calibration.json")
	if err == nil {
		err = json.Unmarshal(b, &calibration)
	}
	if err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile(digitsONNX); err != nil {
		t.Fatal(err)
	}
	c, err := overlay.Compile(b, overlay.Options{Geometry: artifacttest.Geometry, Calibration: calibration})
	if err != nil {
		t.Fatal(err)
	}
	m := &artifact.Model{Model: *c.Model, Overlay: uuid, Compiler: "test", Tolerance: atelier.Tolerance{Absolute: 0.05}}
	m.Signature.Inputs = []atelier.TensorSpec{{Name: m.Input, Type: "FP32", Shape: []int64{-1, 64}}}
	for _, o := range m.Outputs {
		spec := atelier.TensorSpec{Name: o.Name, Type: "FP32", Shape: []int64{-1, 10}}
		if o.Kind == overlay.ArgMax {
			spec.Type, spec.Shape = "INT64", []int64{-1}
		}
		m.Signature.Outputs = append(m.Signature.Outputs, spec)
	}
	for _, x := range calibration[:10] {
		q := m.Arrange(x)
		y := c.Network.Infer(q)
		m.Golden = append(m.Golden, artifact.Golden{Input: q, Output: y, ArgMax: reference.ArgMax(y)})
	}
	encoded, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return encoded
}

// fpgaFiles writes an overlay's package for a simulated device, its keys, and the digits
// classifier for it, and returns the program's arguments.
func fpgaFiles(t *testing.T, part string) (args []string, dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	uuid := artifact.UUID{7}
	image := board.Design{Geometry: artifacttest.Geometry, UUID: uuid}.Image()
	_, golden := artifacttest.Model(t, uuid, 1)
	signer, _ := artifacttest.Key(t)
	manifest, err := artifacttest.Overlay(bitstream.Simulation, bitstream.SimulatedPart, uuid, image, golden).Sign(signer)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := json.Marshal([]trust.PublicKey{signer.Public()})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{artifact.ManifestPath: manifest, artifact.ImagePath: image, artifact.GoldenPath: golden, "keys.json": keys, "digits.atn": digits(t, uuid)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return []string{"--name", "digits", "--fpga", "sim", "--fpga-part", part, "--fpga-overlay", dir, "--fpga-keys", filepath.Join(dir, "keys.json"),
		"--fpga-model", filepath.Join(dir, "digits.atn"), "--fpga-state", filepath.Join(dir, "state"), "--listen", "unix:" + filepath.Join(dir, "s")}, dir
}

func unixClient(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
}

// askDigits sends the held-out digits, and returns what they are said to be.
func askDigits(t *testing.T, client *http.Client, pixels [][]float64) (answers []int64, head http.Header) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"inputs": []any{map[string]any{"name": "pixels", "datatype": "FP32", "shape": []int{len(pixels), 64}, "data": pixels}}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Post("http://module/v2/models/digits/infer", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s, %v", resp.Status, text, err)
	}
	var got struct {
		Outputs []struct {
			Datatype string
			Data     []float64
		}
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for _, o := range got.Outputs {
		if o.Datatype == "INT64" {
			for _, v := range o.Data {
				answers = append(answers, int64(v))
			}
		}
	}
	return answers, resp.Header
}

// TestFPGA serves the digits from a simulated FPGA, and compares the answers with those of
// ONNX Runtime; and from the CPU, and says so, where the device is of another part.
func TestFPGA(t *testing.T) {
	t.Parallel()
	var heldOut struct{ Pixels [][]float64 }
	b, err := os.ReadFile(repository + "/examples/digits/held-out.json")
	if err == nil {
		err = json.Unmarshal(b, &heldOut)
	}
	if err != nil {
		t.Fatal(err)
	}
	pixels := heldOut.Pixels[:200]
	cpu := []string{"--model", digitsONNX, "--runtime", library}

	args, dir := fpgaFiles(t, bitstream.SimulatedPart)
	fpga := unixClient(filepath.Join(dir, "s"))
	startOn(t, fpga, "http://module", append(args, cpu...)...)
	got, head := askDigits(t, fpga, pixels)
	if head.Get(atelier.HeaderFallback) != "" {
		t.Errorf("the FPGA's answer says %q", head.Get(atelier.HeaderFallback))
	}
	var status struct {
		On, Provider string
		Image        atelier.Digest
		Loads        int
		Cycles       int
		Since        float64 `json:"since_passed"`
	}
	resp, err := fpga.Get("http://module/v2/fpga")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close() // it was read
	if status.On != "new" || status.Provider != "fpga" || status.Loads != 1 || status.Cycles != 335 || status.Since <= 0 || status.Image == "" {
		t.Errorf("the status is %+v", status)
	}

	args, dir = fpgaFiles(t, "hx8k") // the device is not what the overlay is for
	without := exec.Command(program, args...)
	var log bytes.Buffer
	without.Stderr = &log
	if err := without.Run(); err == nil || !strings.Contains(log.String(), "the device has hx8k") {
		t.Errorf("%v\n%s", err, log.String())
	}
	// With the CPU allowed, it answers.
	fallback := unixClient(filepath.Join(dir, "s"))
	startOn(t, fallback, "http://module", append(args, cpu...)...)
	if _, head := askDigits(t, fallback, pixels[:1]); head.Get(atelier.HeaderFallback) != "cpu" {
		t.Errorf("the CPU's answer says %q", head.Get(atelier.HeaderFallback))
	}
	// ONNX Runtime alone.
	alone := unixClient(filepath.Join(dir, "c"))
	startOn(t, alone, "http://module", append([]string{"--name", "digits", "--listen", "unix:" + filepath.Join(dir, "c")}, cpu...)...)
	want, _ := askDigits(t, alone, pixels)
	differ := 0
	for i := range want {
		if got[i] != want[i] {
			differ++
		}
	}
	if len(got) != len(want) || len(want) != len(pixels) || differ > 2 {
		t.Errorf("%d of %d answers differ from the CPU's", differ, len(want))
	}
	t.Logf("%d of %d answers differ from the CPU's", differ, len(want))
}

// TestFPGAFallback damages the image of an overlay whose golden package is sound.
func TestFPGAFallback(t *testing.T) {
	t.Parallel()
	args, dir := fpgaFiles(t, bitstream.SimulatedPart)
	bad := filepath.Join(dir, "bad")
	if err := os.Mkdir(bad, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{artifact.ManifestPath, artifact.ImagePath, artifact.GoldenPath} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == artifact.ImagePath {
			b[20] ^= 1
		}
		if err := os.WriteFile(filepath.Join(bad, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := slices.Index(args, "--fpga-overlay") + 1
	args[at] = bad
	client := unixClient(filepath.Join(dir, "s"))
	startOn(t, client, "http://module", append(args, "--fpga-golden", dir, "--model", digitsONNX, "--runtime", library)...)
	got, head := askDigits(t, client, [][]float64{make([]float64, 64)})
	if len(got) != 1 || head.Get(atelier.HeaderFallback) != "cpu" {
		t.Errorf("%v, %v", got, head)
	}
	resp, err := client.Get("http://module/v2/health/ready")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var health atelier.ModuleHealth
	if err := json.NewDecoder(resp.Body).Decode(&health); err != nil || health.Provider != "cpu" || !strings.Contains(health.Fallback, "digest") {
		t.Errorf("%+v, %v", health, err)
	}
}
