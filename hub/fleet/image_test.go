package fleet_test

import (
	"encoding/json"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/fleet"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/trust"
)

// signs lets the workspace's devices trust a new key for images.
func (h *hub) signs(ws string) trust.Signer {
	h.t.Helper()
	key, err := trust.NewDeviceKey()
	if err != nil {
		h.t.Fatal(err)
	}
	signer, err := trust.NewSigner(key)
	if err == nil {
		_, err = h.authority.DelegateImages(ws, []trust.PublicKey{signer.Public()})
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return signer
}

// push puts a manifest into a repository, with a tag, signed where there is a signer.
func (h *hub) push(ws, repository, tag string, manifest any, signer ...trust.Signer) atelier.File {
	h.t.Helper()
	b, err := json.Marshal(manifest)
	if err != nil {
		h.t.Fatal(err)
	}
	f := h.blob(b)
	h.update(func(tx store.Tx) error {
		repo, err := catalog.Repositories.Find(tx, ws, "", repository)
		if atelier.CodeOf(err) == atelier.NotFound {
			repo, err = catalog.Repositories.Insert(tx, ws, "", atelier.Repository{Meta: atelier.Meta{Name: repository}})
		}
		if err != nil {
			return err
		}
		image := catalog.Image{
			Image:        atelier.Image{Meta: atelier.Meta{Name: string(f.Digest)}, Repository: repository, Digest: string(f.Digest), Size: f.Size},
			RepositoryID: repo.ID, Content: f.Digest,
		}
		for _, s := range signer {
			image.Signature = &atelier.ImageSignature{Key: s.Public().ID()}
			if image.Envelope, err = trust.SignImage(f.Digest, s); err != nil {
				return err
			}
		}
		img, err := catalog.Images.Insert(tx, ws, repo.ID, image)
		if err != nil || tag == "" {
			return err
		}
		_, err = catalog.ImageTags.Insert(tx, ws, repo.ID, catalog.ImageTag{
			Meta: atelier.Meta{ID: catalog.TagID(repo.ID, tag), Name: tag}, Image: img.ID, Digest: string(f.Digest),
		})
		return err
	})
	return f
}

type object = map[string]any

// image describes an image for an architecture.
func (h *hub) image(arch string) object {
	config, layer := h.blob([]byte(`{"os":"linux","architecture":"`+arch+`"}`)), h.blob([]byte("layer "+arch))
	return object{
		"schemaVersion": 2, "config": object{"digest": config.Digest, "size": config.Size},
		"layers": []object{{
			"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer.Digest, "size": layer.Size, "annotations": object{"what": "code"},
		}},
	}
}

func TestDeployImages(t *testing.T) {
	t.Parallel()
	h := newHub(t)
	ws := h.workspace("lab")
	h.start()
	h.model(ws, "digits", noise(t, 10))
	revoked := h.signs(ws)
	signer := h.signs(ws)
	h.push(ws, "press/cell", "unsigned", h.image("386"))
	h.push(ws, "press/cell", "revoked", h.image("arm"), revoked)
	one := h.push(ws, "press/cell", "1", h.image("amd64"), signer)
	arm := h.push(ws, "press/cell", "", h.image("arm64"), signer)
	index := h.push(ws, "press/cell", "2", object{"schemaVersion": 2, "manifests": []object{
		{"digest": one.Digest, "size": one.Size, "platform": object{"os": "linux", "architecture": "amd64"}},
		{"digest": atelier.DigestOf([]byte("attestation")), "size": 1, "platform": object{"os": "unknown", "architecture": "unknown"}},
		{"digest": arm.Digest, "size": arm.Size, "platform": object{"os": "linux", "architecture": "arm64"}},
	}})
	h.push(ws, "press/cell", "model", object{"schemaVersion": 2, "config": object{"digest": one.Digest, "size": one.Size}, "layers": []object{{"mediaType": "application/vnd.cncf.model.weight.v1.tar", "digest": one.Digest, "size": 1}}}, signer)
	all := &atelier.Selector{All: true}
	text := func(s string) *string { return &s }
	spec := func(name, reference string) fleet.DeploymentSpec {
		return fleet.DeploymentSpec{Name: text(name), Selector: all, Image: &fleet.ImageSpec{Reference: text(reference), Container: &atelier.ContainerSettings{Port: 80}}}
	}
	for name, c := range map[string]struct {
		change func(*fleet.DeploymentSpec)
		code   atelier.Code
	}{
		"no such tag":        {func(s *fleet.DeploymentSpec) { s.Image.Reference = text("press/cell:9") }, atelier.NotFound},
		"no such repository": {func(s *fleet.DeploymentSpec) { s.Image.Reference = text("press/none:1") }, atelier.NotFound},
		"no tag":             {func(s *fleet.DeploymentSpec) { s.Image.Reference = text("press/cell") }, atelier.Invalid},
		"no reference":       {func(s *fleet.DeploymentSpec) { s.Image.Reference = nil }, atelier.Invalid},
		"not signed":         {func(s *fleet.DeploymentSpec) { s.Image.Reference = text("press/cell:unsigned") }, atelier.Conflict},
		"not trusted":        {func(s *fleet.DeploymentSpec) { s.Image.Reference = text("press/cell:revoked") }, atelier.Conflict},
		"no container":       {func(s *fleet.DeploymentSpec) { s.Image.Reference = text("press/cell:model") }, atelier.Unsupported},
		"a model too":        {func(s *fleet.DeploymentSpec) { s.Model, s.Version = text("digits"), text("1") }, atelier.Conflict},
		"prefetch":           {func(s *fleet.DeploymentSpec) { s.Prefetch = true }, atelier.Unsupported},
		"a canary":           {func(s *fleet.DeploymentSpec) { s.Trial = &fleet.TrialSpec{Kind: atelier.Canary} }, atelier.Unsupported},
		"a process":          {func(s *fleet.DeploymentSpec) { s.Target = text("process") }, atelier.Unsupported},
		"odd settings":       {func(s *fleet.DeploymentSpec) { s.Image.Container.Network = "bridge" }, atelier.Invalid},
	} {
		s := spec("bad", "press/cell:1")
		c.change(&s)
		if _, err := h.fleet.CreateDeployment(h.ctx, ws, s); atelier.CodeOf(err) != c.code {
			t.Errorf("%s: %v, expected code %s", name, err, c.code)
		}
	}
	d, err := h.fleet.CreateDeployment(h.ctx, ws, spec("cell", "press/cell:1"))
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Image.Platforms) != 1 || d.Image.Digest != one.Digest || d.Image.Platforms[0].Layers[0].Annotations["what"] != "code" || d.Rollout == "" {
		t.Errorf("the deployment is %+v", d.Image)
	}
	next := h.change(ws, "cell", fleet.DeploymentSpec{Image: &fleet.ImageSpec{Reference: text("press/cell:2")}})
	if next.Rollout == d.Rollout || next.Image.Digest != index.Digest || next.Image.PlatformList() != "linux/amd64, linux/arm64" || next.Image.Container.Port != 80 {
		t.Errorf("the deployment is %+v", next.Image)
	}
	again := h.change(ws, "cell", fleet.DeploymentSpec{Image: &fleet.ImageSpec{Reference: text("press/cell:2")}})
	if again.Rollout != next.Rollout {
		t.Error("the same image began another rollout")
	}
	if _, err := h.fleet.UpdateDeployment(h.ctx, ws, "cell", 0, fleet.DeploymentSpec{Model: text("digits"), Version: text("1")}); atelier.CodeOf(err) != atelier.Unsupported {
		t.Errorf("an image's deployment became a model's: %v", err)
	}
	h.deploy(ws, "digits", "digits", edge)
	if _, err := h.fleet.UpdateDeployment(h.ctx, ws, "digits", 0, fleet.DeploymentSpec{Image: &fleet.ImageSpec{Reference: text("press/cell:1")}}); atelier.CodeOf(err) != atelier.Conflict {
		t.Errorf("a model's deployment became an image's: %v", err)
	}
	trace, err := h.fleet.Trace(h.ctx, ws, next.Rollout+"-x")
	if err != nil || trace.Model != "press/cell:2" || trace.Package != index.Digest {
		t.Errorf("the trace is %+v, %v", trace, err)
	}
}
