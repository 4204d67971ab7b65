package signing

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/packaging/sbom"
)

// signed returns a hub with an image that is signed, press/cell:1, and a lineage.
func signed(t *testing.T) (*hub, atelier.Image) {
	h := newHub(t)
	h.push("1", tarOf(t, file{"etc/os-release", "ID=debian\n"}, file{"var/lib/dpkg/status", "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9+deb12u1\nArchitecture: amd64\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n"}),
		tarOf(t,
			file{"opt/env/numpy-1.26.4.dist-info/METADATA", "Name: numpy\nVersion: 1.26.4\nLicense-Expression: BSD-3-Clause AND (MIT OR Apache-2.0)\n"},
			file{"opt/env/odd_one-1.dist-info/METADATA", "Name: odd_one\nVersion: 1+local\nLicense: a licence of our own\n        with two lines\n"},
			file{"opt/env/none-2.dist-info/METADATA", "Name: none\nVersion: 2\n"}))
	return h, h.sign("1", made())
}

// signatures are the content in which signatures of the image lie, in both forms.
func (h *hub) signatures(img atelier.Image) []string {
	h.t.Helper()
	var all []string
	layers, _ := h.about(img.Digest, typeBundle)
	for _, suffix := range []string{".sig", ".att"} {
		more, _ := h.layers(strings.Replace(img.Digest, ":", "-", 1) + suffix)
		layers = append(layers, more...)
	}
	for _, l := range layers {
		all = append(all, l.Digest)
	}
	return all
}

// TestOpenSSL checks both forms of a signature with nothing of Sigstore's or ours: the
// public key that is exported, the bytes that the forms define, and OpenSSL.
func TestOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := tool(t, "openssl")
	h, img := signed(t)
	s := h.shell()
	key := h.key()
	verify := func(message, signature []byte) error {
		t.Helper()
		for name, b := range map[string][]byte{"message": message, "signature": signature} {
			if err := os.WriteFile(filepath.Join(s.dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := s.try(openssl, "dgst", "-sha256", "-verify", key, "-signature", "signature", "message")
		return err
	}
	check := func(what string, message, signature []byte) {
		t.Helper()
		if err := verify(message, signature); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for _, b := range [][]byte{message, signature} {
			b[len(b)/2] ^= 1
			if verify(message, signature) == nil {
				t.Errorf("%s: OpenSSL takes it with a flipped bit", what)
			}
			b[len(b)/2] ^= 1
		}
	}
	sigs, payloads := h.layers(strings.Replace(img.Digest, ":", "-", 1) + ".sig")
	signature, err := base64.StdEncoding.DecodeString(sigs[0].Annotations[noteSignature])
	if err != nil || len(sigs) != 1 {
		t.Fatal(err, len(sigs))
	}
	check("the tag that cosign looks at", payloads[0], signature)
	var simple struct {
		Critical struct {
			Identity, Image map[string]string
			Type            string
		}
	}
	if err := json.Unmarshal(payloads[0], &simple); err != nil || simple.Critical.Image["docker-manifest-digest"] != img.Digest ||
		simple.Critical.Identity["docker-reference"] != h.host+"/plant-7/press/cell" || simple.Critical.Type != "cosign container image signature" {
		t.Errorf("signed is %s", payloads[0])
	}
	_, bundles := h.about(img.Digest, typeBundle)
	if len(bundles) != 3 {
		t.Errorf("%d bundles, want those of the signature, the SBOM and the lineage", len(bundles))
	}
	for _, b := range bundles {
		var bundle struct {
			Envelope struct {
				Payload     []byte
				PayloadType string
				Signatures  []struct{ Sig []byte }
			} `json:"dsseEnvelope"`
		}
		if err := json.Unmarshal(b, &bundle); err != nil {
			t.Fatal(err)
		}
		e := bundle.Envelope
		check("a bundle", fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.PayloadType), e.PayloadType, len(e.Payload), e.Payload), e.Signatures[0].Sig)
	}
}

// TestCosign lets cosign itself verify. It takes half an hour of compiling, so that it is
// not in CI: 'make cosign' builds it and runs this.
func TestCosign(t *testing.T) {
	t.Parallel()
	cosign := os.Getenv("ATELIER_COSIGN")
	if cosign == "" {
		t.Skip("'make cosign' runs this")
	}
	h, img := signed(t)
	h.push("2", tarOf(t, file{"a", "two"}))
	s := h.shell()
	key, ref := h.key(), h.host+"/plant-7/press/cell:"
	verify := func(tag string) (string, error) {
		return s.try(cosign, "verify", "--key", key, "--insecure-ignore-tlog=true", ref+tag)
	}
	old := func(tag string) (string, error) {
		return s.try(cosign, "verify", "--key", key, "--insecure-ignore-tlog=true", "--new-bundle-format=false", ref+tag)
	}
	attested := func(kind string) (string, error) {
		return s.try(cosign, "verify-attestation", "--key", key, "--insecure-ignore-tlog=true", "--type", kind, ref+"1")
	}
	attestedBefore := func(kind string) (string, error) {
		return s.try(cosign, "verify-attestation", "--key", key, "--insecure-ignore-tlog=true", "--new-bundle-format=false", "--type", kind, ref+"1")
	}
	takes := func(what string, out string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
	}
	refuses := func(what string, out string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s: cosign takes it\n%s", what, out)
		}
	}
	all := func(check func(string, string, error), what string) {
		t.Helper()
		out, err := verify("1")
		check("verify, "+what, out, err)
		out, err = old("1")
		check("verify without bundles, "+what, out, err)
		for _, kind := range []string{"spdxjson", "slsaprovenance1"} {
			out, err = attested(kind)
			check("verify-attestation "+kind+", "+what, out, err)
			out, err = attestedBefore(kind)
			check("verify-attestation without bundles "+kind+", "+what, out, err)
		}
	}
	all(takes, "as it is")
	out, err := verify("2")
	refuses("not signed", out, err)

	flip := func(digests ...string) {
		for _, d := range digests {
			h.flip(d)
		}
	}
	signatures := h.signatures(img)
	flip(signatures...)
	all(refuses, "a bit flipped in each signature")
	flip(signatures...)
	h.flip(img.Digest)
	all(refuses, "a bit flipped in the manifest")
	h.flip(img.Digest)
	all(takes, "mended")

	// The SBOM and the lineage are in what is signed: each by itself.
	layers, bodies := h.about(img.Digest, typeBundle)
	for i, l := range layers {
		var bundle struct {
			Envelope struct {
				Payload []byte `json:"payload"`
			} `json:"dsseEnvelope"`
		}
		if err := json.Unmarshal(bodies[i], &bundle); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(bundle.Envelope.Payload), sbom.Predicate) {
			continue
		}
		h.flip(l.Digest)
		out, err = attested("spdxjson")
		refuses("a bit flipped in the signed SBOM", out, err)
		h.flip(l.Digest)
	}
	for _, suffix := range []string{".sig", ".att"} {
		if out, err := s.try(cosign, "tree", ref+"1"); err != nil || !strings.Contains(out, suffix) && !strings.Contains(out, typeBundle) {
			t.Errorf("cosign tree: %v\n%s", err, out)
		}
	}
	// Another layer, and with it another manifest, under the same tag.
	h.push("1", tarOf(t, file{"a", "changed"}))
	out, err = verify("1")
	refuses("another image under the tag", out, err)
	out, err = old("1")
	refuses("another image under the tag", out, err)

	// A key that was revoked signs nothing more that cosign takes with the new one.
	if _, err := h.Rotate(h.ctx, h.workspace, true); err != nil {
		t.Fatal(err)
	}
	key = h.key()
	out, err = s.try(cosign, "verify", "--key", key, "--insecure-ignore-tlog=true", h.host+"/plant-7/press/cell@"+img.Digest)
	refuses("signed by another key", out, err)
	if _, err := h.Sign(h.ctx, h.workspace, Order{Repository: "press/cell", Ref: images.Reference(img.Digest)}); err != nil {
		t.Fatal(err)
	}
	out, err = s.try(cosign, "verify", "--key", key, "--insecure-ignore-tlog=true", h.host+"/plant-7/press/cell@"+img.Digest)
	takes("signed by the new key too", out, err)
}

// TestSPDX lets SPDX's own validator read what was written.
func TestSPDX(t *testing.T) {
	t.Parallel()
	validate, oras := tool(t, "pyspdxtools", "../../.cache/venv/bin"), orasTool(t)
	h, img := signed(t)
	s := h.shell()
	ref := h.host + "/plant-7/press/cell"
	out, err := s.try(oras, "discover", "--ca-file", h.ca, "--format", "json", "--artifact-type", sbom.MediaType, ref+":1")
	var list struct {
		Referrers []struct{ Digest string } `json:"referrers"`
	}
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list.Referrers) != 1 {
		t.Fatalf("oras finds %+v: %v\n%s", list, err, out)
	}
	layers, bodies := h.about(img.Digest, sbom.MediaType)
	path := filepath.Join(s.dir, "image.spdx.json")
	if err := os.WriteFile(path, bodies[0], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := s.try(validate, "--infile", path); err != nil {
		t.Errorf("the SBOM is not valid: %v\n%s\n%s", err, out, bodies[0])
	}
	var doc struct {
		Packages []struct {
			Name, VersionInfo, LicenseDeclared string
		} `json:"packages"`
	}
	if err := json.Unmarshal(bodies[0], &doc); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, p := range doc.Packages {
		got[p.Name] = p.VersionInfo + " " + p.LicenseDeclared
	}
	for name, want := range map[string]string{
		"libc6": "2.36-9+deb12u1 NOASSERTION", "numpy": "1.26.4 BSD-3-Clause AND (MIT OR Apache-2.0)", "odd_one": "1+local LicenseRef-1",
		"none": "2 NOASSERTION", "onnxruntime": "1.22.0 MIT", "model.onnx": "2 NOASSERTION",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if _, there := got["gone"]; there {
		t.Error("a package that was removed is listed")
	}
	// A validator that takes anything would show nothing.
	broken := strings.Replace(string(bodies[0]), `"SPDX-2.3"`, `"SPDX-9"`, 1)
	if err := os.WriteFile(path, []byte(broken), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.try(validate, "--infile", path); err == nil {
		t.Error("the validator takes a document of a version that is not there")
	}
	if out, err := s.try(oras, "pull", "--ca-file", h.ca, "-o", "out", ref+"@"+list.Referrers[0].Digest); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	h.flip(layers[0].Digest)
	if out, err := s.try(oras, "pull", "--ca-file", h.ca, "-o", "again", ref+"@"+list.Referrers[0].Digest); err == nil {
		t.Errorf("oras takes an SBOM with a flipped bit\n%s", out)
	}
}

func orasTool(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob("../../.cache/bin/oras-v*")
	if err != nil || len(found) == 0 {
		return tool(t, "oras")
	}
	path, err := filepath.Abs(found[len(found)-1])
	if err != nil {
		t.Fatal(err)
	}
	return path
}
