package rest

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/store"
)

// shownImage is an image with its manifest.
type shownImage struct {
	atelier.Image
	Manifest json.RawMessage `json:"manifest" doc:"As it was pushed"`
}

// ImageParam is the part of an input that names an image.
type ImageParam struct {
	WorkspaceParam
	Path string `path:"path" maxLength:"420" doc:"REPOSITORY:TAG or REPOSITORY@DIGEST"`
}

func (s *server) registerImages(api huma.API) {
	const tag = "Images"
	const one = inWorkspace + "/images/{path}"
	kind := catalog.Images.Kind
	register(s, api, operation{
		ID: "list-images", Method: http.MethodGet, Path: inWorkspace + "/images", Tag: tag, Summary: "List images",
		Description: "Those that the workspace's container registry holds, as container tools pushed them to /v2/.",
		Verb:        access.ImageList, Kind: kind, Watch: true,
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Paging
		Repository string `query:"repository" maxLength:"255" doc:"Only those of this repository"`
	}) (*list[atelier.Image], error) {
		return s.listImages(ctx, in.Repository, in.Paging)
	})
	register(s, api, operation{
		ID: "get-image", Method: http.MethodGet, Path: one, Tag: tag, Summary: "Show an image and its manifest",
		Verb: access.ImageShow, Kind: kind, Object: "path",
	}, func(ctx context.Context, in *ImageParam) (*answer[shownImage], error) {
		repository, ref, err := images.ParseName(in.Path)
		if err != nil {
			return nil, err
		}
		img, manifest, err := s.images.Manifest(ctx, workspaceOf(ctx), repository, ref)
		s.judge(ctx, &img.Image)
		return &answer[shownImage]{shownImage{img.Image, manifest}}, err
	})
	register(s, api, operation{
		ID: "delete-image", Method: http.MethodDelete, Path: one, Tag: tag, Summary: "Delete a tag, an image or a repository",
		Description: "REPOSITORY:TAG takes the tag away; REPOSITORY@DIGEST deletes the image with its tags; REPOSITORY alone all that is in it.",
		Verb:        access.ImageDelete, Kind: kind, Object: "path", Errors: []atelier.Code{atelier.InUse},
	}, func(ctx context.Context, in *ImageParam) (*empty, error) {
		repository, ref, err := images.ParseName(in.Path)
		switch {
		case err != nil:
			return nil, err
		case ref == "":
			return nil, s.images.DeleteRepository(ctx, workspaceOf(ctx), repository)
		case ref.IsDigest():
			return nil, s.images.Delete(ctx, workspaceOf(ctx), repository, string(ref))
		}
		return nil, s.images.Untag(ctx, workspaceOf(ctx), repository, string(ref))
	})
}

// listImages answers a page of images with their tags.
func (s *server) listImages(ctx context.Context, repository string, p Paging) (*list[atelier.Image], error) {
	kind := catalog.Images.Kind
	after, err := openCursor(kind, p.Cursor)
	if err != nil {
		return nil, err
	}
	out := &list[atelier.Image]{}
	if err := s.store.View(ctx, func(tx store.Tx) error {
		out.Sequence, err = tx.LastEvent() // before the list, so that a watch misses nothing
		return err
	}); err != nil {
		return nil, err
	}
	out.Body.Items, err = s.images.Images(ctx, workspaceOf(ctx), repository, after, p.Limit)
	for i := range out.Body.Items {
		s.judge(ctx, &out.Body.Items[i])
	}
	if n := len(out.Body.Items); n == p.Limit {
		out.Body.Next = sealCursor(kind, out.Body.Items[n-1].ID)
	}
	return out, err
}
