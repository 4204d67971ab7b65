// Package artifacttest makes overlay packages and models for tests.
package artifacttest

import (
	"math/rand/v2"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/artifact"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/networktest"
	"github.com/atelier-edge/atelier/fpga/overlay"
	"github.com/atelier-edge/atelier/fpga/program"
	"github.com/atelier-edge/atelier/fpga/reference"
	"github.com/atelier-edge/atelier/internal/trust"
)

// Geometry is that of all overlays here: the HX8K's.
var Geometry = program.Geometry{Lanes: 8, Activations: 10, Biases: 8, Program: 6, Weights: 10, Tables: 9}

// Key makes a key that signs, and the set that verifies it.
func Key(t testing.TB) (trust.Signer, trust.KeySet) {
	t.Helper()
	private, err := trust.NewHubKey()
	if err != nil {
		t.Fatal(err)
	}
	signer, err := trust.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, trust.NewKeySet(signer.Public())
}

// Model makes a random network of 20, 16 and 5 neurons for the overlay, with golden inputs
// that the reference computed, and its encoded form.
func Model(t testing.TB, uuid artifact.UUID, seed uint64) (*artifact.Model, []byte) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	n := varied(r)
	if err := n.Check(); err != nil {
		t.Fatal(err)
	}
	p, err := networktest.Place(Geometry, n)
	if err != nil {
		t.Fatal(err)
	}
	m := &artifact.Model{
		Model: overlay.Model{Program: p, Input: "x", Shape: program.Image{Height: 1, Width: 1, Channels: 20}, In: overlay.Quantisation{Scale: 0.5}, Out: overlay.Quantisation{Scale: 0.25, Zero: 3},
			Outputs: []overlay.Output{{Name: "y", Kind: overlay.Values}, {Name: "class", Kind: overlay.ArgMax}}, Cycles: p.Cycles()},
		Overlay: uuid, Compiler: "test",
		Signature: atelier.Signature{
			Inputs:  []atelier.TensorSpec{{Name: "x", Type: "FP32", Shape: []int64{-1, 20}}},
			Outputs: []atelier.TensorSpec{{Name: "y", Type: "FP32", Shape: []int64{-1, 5}}, {Name: "class", Type: "INT64", Shape: []int64{-1}}},
		},
	}
	for range 8 {
		x := networktest.Inputs(r, p.Inputs())
		y := n.Infer(x)
		g := artifact.Golden{Input: x, Output: y, ArgMax: reference.ArgMax(y)}
		g.CPU = m.Results(y, g.ArgMax)
		m.Golden = append(m.Golden, g)
	}
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return m, b
}

// varied returns a random network whose outputs are not all the same.
func varied(r *rand.Rand) *reference.Network {
	for {
		n := networktest.Random(r, 20, 16, 5)
		seen := map[int8]bool{}
		for range 4 {
			for _, v := range n.Infer(networktest.Inputs(r, 20)) {
				seen[v] = true
			}
		}
		if len(seen) > 12 {
			return n
		}
	}
}

// Overlay describes an image as a manifest does.
func Overlay(format bitstream.Format, part string, uuid artifact.UUID, image, golden []byte) *artifact.Overlay {
	return &artifact.Overlay{Format: 1, Encoding: format, Part: part, UUID: uuid, ISA: program.ISA, Geometry: Geometry,
		Digest: atelier.DigestOf(image), Size: int64(len(image)), Toolchain: "none", FmaxMHz: 60, Golden: atelier.DigestOf(golden)}
}
