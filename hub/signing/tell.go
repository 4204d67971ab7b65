package signing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/internal/trust"
	"github.com/atelier-edge/atelier/packaging/sbom"
)

// home begins the URIs that say what the hub's statements mean.
const home = "https://github.com/atelier-edge/atelier"

// predicateProvenance is the type of SLSA's statements of how something came to be.
const predicateProvenance = "https://slsa.dev/provenance/v1"

// tell puts beside an image what it contains and how it came to be, each in a signed
// statement. Where the image is signed already, only a lineage is added.
func (j *job) tell(ctx context.Context, img catalog.Image, m parts, signed bool) error {
	if !signed && !j.order.Unlisted && len(m.Manifests) == 0 {
		document, err := j.list(ctx, img, m)
		if err != nil {
			return err
		}
		layer, err := j.c.Images.Put(ctx, j.workspace, j.order.Repository, sbom.MediaType, document)
		if err != nil {
			return err
		}
		layer.Annotations = map[string]string{noteTitle: "sbom.spdx.json"} // by which oras names the file
		if err := j.attach(ctx, img, sbom.MediaType, layer, map[string]string{}); err != nil {
			return err
		}
		if err := j.attest(ctx, img, sbom.Predicate, document); err != nil {
			return err
		}
	}
	if j.order.Lineage == nil {
		return nil
	}
	predicate, err := provenance(j.order.Lineage)
	if err != nil {
		return err
	}
	return j.attest(ctx, img, predicateProvenance, predicate)
}

// attest puts a signed statement beside an image, in both forms.
func (j *job) attest(ctx context.Context, img catalog.Image, predicateType string, predicate []byte) error {
	envelope, err := trust.SignStatement(atelier.Digest(img.Digest), predicateType, predicate, j.keys.signer)
	if err != nil {
		return err
	}
	if err := j.attachBundle(ctx, img, envelope, predicateType); err != nil {
		return err
	}
	layer, err := j.c.Images.Put(ctx, j.workspace, j.order.Repository, typeEnvelope, envelope)
	if err != nil {
		return err
	}
	layer.Annotations = map[string]string{noteSignature: "", notePredicate: predicateType}
	return j.tag(ctx, img, ".att", typeAttested, layer)
}

// list returns an SPDX document of what the image contains: what its layers say, and what
// its lineage does.
func (j *job) list(ctx context.Context, img catalog.Image, m parts) ([]byte, error) {
	d := sbom.Document{
		Name: j.name + "/" + j.order.Repository, Digest: img.Digest, Created: j.now(), Creator: "atelier",
		Namespace: fmt.Sprintf("%s/spdx/%s/%s", home, strings.Replace(img.Digest, ":", "-", 1), atelier.NewID()),
	}
	if !j.order.Ref.IsDigest() {
		d.Version = string(j.order.Ref)
	}
	var contents sbom.Contents
	var unread []string
	for _, layer := range m.Layers {
		if title := firstNote(layer, "org.cncf.model.filepath", noteTitle); title != "" {
			d.Packages = append(d.Packages, sbom.Package{Kind: kindOf(layer), Name: title, Digest: layer.Digest})
		}
		if !strings.Contains(layer.MediaType, "tar") {
			continue
		}
		err := j.read(ctx, layer, &contents)
		switch code := atelier.CodeOf(err); {
		case code == atelier.NotFound && layer.URLs != nil, code == atelier.Invalid: // not kept here; or encrypted, say
			unread = append(unread, layer.Digest)
		case err != nil:
			return nil, err
		}
	}
	d.Packages = append(d.Packages, contents.Packages()...)
	if l := j.order.Lineage; l != nil {
		d.Packages = append(d.Packages, listed(l.Materials)...)
	}
	if len(unread) > 0 {
		d.Comment = "These layers could not be read, and what they contain is not listed: " + strings.Join(unread, ", ")
	}
	return d.SPDX()
}

// read adds a layer to what is known of an image.
func (j *job) read(ctx context.Context, layer images.Descriptor, to *sbom.Contents) (err error) {
	b, err := j.c.Images.OpenLayer(ctx, j.workspace, j.order.Repository, layer.Digest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return to.AddLayer(ctx, b, b.Size())
}

func firstNote(d images.Descriptor, names ...string) string {
	for _, name := range names {
		if note := d.Annotations[name]; note != "" {
			return note
		}
	}
	return ""
}

// kindOf says what a layer that is one file is, by the media types of ModelPack.
func kindOf(d images.Descriptor) sbom.Kind {
	switch {
	case strings.Contains(d.MediaType, ".model.weight."), strings.Contains(d.MediaType, ".model.weight.config."):
		return sbom.Model
	case strings.Contains(d.MediaType, ".model.code."):
		return sbom.Code
	}
	return sbom.File
}

// listed returns those of an image's materials that are parts of it.
func listed(materials []atelier.Material) (list []sbom.Package) {
	kinds := map[string]sbom.Kind{
		atelier.MaterialModel: sbom.Model, atelier.MaterialCode: sbom.Code, atelier.MaterialRuntime: sbom.Runtime, atelier.MaterialBase: sbom.Base,
	}
	for _, m := range materials {
		if kind, part := kinds[m.Kind]; part {
			list = append(list, sbom.Package{Kind: kind, Name: m.Name, Version: m.Version, License: m.License, Digest: string(m.Digest), URI: m.URI})
		}
	}
	return list
}

// provenance returns a lineage as the predicate that SLSA defines:
// https://slsa.dev/spec/v1.0/provenance.
func provenance(l *atelier.Lineage) ([]byte, error) {
	type resource struct {
		Name        string            `json:"name,omitempty"`
		URI         string            `json:"uri,omitempty"`
		Digest      map[string]string `json:"digest,omitempty"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	type definition struct {
		Type       string            `json:"buildType"`
		Parameters map[string]string `json:"externalParameters"`
		Resolved   []resource        `json:"resolvedDependencies"`
	}
	type builder struct {
		ID string `json:"id"`
	}
	type metadata struct {
		Invocation string `json:"invocationId,omitempty"`
		Started    string `json:"startedOn,omitempty"`
		Finished   string `json:"finishedOn,omitempty"`
	}
	type details struct {
		Builder  builder  `json:"builder"`
		Metadata metadata `json:"metadata"`
	}
	p := struct {
		Definition definition `json:"buildDefinition"`
		Details    details    `json:"runDetails"`
	}{
		definition{home + "/build/" + l.Kind + "/v1", l.Parameters, []resource{}},
		details{builder{home + "/builder/" + l.Builder}, metadata{Invocation: l.Invocation}},
	}
	if p.Definition.Parameters == nil {
		p.Definition.Parameters = map[string]string{}
	}
	const second = "2006-01-02T15:04:05Z"
	if !l.Started.IsZero() {
		p.Details.Metadata.Started = l.Started.UTC().Format(second)
	}
	if !l.Finished.IsZero() {
		p.Details.Metadata.Finished = l.Finished.UTC().Format(second)
	}
	for _, m := range l.Materials {
		r := resource{Name: m.Name, URI: m.URI, Annotations: map[string]string{"kind": m.Kind}}
		if m.Version != "" {
			r.Annotations["version"] = m.Version
		}
		if algorithm, value, ok := strings.Cut(string(m.Digest), ":"); ok {
			r.Digest = map[string]string{algorithm: value}
		}
		p.Definition.Resolved = append(p.Definition.Resolved, r)
	}
	b, err := json.Marshal(p)
	if err != nil {
		return nil, atelier.Errorf(atelier.Internal, "encode a lineage: %w", err)
	}
	return b, nil
}
