package rest

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/signing"
)

// signingKeys are all keys of a workspace: there are never many.
type signingKeys struct {
	Items []atelier.SigningKey `json:"items" doc:"First the one that signs"`
}

func (s *server) registerSigning(api huma.API) {
	const tag = "Images"
	const keys = inWorkspace + "/signing-keys"
	register(s, api, operation{
		ID: "sign-image", Method: http.MethodPost, Path: inWorkspace + "/signatures", Tag: tag, Summary: "Sign an image",
		Description: "With the key of the workspace's images, which is made where there is none. Beside the image come what it contains, in SPDX, and its lineage. " +
			"One that the key has signed stays as it is. Of an index, each image that it names is signed.",
		Verb: access.ImageSign, Kind: catalog.Images.Kind,
		Errors: []atelier.Code{atelier.Conflict, atelier.TooLarge, atelier.Unsupported, atelier.NoSpace},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Body struct {
			Image    string           `json:"image" maxLength:"420" doc:"REPOSITORY:TAG or REPOSITORY@DIGEST"`
			Lineage  *atelier.Lineage `json:"lineage,omitempty" doc:"How it came to be"`
			Unlisted bool             `json:"unlisted,omitempty" doc:"Do not list what it contains"`
		}
	}) (*answer[atelier.Image], error) {
		repository, ref, err := images.ParseName(in.Body.Image)
		if err == nil {
			err = ref.Check()
		}
		if err != nil {
			return nil, err
		}
		img, err := s.signing.Sign(ctx, workspaceOf(ctx), signing.Order{
			Repository: repository, Ref: ref, Lineage: in.Body.Lineage, Unlisted: in.Body.Unlisted,
		})
		return &answer[atelier.Image]{img}, err
	})
	register(s, api, operation{
		ID: "list-signing-keys", Method: http.MethodGet, Path: keys, Tag: tag, Summary: "List the public keys of images",
		Description: "Those whose signatures devices take, as PEM. There is none before the first image is signed.",
		Verb:        access.SigningKeyList, Kind: "signing-key",
	}, func(ctx context.Context, _ *WorkspaceParam) (*answer[signingKeys], error) {
		list, err := s.signing.Keys(ctx, workspaceOf(ctx))
		return &answer[signingKeys]{signingKeys{list}}, err
	})
	register(s, api, operation{
		ID: "rotate-signing-key", Method: http.MethodPost, Path: keys + "/rotate", Tag: tag, Summary: "Give a workspace a new key for images",
		Description: "What the older keys signed stays trusted, unless they are revoked: then images in use are to be signed and deployed again.",
		Verb:        access.SigningKeyRotate, Kind: "signing-key", Errors: []atelier.Code{atelier.Conflict},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		Body struct {
			Revoke bool `json:"revoke,omitempty" doc:"End trust in the older keys"`
		}
	}) (*answer[signingKeys], error) {
		list, err := s.signing.Rotate(ctx, workspaceOf(ctx), in.Body.Revoke)
		return &answer[signingKeys]{signingKeys{list}}, err
	})
}

// judge sets whether the signatures of images are trusted.
func (s *server) judge(ctx context.Context, list ...*atelier.Image) {
	if s.signing != nil {
		s.signing.Judge(workspaceOf(ctx), list...)
	}
}
