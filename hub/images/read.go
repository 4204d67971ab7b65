package images

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

const (
	// MaxTags is the most tags that a page has.
	MaxTags = 1000
	// A page of referrers ends after so many, and where their annotations take so many bytes.
	maxReferrers      = 500
	maxReferrersBytes = 3 << 20
)

// Image returns an image of a repository, with its tags; NotFound where there is none.
func (r *Registry) Image(ctx context.Context, workspace, repository string, ref Reference) (img catalog.Image, err error) {
	if err := ref.Check(); err != nil {
		return img, err
	}
	err = r.store.View(ctx, func(tx store.Tx) error {
		if img, err = findImage(tx, workspace, repository, ref); err != nil {
			return err
		}
		img.Tags, err = tagsOf(tx, workspace, img.ID)
		return err
	})
	return img, err
}

// Manifest returns an image of a repository with its manifest.
func (r *Registry) Manifest(ctx context.Context, workspace, repository string, ref Reference) (img catalog.Image, body []byte, err error) {
	if err := ref.Check(); err != nil {
		return img, nil, err
	}
	err = r.store.View(ctx, func(tx store.Tx) error {
		img, err = findImage(tx, workspace, repository, ref)
		return err
	})
	if err != nil {
		return img, nil, err
	}
	body, err = r.read(img)
	return img, body, err
}

// read reads an image's manifest.
func (r *Registry) read(img catalog.Image) (body []byte, err error) {
	b, err := r.open(img.Content)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	body = make([]byte, min(b.Size(), MaxManifest))
	if _, err := io.ReadFull(io.NewSectionReader(b, 0, b.Size()), body); err != nil {
		return nil, atelier.Errorf(atelier.Internal, "read a manifest: %w", err)
	}
	return body, nil
}

func findImage(tx store.Tx, workspace, repository string, ref Reference) (img catalog.Image, err error) {
	repo, err := findRepository(tx, workspace, repository)
	if err != nil {
		return img, err
	}
	if ref.IsDigest() {
		img, err = catalog.Images.Find(tx, workspace, repo.ID, string(ref))
	} else {
		var t catalog.ImageTag
		if t, err = catalog.ImageTags.Get(tx, workspace, catalog.TagID(repo.ID, string(ref))); err == nil {
			img, err = catalog.Images.Get(tx, workspace, t.Image)
		}
	}
	if atelier.CodeOf(err) == atelier.NotFound {
		err = errNoImage(repository, ref)
	}
	return img, err
}

func errNoImage(repository string, ref Reference) error {
	return atelier.Errorf(atelier.NotFound, "the repository %s has no image %.160q", repository, string(ref)).WithField(FieldManifest).
		WithRemedy("See 'atelier image list %s' for those that it has.", repository)
}

// Images returns at most limit images of a workspace after the id after, with their
// tags; those of one repository where its name is not "".
func (r *Registry) Images(ctx context.Context, workspace, repository, after string, limit int) (list []atelier.Image, err error) {
	list = []atelier.Image{}
	err = r.store.View(ctx, func(tx store.Tx) error {
		q := store.Query{Workspace: workspace, After: after, Limit: limit}
		if repository != "" {
			repo, err := findRepository(tx, workspace, repository)
			if err != nil {
				return err
			}
			q.Parent = repo.ID
		}
		found, err := catalog.Images.List(tx, q)
		if err != nil {
			return err
		}
		for _, img := range found {
			if img.Tags, err = tagsOf(tx, workspace, img.ID); err != nil {
				return err
			}
			list = append(list, img.Image)
		}
		return nil
	})
	return list, err
}

// Tags returns at most limit (up to MaxTags) tags of a repository that come after the
// one given, in the order of their names, and whether there are more.
func (r *Registry) Tags(ctx context.Context, workspace, repository, after string, limit int) (tags []string, more bool, err error) {
	tags = []string{}
	limit = min(limit, MaxTags)
	err = r.store.View(ctx, func(tx store.Tx) error {
		repo, err := findRepository(tx, workspace, repository)
		if err != nil || limit <= 0 {
			return err
		}
		found, err := catalog.ImageTags.List(tx, store.Query{Workspace: workspace, Parent: repo.ID, After: catalog.TagID(repo.ID, after), Limit: limit})
		if err != nil {
			return err
		}
		for _, t := range found {
			tags = append(tags, t.Name)
		}
		if len(found) == limit {
			found, err = catalog.ImageTags.List(tx, store.Query{Workspace: workspace, Parent: repo.ID, After: found[limit-1].ID, Limit: 1})
			more = len(found) > 0
		}
		return err
	})
	return tags, more, err
}

// Referrers returns what in a repository is about the image with the digest, whether
// or not that is there: signatures, say. With an artifact type only those of that.
// The page begins after the image with the id after; next is where the next one
// does, "" on the last.
func (r *Registry) Referrers(ctx context.Context, workspace, repository, digest, artifactType, after string) (list []Descriptor, next string, err error) {
	list = []Descriptor{}
	if err := CheckDigest(digest); err != nil {
		return list, "", err
	}
	var found []catalog.Image
	err = r.store.View(ctx, func(tx store.Tx) error {
		repo, err := findRepository(tx, workspace, repository)
		if atelier.CodeOf(err) == atelier.NotFound {
			return nil // nothing is about what is not there
		}
		if err != nil {
			return err
		}
		found, err = catalog.Images.List(tx, store.Query{
			Workspace: workspace, Parent: repo.ID, Rel: catalog.RelSubject, To: catalog.SubjectOf(repo.ID, digest), After: after, Limit: maxReferrers,
		})
		return err
	})
	if err != nil {
		return list, "", err
	}
	if len(found) == maxReferrers {
		next = found[len(found)-1].ID
	}
	read := int64(0)
	for i, img := range found {
		if artifactType != "" && img.ArtifactType != artifactType {
			continue
		}
		if read += img.Size; read > maxReferrersBytes && len(list) > 0 {
			return list, found[i-1].ID, nil
		}
		body, err := r.read(img)
		if err != nil {
			return list, "", err
		}
		var m manifest
		if err := json.Unmarshal(body, &m); err != nil {
			return list, "", atelier.Errorf(atelier.Corrupt, "the manifest %s cannot be read: %w", img.Digest, err)
		}
		list = append(list, Descriptor{
			MediaType: img.MediaType, Digest: img.Digest, Size: img.Size, ArtifactType: img.ArtifactType, Annotations: m.Annotations,
		})
	}
	return list, next, nil
}
