package signing

import (
	"context"
	"encoding/json"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/trust"
)

// Order says what is to be signed.
type Order struct {
	Repository string
	Ref        images.Reference // of the image; of each that it names too, where it is an index
	// Lineage says how the image came to be; nil where nobody knows, as with images that
	// users push.
	Lineage *atelier.Lineage
	// Unlisted leaves out what the image contains: nothing of its layers is read.
	Unlisted bool
}

// Sign signs an image that is in the workspace's registry, with the key of the
// workspace's images, which is made where there is none; and puts beside it what it
// contains and how it came to be, signed likewise. An image that the key has signed is
// left as it is, but for a lineage that is new. Whoever builds images calls it once the
// manifest is in the registry.
func (s *Service) Sign(ctx context.Context, workspace string, o Order) (atelier.Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.Lineage != nil {
		if err := o.Lineage.Check(); err != nil {
			return atelier.Image{}, err
		}
	}
	var w atelier.Workspace
	err := s.c.Store.View(ctx, func(tx store.Tx) (err error) {
		w, err = catalog.Workspaces.Get(tx, "", workspace)
		return err
	})
	if err == nil {
		err = images.Elsewhere(w)
	}
	if err != nil {
		return atelier.Image{}, err
	}
	img, manifest, err := s.c.Images.Manifest(ctx, workspace, o.Repository, o.Ref)
	if err != nil {
		return atelier.Image{}, err
	}
	k, err := s.current(ctx, workspace)
	if err != nil {
		return atelier.Image{}, err
	}
	job := &job{Service: s, seen: map[string]bool{}, workspace: workspace, name: w.Name, order: o, keys: k}
	if err := job.sign(ctx, img, manifest, 0); err != nil {
		return atelier.Image{}, err
	}
	img, err = s.c.Images.Image(ctx, workspace, o.Repository, o.Ref)
	s.Judge(workspace, &img.Image)
	return img.Image, err
}

// job is the work of one Sign.
type job struct {
	*Service
	workspace string // id
	name      string // the workspace's
	order     Order
	keys      keys
	seen      map[string]bool // digests of images that were dealt with
}

// maxDepth bounds indexes of indexes.
const maxDepth = 4

// sign signs an image, and first those that it names.
func (j *job) sign(ctx context.Context, img catalog.Image, manifest []byte, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !strings.HasPrefix(img.Digest, "sha256:") {
		return atelier.Errorf(atelier.Unsupported, "the image %.24s… goes by a SHA-512 digest, which cosign and devices do not verify", img.Digest).
			WithRemedy("Push it under its SHA-256 digest, and sign that.")
	}
	var m parts
	if err := json.Unmarshal(manifest, &m); err != nil {
		return atelier.Errorf(atelier.Corrupt, "the manifest %s cannot be read: %w", img.Digest, err)
	}
	if depth > maxDepth {
		return atelier.Errorf(atelier.TooLarge, "the index names indexes that name indexes, more than %d deep", maxDepth)
	}
	if j.seen[img.Digest] { // indexes may name an image again and again
		return nil
	}
	j.seen[img.Digest] = true
	for _, d := range m.Manifests {
		part, body, err := j.c.Images.Manifest(ctx, j.workspace, j.order.Repository, images.Reference(d.Digest))
		if err != nil {
			return err
		}
		if err := j.sign(ctx, part, body, depth+1); err != nil {
			return err
		}
	}
	key := j.keys.signer.Public().ID()
	signed := img.Signature != nil && img.Signature.Key == key
	if err := j.tell(ctx, img, m, signed); err != nil || signed {
		return err
	}
	// The image is called signed once everything about it is in place.
	envelope, err := trust.SignImage(atelier.Digest(img.Digest), j.keys.signer)
	if err != nil {
		return err
	}
	if err := j.attachBundle(ctx, img, envelope, trust.PredicateSigned); err != nil {
		return err
	}
	if err := j.attachSimple(ctx, img); err != nil {
		return err
	}
	return j.c.Images.NoteSignature(ctx, j.workspace, j.order.Repository, img.Digest,
		atelier.ImageSignature{Key: key, Time: j.now().UTC()}, envelope)
}

// parts is what of a manifest matters here.
type parts struct {
	MediaType string              `json:"mediaType"`
	Config    *images.Descriptor  `json:"config"`
	Layers    []images.Descriptor `json:"layers"`
	Manifests []images.Descriptor `json:"manifests"`
}

func descriptorOf(img catalog.Image) *images.Descriptor {
	return &images.Descriptor{MediaType: img.MediaType, Digest: img.Digest, Size: img.Size}
}
