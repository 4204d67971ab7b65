package signing

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/packaging/sbom"
)

// verify does what a device does with an image that its desired state names.
func (h *hub) verify(tag string) error {
	h.t.Helper()
	_, manifest, err := h.c.Images.Manifest(h.ctx, h.workspace, "press/cell", images.Reference(tag))
	if err != nil {
		h.t.Fatal(err)
	}
	envelope, err := h.Envelope(h.ctx, h.workspace, "press/cell", images.Reference(tag))
	if err != nil {
		h.t.Fatal(err)
	}
	return trust.VerifyImage(manifest, envelope, h.device().ImageKeys())
}

func isFor(t *testing.T, err error, reason atelier.Reason) {
	t.Helper()
	var e *trust.Error
	if !errors.As(err, &e) || e.Reason != reason {
		t.Errorf("%v, want the reason %s", err, reason)
	}
}

// The first signature makes the key, and lets devices trust it; a device takes what is
// signed and nothing else.
func TestSign(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	if keys, err := h.Keys(h.ctx, h.workspace); err != nil || len(keys) != 0 {
		t.Fatalf("keys %v, %v before anything was signed", keys, err)
	}
	h.push("1", tarOf(t, file{"a", "one"}))
	h.push("2", tarOf(t, file{"a", "two"}))
	img := h.sign("1", nil)
	keys, err := h.Keys(h.ctx, h.workspace)
	if err != nil || len(keys) != 1 || !keys[0].Signs || !strings.HasPrefix(keys[0].PEM, "-----BEGIN PUBLIC KEY-----\n") {
		t.Fatalf("keys %+v, %v", keys, err)
	}
	if s := img.Signature; s == nil || s.Key != keys[0].ID || !s.Trusted || s.Time.IsZero() {
		t.Errorf("the signature is %+v", img.Signature)
	}
	if !slices.Equal(h.told, []string{h.workspace}) {
		t.Errorf("told of new delegations: %v", h.told)
	}
	if err := h.verify("1"); err != nil {
		t.Error(err)
	}
	isFor(t, h.verify("2"), atelier.ReasonImageUnsigned)
	if again := h.sign("1", nil); again.Revision != img.Revision {
		t.Error("an image that is signed was signed again")
	}

	// What is deleted goes with all that was said about it.
	if err := h.c.Images.Delete(h.ctx, h.workspace, "press/cell", img.Digest); err != nil {
		t.Fatal(err)
	}
	all, err := h.c.Images.Images(h.ctx, h.workspace, "press/cell", "", 100)
	if err != nil || len(all) != 1 {
		t.Errorf("%d images are left, want the one that was not deleted: %+v, %v", len(all), all, err)
	}
}

func TestRotate(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.push("1", tarOf(t, file{"a", "one"}))
	h.push("2", tarOf(t, file{"a", "two"}))
	first := h.sign("1", nil)
	keys, err := h.Rotate(h.ctx, h.workspace, false)
	if err != nil || len(keys) != 2 || !keys[0].Signs || keys[1].Signs || keys[1].ID != first.Signature.Key {
		t.Fatalf("keys %+v, %v", keys, err)
	}
	second := h.sign("2", nil)
	if second.Signature.Key != keys[0].ID {
		t.Errorf("signed by %s, want the new key", second.Signature.Key)
	}
	for _, tag := range []string{"1", "2"} {
		if err := h.verify(tag); err != nil {
			t.Errorf("after a rotation: %v", err)
		}
	}
	if again := h.sign("1", nil); again.Signature.Key != keys[0].ID {
		t.Error("signing again keeps the older key")
	}
	if layers, _ := h.layers(strings.Replace(first.Digest, ":", "-", 1) + ".sig"); len(layers) != 2 {
		t.Errorf("the tag that cosign looks at has %d signatures, want one of each key", len(layers))
	}
	if keys, err = h.Rotate(h.ctx, h.workspace, true); err != nil || len(keys) != 1 {
		t.Fatalf("keys %+v, %v", keys, err)
	}
	isFor(t, h.verify("2"), atelier.ReasonImageUnsigned) // the hub sends no envelope that no device takes
	img, err := h.c.Images.Image(h.ctx, h.workspace, "press/cell", "2")
	if err != nil {
		t.Fatal(err)
	}
	h.Judge(h.workspace, &img.Image)
	if img.Signature == nil || img.Signature.Trusted {
		t.Errorf("a revoked key's signature is shown as %+v", img.Signature)
	}
	isFor(t, trust.VerifyImage([]byte("{}"), img.Envelope, h.device().ImageKeys()), atelier.ReasonImageSignatureWrong)
	h.sign("2", nil)
	if err := h.verify("2"); err != nil {
		t.Error(err)
	}
	for n := 1; n < trust.MaxKeys; n++ {
		if _, err := h.Rotate(h.ctx, h.workspace, false); err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := h.Rotate(h.ctx, h.workspace, false); atelier.CodeOf(err) != atelier.Conflict {
		t.Errorf("one key too many: %v", err)
	}
}

// A hub that ended between saving a key and delegating it does so at its next start.
func TestKeysAreDelegatedAtTheStart(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.push("1", tarOf(t, file{"a", "one"}))
	h.sign("1", nil)
	if _, err := h.authority.DelegateImages(h.workspace, nil); err != nil {
		t.Fatal(err)
	}
	isFor(t, h.verify("1"), atelier.ReasonImageUnsigned)
	if _, err := New(h.ctx, h.c); err != nil {
		t.Fatal(err)
	}
	if err := h.verify("1"); err != nil {
		t.Error(err)
	}
	if err := h.Forget(h.ctx, h.workspace); err != nil {
		t.Fatal(err)
	}
	if keys, err := h.Keys(h.ctx, h.workspace); err != nil || len(keys) != 0 {
		t.Errorf("after a workspace was forgotten it has the keys %v, %v", keys, err)
	}
	if err := h.Forget(h.ctx, h.workspace); err != nil {
		t.Error("forgetting again:", err)
	}
}

func TestSignIndex(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	one, two := h.push("amd64", tarOf(t, file{"a", "one"})), h.push("arm64", tarOf(t, file{"a", "two"}))
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": images.TypeIndex, "manifests": []images.Descriptor{
		{MediaType: one.MediaType, Digest: one.Digest, Size: one.Size}, {MediaType: two.MediaType, Digest: two.Digest, Size: two.Size},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.c.Images.Push(h.ctx, h.workspace, "press/cell", "all", nil, images.TypeIndex, index); err != nil {
		t.Fatal(err)
	}
	h.sign("all", nil)
	for _, tag := range []string{"all", "amd64", "arm64"} {
		if err := h.verify(tag); err != nil {
			t.Error(tag, err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	img := h.push("1", tarOf(t, file{"a", "one"}))
	fails := func(code atelier.Code, o Order) {
		t.Helper()
		if o.Repository == "" {
			o.Repository = "press/cell"
		}
		if _, err := h.Sign(h.ctx, h.workspace, o); atelier.CodeOf(err) != code {
			t.Errorf("%+v: %v, want %s", o, err, code)
		}
	}
	fails(atelier.NotFound, Order{Ref: "2"})
	fails(atelier.NotFound, Order{Repository: "other", Ref: "1"})
	fails(atelier.Invalid, Order{Ref: "1", Lineage: &atelier.Lineage{Kind: "package", Builder: "hub", Materials: []atelier.Material{{Kind: "wish", Name: "x"}}}})
	fails(atelier.Invalid, Order{Ref: "1", Lineage: &atelier.Lineage{}})
	if keys, _ := h.Keys(h.ctx, h.workspace); len(keys) != 0 {
		t.Error("a refusal made a key")
	}
	_, body, err := h.c.Images.Manifest(h.ctx, h.workspace, "press/cell", images.Reference(img.Digest))
	if err != nil {
		t.Fatal(err)
	}
	long := images.Reference("sha512:" + strings.Repeat("0", 128))
	if _, err := h.c.Images.Push(h.ctx, h.workspace, "press/cell", long, nil, images.TypeImage, body); atelier.CodeOf(err) != atelier.Invalid {
		t.Fatal(err)
	}
	// Where a layer is no archive, the image is signed and says what is not known of it.
	h.push("odd", []byte("no archive"))
	h.sign("odd", nil)
	_, documents := h.about(h.image("odd").Digest, sbom.MediaType)
	if len(documents) != 1 || !strings.Contains(string(documents[0]), "could not be read") {
		t.Errorf("the SBOM of what cannot be read: %s", documents)
	}
}

func (h *hub) image(tag string) atelier.Image {
	h.t.Helper()
	img, err := h.c.Images.Image(h.ctx, h.workspace, "press/cell", images.Reference(tag))
	if err != nil {
		h.t.Fatal(err)
	}
	return img.Image
}

// made is a lineage as whoever builds packages gives it.
func made() *atelier.Lineage {
	return &atelier.Lineage{
		Kind: "package", Builder: "hub", Invocation: "01j", Started: time.Unix(1700000000, 0), Finished: time.Unix(1700000060, 0),
		Parameters: map[string]string{"model": "digits:2"},
		Materials: []atelier.Material{
			{Kind: atelier.MaterialModel, Name: "model.onnx", Version: "2", Digest: atelier.DigestOf([]byte("model"))},
			{Kind: atelier.MaterialRun, Name: "run 17", URI: "https://mlflow.example/runs/17"},
			{Kind: atelier.MaterialRuntime, Name: "onnxruntime", Version: "1.22.0", License: "MIT", Digest: atelier.DigestOf([]byte("runtime"))},
			{Kind: atelier.MaterialData, Name: "digits.csv", Digest: atelier.DigestOf([]byte("data"))},
		},
	}
}

// What an image contains and how it came to be lies beside it, by itself and signed.
func TestStatements(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	h.push("1", tarOf(t, file{"var/lib/dpkg/status", "Package: libc6\nStatus: install ok installed\nVersion: 2.36-9\nArchitecture: amd64\n"}),
		tarOf(t, file{"opt/env/numpy-1.26.4.dist-info/METADATA", "Name: numpy\nVersion: 1.26.4\nLicense-Expression: BSD-3-Clause\n"}))
	img := h.sign("1", made())
	_, documents := h.about(img.Digest, sbom.MediaType)
	if len(documents) != 1 {
		t.Fatalf("%d SBOMs", len(documents))
	}
	for _, want := range []string{"pkg:deb/debian/libc6@2.36-9?arch=amd64", "pkg:pypi/numpy@1.26.4", `"BSD-3-Clause"`, "onnxruntime", "model.onnx", img.Digest[len("sha256:"):]} {
		if !strings.Contains(string(documents[0]), want) {
			t.Errorf("the SBOM lacks %s:\n%s", want, documents[0])
		}
	}
	keys := h.device().ImageKeys()
	found := map[string]json.RawMessage{}
	_, bundles := h.about(img.Digest, typeBundle)
	for _, b := range bundles {
		st, err := trust.OpenStatement(envelopeOf(t, b, img.Signature.Key), keys)
		if err != nil {
			t.Fatal(err)
		}
		if "sha256:"+st.Subject[0].Digest["sha256"] != img.Digest {
			t.Errorf("a statement is about %v", st.Subject)
		}
		found[st.PredicateType] = st.Predicate
	}
	if string(found[sbom.Predicate]) != string(documents[0]) {
		t.Error("the SBOM that is signed is not the one beside it")
	}
	var p struct {
		BuildDefinition struct {
			BuildType            string
			ExternalParameters   map[string]string
			ResolvedDependencies []struct {
				Name        string
				Digest      map[string]string
				Annotations map[string]string
			}
		}
		RunDetails struct {
			Builder  struct{ ID string }
			Metadata struct{ StartedOn string }
		}
	}
	if err := json.Unmarshal(found[predicateProvenance], &p); err != nil {
		t.Fatal(err, found)
	}
	deps := p.BuildDefinition.ResolvedDependencies
	if len(deps) != 4 || deps[3].Digest["sha256"] != string(atelier.DigestOf([]byte("data")))[len("sha256:"):] || deps[1].Annotations["kind"] != "run" ||
		p.BuildDefinition.ExternalParameters["model"] != "digits:2" || p.RunDetails.Metadata.StartedOn != "2023-11-14T22:13:20Z" {
		t.Errorf("the lineage is %s", found[predicateProvenance])
	}
	if _, signed := found[trust.PredicateSigned]; !signed || len(found) != 3 {
		t.Errorf("the statements are %v", found)
	}
	// A lineage may come later; the signature stays.
	other := made()
	other.Invocation = "02j"
	if again := h.sign("1", other); again.Signature.Time != img.Signature.Time {
		t.Error("a lineage that came later made a new signature")
	}
	if layers, _ := h.layers(strings.Replace(img.Digest, ":", "-", 1) + ".att"); len(layers) != 2 {
		t.Errorf("the tag that cosign looks at has %d statements, want the newest of each kind", len(layers))
	}
}

// envelopeOf returns the envelope in a bundle, with the id of the key, by which devices
// find it.
func envelopeOf(t *testing.T, bundle []byte, key string) []byte {
	t.Helper()
	var b struct {
		Envelope struct {
			Payload     string              `json:"payload"`
			PayloadType string              `json:"payloadType"`
			Signatures  []map[string]string `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(bundle, &b); err != nil {
		t.Fatal(err)
	}
	b.Envelope.Signatures[0]["keyid"] = key
	envelope, err := json.Marshal(b.Envelope)
	if err != nil {
		t.Fatal(err)
	}
	return envelope
}

func FuzzKeys(f *testing.F) {
	for _, s := range []string{"", "{}", `{"format":1}`, `{"format":2,"key":""}`, `{"format":1,"key":"-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := parseKeys(b)
		if err != nil {
			if atelier.CodeOf(err) == "" {
				t.Errorf("%v has no code", err)
			}
			return
		}
		if k.none() || len(k.public()) > trust.MaxKeys {
			t.Errorf("taken are %d keys", len(k.public()))
		}
	})
}
