package images

import (
	"context"
	"errors"
	"slices"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// maxTagsAtOnce bounds how many tags a push may set.
const maxTagsAtOnce = 100

// Push adds the image whose manifest is body to a repository, and lets the tags name
// it. ref is a tag, or the digest that the manifest must have. All that the manifest
// names must be in the repository, with the sizes that it says.
func (r *Registry) Push(ctx context.Context, workspace, repository string, ref Reference, tags []string, mediaType string, body []byte) (atelier.Image, error) {
	return r.add(ctx, workspace, catalog.Image{Image: atelier.Image{Repository: repository}}, ref, tags, mediaType, body)
}

func (r *Registry) add(ctx context.Context, workspace string, img catalog.Image, ref Reference, tags []string, mediaType string, body []byte) (atelier.Image, error) {
	if err := ref.Check(); err != nil {
		return img.Image, err
	}
	if !ref.IsDigest() {
		tags = append(tags, string(ref))
	}
	if len(tags) > maxTagsAtOnce {
		return img.Image, atelier.Errorf(atelier.TooLarge, "%d tags are given; at most %d are set at once", len(tags), maxTagsAtOnce).WithField(FieldTag)
	}
	for _, t := range tags {
		if err := checkTag(t); err != nil {
			return img.Image, err
		}
	}
	if len(body) > MaxManifest {
		return img.Image, atelier.Errorf(atelier.TooLarge, "the manifest has %d bytes; at most %d are taken", len(body), MaxManifest).WithField(FieldManifest)
	}
	img.Digest = digestLike(string(ref), body)
	if ref.IsDigest() && img.Digest != string(ref) {
		return img.Image, atelier.Errorf(atelier.Invalid, "the manifest that came has the digest %s, expected was %s", img.Digest, ref).WithField(FieldDigest)
	}
	m, err := parseManifest(mediaType, body)
	if err != nil {
		return img.Image, err
	}
	if img.Content, err = r.keepManifest(body); err != nil {
		return img.Image, err
	}
	img.Name, img.Size, img.MediaType, img.ArtifactType = img.Digest, int64(len(body)), m.MediaType, m.artifactType()
	if m.Subject != nil {
		img.Subject = m.Subject.Digest
	}
	err = r.update(ctx, func(tx store.Tx) error {
		if err := makeRegistry(tx, workspace); err != nil {
			return err
		}
		return r.push(tx, workspace, &img, m, tags)
	})
	if err == nil {
		r.figures.pushed.Add(1)
	}
	img.Tags = tags
	return img.Image, err
}

// keepManifest puts a manifest into the content store. A crash before a row names it
// leaves only what is collected.
func (r *Registry) keepManifest(body []byte) (_ atelier.Digest, err error) {
	if err := r.checkRoom(int64(len(body))); err != nil {
		return "", err
	}
	w, err := r.content.Writer("")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := w.Write(body); err != nil {
		return "", err
	}
	info, err := w.Commit("", -1)
	return info.Digest, err
}

func (r *Registry) push(tx store.Tx, workspace string, img *catalog.Image, m *manifest, tags []string) error {
	repo, err := ensureRepository(tx, workspace, img.Repository)
	if err != nil {
		return err
	}
	img.RepositoryID, img.Total, img.Parts = repo.ID, 0, nil // fn may run again
	for _, d := range m.parts() {
		if err := addPart(tx, workspace, img, m.index(), d); err != nil {
			return err
		}
	}
	there, err := catalog.Images.Find(tx, workspace, repo.ID, img.Digest)
	switch code := atelier.CodeOf(err); {
	case code == atelier.NotFound:
		*img, err = catalog.Images.Insert(tx, workspace, repo.ID, *img)
	case err == nil:
		img.Meta = there.Meta
	}
	if err != nil {
		return err
	}
	for _, tag := range tags {
		if err := setTag(tx, workspace, repo.ID, tag, img); err != nil {
			return err
		}
	}
	return nil
}

// addPart looks for what a manifest names, and counts it to the image.
func addPart(tx store.Tx, workspace string, img *catalog.Image, index bool, d Descriptor) error {
	size, found := int64(0), atelier.Digest("")
	var err error
	if index {
		var part catalog.Image
		part, err = catalog.Images.Find(tx, workspace, img.RepositoryID, d.Digest)
		size, found = part.Size, part.Content
		img.Total += part.Total
	} else {
		var part catalog.Layer
		part, err = catalog.Layers.Find(tx, workspace, img.RepositoryID, d.Digest)
		size, found = part.Size, part.Content
	}
	if atelier.CodeOf(err) == atelier.NotFound {
		return atelier.Errorf(atelier.Invalid, "the manifest names %s, which the repository does not hold", d.Digest).WithField(FieldParts).
			WithRemedy("Push it first, then the manifest.")
	}
	if err != nil {
		return err
	}
	if size != d.Size {
		return atelier.Errorf(atelier.Invalid, "the manifest says that %s has %d bytes, it has %d", d.Digest, d.Size, size).WithField(FieldManifest)
	}
	img.Total += size
	img.Parts = append(img.Parts, found)
	return nil
}

// setTag lets a tag name an image, whatever it named before.
func setTag(tx store.Tx, workspace, repository, tag string, img *catalog.Image) error {
	t, err := catalog.ImageTags.Get(tx, workspace, catalog.TagID(repository, tag))
	switch code := atelier.CodeOf(err); {
	case code == atelier.NotFound:
		_, err = catalog.ImageTags.Insert(tx, workspace, repository, catalog.ImageTag{
			Meta: atelier.Meta{ID: catalog.TagID(repository, tag), Name: tag}, Image: img.ID, Digest: img.Digest,
		})
	case err == nil && t.Image != img.ID:
		t.Image, t.Digest = img.ID, img.Digest
		_, err = catalog.ImageTags.Update(tx, workspace, t)
	}
	return err
}

// Untag takes a tag away. The image stays, under its digest.
func (r *Registry) Untag(ctx context.Context, workspace, repository, tag string) error {
	if err := checkTag(tag); err != nil {
		return err
	}
	return r.update(ctx, func(tx store.Tx) error {
		repo, err := findRepository(tx, workspace, repository)
		if err != nil {
			return err
		}
		err = catalog.ImageTags.Delete(tx, workspace, catalog.TagID(repo.ID, tag), 0)
		if atelier.CodeOf(err) == atelier.NotFound {
			err = errNoImage(repository, Reference(tag))
		}
		return err
	})
}

// Delete removes an image with its tags, and with what the hub made about it. Its layers are let go of once no other image
// of the repository needs them. InUse where an index of the repository names it.
func (r *Registry) Delete(ctx context.Context, workspace, repository, digest string) error {
	if err := CheckDigest(digest); err != nil {
		return err
	}
	return r.update(ctx, func(tx store.Tx) error {
		img, err := findImage(tx, workspace, repository, Reference(digest))
		if err != nil {
			return err
		}
		near, err := catalog.Images.List(tx, store.Query{
			Workspace: workspace, Parent: img.RepositoryID, Rel: catalog.RelBlob, To: string(img.Content), Limit: 3,
		})
		if err != nil {
			return err
		}
		for _, other := range near { // the image itself is among them
			if other.ID != img.ID && slices.Contains(other.Parts, img.Content) {
				return atelier.Errorf(atelier.InUse, "the index %s names this image", other.Digest).WithField(FieldManifest).
					WithRemedy("Delete the index first.")
			}
		}
		return deleteImage(tx, workspace, img)
	})
}

// DeleteRepository removes a repository with all that is in it.
func (r *Registry) DeleteRepository(ctx context.Context, workspace, repository string) error {
	return r.update(ctx, func(tx store.Tx) error {
		repo, err := findRepository(tx, workspace, repository)
		if err != nil {
			return err
		}
		return Remove(tx, workspace, repo)
	})
}

func deleteImage(tx store.Tx, workspace string, img catalog.Image) error {
	about, err := attached(tx, workspace, img)
	if err != nil {
		return err
	}
	for _, other := range about {
		if err := deleteImage(tx, workspace, other); err != nil {
			return err
		}
	}
	tags, err := tagsOf(tx, workspace, img.ID)
	if err != nil {
		return err
	}
	for _, tag := range tags {
		if err := catalog.ImageTags.Delete(tx, workspace, catalog.TagID(img.RepositoryID, tag), 0); err != nil {
			return err
		}
	}
	return catalog.Images.Delete(tx, workspace, img.ID, 0)
}

// tagsOf returns the tags that name an image, in the order of their names.
func tagsOf(tx store.Tx, workspace, image string) ([]string, error) {
	var tags []string
	err := catalog.ImageTags.Each(tx, store.Query{Workspace: workspace, Rel: catalog.RelTagged, To: image}, func(t catalog.ImageTag) error {
		tags = append(tags, t.Name)
		return nil
	})
	slices.Sort(tags)
	return tags, err
}

// Remove deletes a repository with its images, tags and layers within a transaction.
func Remove(tx store.Tx, workspace string, repo atelier.Repository) error {
	in := store.Query{Workspace: workspace, Parent: repo.ID}
	err := errors.Join(
		catalog.ImageTags.Each(tx, in, func(t catalog.ImageTag) error { return catalog.ImageTags.Delete(tx, workspace, t.ID, 0) }),
		catalog.Images.Each(tx, in, func(i catalog.Image) error { return catalog.Images.Delete(tx, workspace, i.ID, 0) }),
		catalog.Layers.Each(tx, in, func(l catalog.Layer) error { return catalog.Layers.Delete(tx, workspace, l.ID, 0) }),
	)
	if err != nil {
		return err
	}
	return catalog.Repositories.Delete(tx, workspace, repo.ID, 0)
}
