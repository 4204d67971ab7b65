package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/trust"
)

// ImageSpec says which container image a deployment shall run, and how.
type ImageSpec struct {
	// Reference is REPOSITORY:TAG or REPOSITORY@DIGEST, in the workspace's registry; nil leaves
	// the image that the deployment has.
	Reference *string
	// Container replaces how it runs.
	Container *atelier.ContainerSettings
}

// Bounds of images that are deployed.
const (
	maxImageManifest = 4 << 20
	maxImageConfig   = 8 << 20
	maxImageLayers   = 256
	maxPlatforms     = 64
)

// ociDescriptor, ociManifest and ociConfig are what is read of an image.
type ociDescriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations"`
	Platform    *struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
	} `json:"platform"`
}

type ociManifest struct {
	MediaType string          `json:"mediaType"`
	Config    *ociDescriptor  `json:"config"`
	Layers    []ociDescriptor `json:"layers"`
	Manifests []ociDescriptor `json:"manifests"`
}

type ociConfig struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
}

// applyImage returns d as spec wants its image, checked.
func (f *Fleet) applyImage(tx store.Tx, workspace string, d atelier.Deployment, spec DeploymentSpec) (atelier.Deployment, error) {
	if spec.Model != nil || spec.Version != nil || d.Image == nil && (d.VersionID != "" || d.Staged != nil) {
		return d, atelier.Errorf(atelier.Conflict, "deployment %q runs a model, or is asked to, and runs no image besides", d.Name).WithField("image").
			WithRemedy("Deploy the image under another name, or delete the deployment first: 'atelier deployment delete %s'.", d.Name)
	}
	if err := onlyImage(&d, spec); err != nil {
		return d, err
	}
	next := atelier.DeploymentImage{}
	if d.Image != nil {
		next = *d.Image
	}
	set(&next.Container, spec.Image.Container)
	if err := next.Container.Check(); err != nil {
		return d, err
	}
	if spec.Image.Reference == nil && d.Image == nil {
		return d, atelier.Errorf(atelier.Invalid, "nothing says which image to run").WithField("image.reference").
			WithRemedy("Name one of the workspace's registry, as REPOSITORY:TAG; 'atelier image list' shows them.")
	}
	if spec.Image.Reference != nil {
		if err := f.findDeployable(tx, workspace, *spec.Image.Reference, &next); err != nil {
			return d, err
		}
	}
	d.Image = &next
	return d, nil
}

// onlyImage refuses what a deployment that runs an image cannot do.
func onlyImage(d *atelier.Deployment, spec DeploymentSpec) error {
	for field, asked := range map[string]bool{
		"prefetch": spec.Prefetch, "switch": spec.Switch, "trial": spec.tries(), "serving": !d.Serving.IsZero(), "collect": d.Collect != nil,
		"routes": len(d.Routes) > 0,
		"model":  spec.Model != nil, "version": spec.Version != nil,
	} {
		if asked {
			return atelier.Errorf(atelier.Unsupported, "deployment %q runs an image, and %s is for models", d.Name, field).WithField(field).
				WithRemedy("Leave it out, or make another deployment.")
		}
	}
	if d.Target == defaultTarget {
		return atelier.Errorf(atelier.Unsupported, "images do not run on a target of kind %q", d.Target).WithField("target").
			WithRemedy("Leave the target out, which is %s then.", atelier.TargetContainerd)
	}
	return nil
}

// findDeployable looks an image up in the workspace's registry, and notes what it is made of for
// each platform.
func (f *Fleet) findDeployable(tx store.Tx, workspace, reference string, to *atelier.DeploymentImage) error {
	none := func(format string, args ...any) error {
		return atelier.Errorf(atelier.NotFound, format, args...).WithField("image.reference").
			WithRemedy("Push it first; 'atelier image list' shows what is in the workspace's registry.")
	}
	name, ref, byDigest := strings.Cut(reference, "@")
	if !byDigest {
		name, ref, _ = strings.Cut(reference, ":")
	}
	if name == "" || ref == "" || len(reference) > 512 {
		return atelier.Errorf(atelier.Invalid, "%.160q is no image; expected was REPOSITORY:TAG or REPOSITORY@DIGEST", reference).WithField("image.reference")
	}
	repo, err := catalog.Repositories.Find(tx, workspace, "", name)
	if isNotFound(err) {
		return none("there is no repository %.160q in this workspace", name)
	}
	if err != nil {
		return err
	}
	var img catalog.Image
	if byDigest {
		img, err = catalog.Images.Find(tx, workspace, repo.ID, ref)
	} else {
		var tag catalog.ImageTag
		if tag, err = catalog.ImageTags.Get(tx, workspace, catalog.TagID(repo.ID, ref)); err == nil {
			img, err = catalog.Images.Get(tx, workspace, tag.Image)
		}
	}
	if isNotFound(err) {
		return none("the repository %s has no image %.160q", name, ref)
	}
	if err != nil {
		return err
	}
	to.Reference, to.Digest = reference, atelier.Digest(img.Digest)
	to.Platforms, err = f.platforms(tx, workspace, repo.ID, img)
	return err
}

// platforms returns what an image, or an index of images, is made of.
func (f *Fleet) platforms(tx store.Tx, workspace, repo string, img catalog.Image) ([]atelier.ImagePlatform, error) {
	m, err := f.readManifest(img)
	if err != nil {
		return nil, err
	}
	if m.Config != nil {
		p, err := f.platform(workspace, img, m)
		return []atelier.ImagePlatform{p}, err
	}
	if len(m.Manifests) > maxPlatforms {
		return nil, atelier.Errorf(atelier.TooLarge, "the index %s names %d images; at most %d can be deployed", img.Digest, len(m.Manifests), maxPlatforms).WithField("image.reference")
	}
	var all []atelier.ImagePlatform
	for _, d := range m.Manifests {
		// Tools put what is about an image beside it, for a platform that there is not.
		if d.Platform != nil && (d.Platform.OS == "unknown" || d.Platform.Architecture == "unknown") {
			continue
		}
		one, err := catalog.Images.Find(tx, workspace, repo, d.Digest)
		if err != nil {
			return nil, err
		}
		m, err := f.readManifest(one)
		if err != nil {
			return nil, err
		}
		if m.Config == nil {
			continue // an index of its own
		}
		p, err := f.platform(workspace, one, m)
		if err != nil {
			return nil, err
		}
		// The first of several for a platform is the one that tools take, too.
		if !slices.ContainsFunc(all, func(q atelier.ImagePlatform) bool { return q.OS == p.OS && q.Arch == p.Arch }) {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return nil, atelier.Errorf(atelier.Unsupported, "the index %s names no image that could be run", img.Digest).WithField("image.reference")
	}
	return all, nil
}

func (f *Fleet) readManifest(img catalog.Image) (m ociManifest, err error) {
	return m, f.readJSON(img.Content, "the manifest "+img.Digest, maxImageManifest, &m)
}

// signature returns what devices verify the image with. They start none that nobody signed.
func (f *Fleet) signature(workspace string, img catalog.Image) ([]byte, error) {
	s := img.Signature
	if s == nil || len(img.Envelope) == 0 {
		return nil, atelier.Errorf(atelier.Conflict, "the image %s is not signed, and devices start none that is not", img.Digest).WithField("image.reference").
			WithRemedy("Sign it first with 'atelier image sign REPOSITORY:TAG'. Packages that the hub builds are signed already.")
	}
	if _, trusted := trust.NewKeySet(f.authority.ImageKeys(workspace)...)[s.Key]; !trusted {
		return nil, atelier.Errorf(atelier.Conflict, "the image %s is signed by the key %s, which is not trusted any more", img.Digest, s.Key).WithField("image.reference").
			WithRemedy("Sign it again with 'atelier image sign REPOSITORY:TAG'.")
	}
	return img.Envelope, nil
}

// platform returns what one image is made of.
func (f *Fleet) platform(workspace string, img catalog.Image, m ociManifest) (p atelier.ImagePlatform, err error) {
	if p.Signature, err = f.signature(workspace, img); err != nil {
		return p, err
	}
	bad := func(format string, args ...any) (atelier.ImagePlatform, error) {
		return p, atelier.Errorf(atelier.Unsupported, "the image %s cannot be deployed: %w", img.Digest, fmt.Errorf(format, args...)).WithField("image.reference")
	}
	if len(m.Layers) > maxImageLayers {
		return bad("it has %d layers, and at most %d are taken", len(m.Layers), maxImageLayers)
	}
	part := func(name string, d *ociDescriptor) (atelier.File, error) {
		digest, err := atelier.ParseDigest(d.Digest)
		if err != nil || d.Size < 0 {
			return atelier.File{}, atelier.Errorf(atelier.Unsupported, "the image %s cannot be deployed: its %s is named by %.100q, and devices know SHA-256 only", img.Digest, path.Base(name), d.Digest).
				WithField("image.reference").WithRemedy("Push it with SHA-256 digests.")
		}
		return atelier.File{Path: name, Digest: digest, Size: d.Size}, nil
	}
	p.Manifest, err = part("image/manifest.json", &ociDescriptor{Digest: img.Digest, Size: img.Size})
	if err != nil {
		return p, err
	}
	if p.Config, err = part("image/config.json", m.Config); err != nil {
		return p, err
	}
	for i := range m.Layers {
		l := &m.Layers[i]
		if !strings.HasPrefix(l.MediaType, "application/vnd.oci.image.layer.v1.tar") && l.MediaType != "application/vnd.docker.image.rootfs.diff.tar.gzip" {
			return bad("its layer %d is of the type %.100q, which is no layer of a container", i+1, l.MediaType)
		}
		file, err := part(fmt.Sprintf("image/layer-%d", i+1), l)
		if err != nil {
			return p, err
		}
		p.Layers = append(p.Layers, atelier.ImageLayer{File: file, MediaType: l.MediaType, Annotations: l.Annotations})
	}
	var c ociConfig
	if err := f.readJSON(p.Config.Digest, "the configuration of the image "+img.Digest, maxImageConfig, &c); err != nil {
		return p, err
	}
	p.OS, p.Arch = c.OS, c.Architecture
	if p.OS == "" || p.Arch == "" {
		return bad("its configuration does not say which platform it is for")
	}
	return p, nil
}

// readJSON reads a small part of an image.
func (f *Fleet) readJSON(d atelier.Digest, what string, most int64, v any) (err error) {
	blob, err := f.content.Open(d)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, blob.Close()) }()
	if blob.Size() > most {
		return atelier.Errorf(atelier.TooLarge, "%s has %d bytes; at most %d are read", what, blob.Size(), most).WithField("image.reference")
	}
	b, err := io.ReadAll(io.NewSectionReader(blob, 0, blob.Size()))
	if err != nil {
		return atelier.Errorf(atelier.Internal, "read %s: %w", what, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return atelier.Errorf(atelier.Unsupported, "%s is no part of a container image", what).WithField("image.reference")
	}
	return nil
}

// active reports whether the deployment has something to run.
func active(d *atelier.Deployment) bool { return d.VersionID != "" || d.Image != nil }

// imageName is what an image is called where a model has its name: the last part of its
// repository.
func imageName(reference string) string {
	name, _, _ := strings.Cut(reference, "@")
	name, _, _ = strings.Cut(name, ":")
	name = path.Base(name)
	return name[:min(len(name), 63)]
}

// imageModule resolves a deployment of an image for a device, or says why it cannot.
func imageModule(dep *planned, d *atelier.Device) (m atelier.Module, why *atelier.Why) {
	img := dep.Image
	target := cmpOr(dep.Target, atelier.TargetContainerd)
	if !slices.Contains(d.Facts.Targets, target) {
		no := atelier.Because(atelier.ReasonUnsupportedFeature, fmt.Sprintf("The agent on %s runs no containers; it knows targets of the kinds %s.", d.Name, listed(d.Facts.Targets))).
			WithRemedy("Install containerd, runc, atelier-driver-containerd and atelier-keep on the device, run its agent as root, and restart it; or choose other devices.")
		return m, &no
	}
	p := img.Platform(d.Facts.OS, d.Facts.Arch)
	if p == nil {
		no := atelier.Because(atelier.ReasonVariantMissing, fmt.Sprintf("The image %s is made for %s, and %s is %s/%s.", img.Reference, img.PlatformList(), d.Name, d.Facts.OS, d.Facts.Arch)).
			WithRemedy(fmt.Sprintf("Push an image for %s/%s, or an index that has one, and deploy it again.", d.Facts.OS, d.Facts.Arch))
		return m, &no
	}
	return atelier.Module{
		Deployment: dep.ID, Name: dep.Name, Rollout: dep.Rollout, Target: target, Package: p.Manifest.Digest,
		Model:    atelier.ModuleModel{Name: imageName(img.Reference), Digest: p.Manifest.Digest},
		Limits:   dep.Limits,
		Endpoint: atelier.ModuleEndpoint{Name: dep.endpoint.Name, Keys: dep.endpoint.Keys},
		Image:    &atelier.ModuleImage{Reference: img.Reference, ImageContent: p.ImageContent, Container: img.Container, Signature: p.Signature},
	}, nil
}
