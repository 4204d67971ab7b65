package rest

import (
	"context"
	"mime"
	"net/http"
	"path"

	"github.com/danielgtaylor/huma/v2"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
)

const octets = "application/octet-stream"

type blobInfo struct {
	Digest atelier.Digest `json:"digest" doc:"SHA-256 of the content: sha256: and 64 hexadecimal digits"`
	Size   int64          `json:"size" doc:"Bytes"`
}

const uploadDescription = "The content is hashed as it comes, and there once the answer is. Sent again it takes no space and gives the " +
	"same answer, so no Idempotency-Key is needed. What no version, environment or runtime names within a day is deleted again."

func (s *server) registerBlobs(api huma.API) {
	const tag = "Content"
	register(s, api, operation{
		ID: "upload-blob", Method: http.MethodPost, Path: inWorkspace + "/blobs", Tag: tag, Status: http.StatusCreated,
		Summary: "Upload content", Description: uploadDescription, Stream: octets,
		Verb: access.BlobUpload, Kind: catalog.Blobs.Kind, Errors: []atelier.Code{atelier.NoSpace, atelier.Timeout},
	}, func(ctx context.Context, in *struct {
		WorkspaceParam
		UploadParam
	}) (*answer[blobInfo], error) {
		return s.upload(ctx, &in.UploadParam)
	})
	register(s, api, operation{
		ID: "upload-hub-blob", Method: http.MethodPost, Path: "/v1/blobs", Tag: tag, Status: http.StatusCreated,
		Summary: "Upload content of the hub", Description: "For runtimes. " + uploadDescription, Stream: octets,
		Verb: access.BlobUpload, Kind: catalog.Blobs.Kind, Errors: []atelier.Code{atelier.NoSpace, atelier.Timeout},
	}, func(ctx context.Context, in *struct{ UploadParam }) (*answer[blobInfo], error) {
		return s.upload(ctx, &in.UploadParam)
	})
	register(s, api, operation{
		ID: "find-blob", Method: http.MethodHead, Path: inWorkspace + "/blobs/{digest}", Tag: tag,
		Summary: "Tell whether the workspace holds content", Reply: octets,
		Verb: access.BlobShow, Kind: catalog.Blobs.Kind, Object: "digest",
	}, s.getBlob)
	register(s, api, operation{
		ID: "get-blob", Method: http.MethodGet, Path: inWorkspace + "/blobs/{digest}", Tag: tag,
		Summary: "Download content", Reply: octets, Ranges: true,
		Verb: access.BlobDownload, Kind: catalog.Blobs.Kind, Object: "digest",
	}, s.getBlob)
}

// UploadParam is the input of an upload.
type UploadParam struct {
	Raw
	Digest string `query:"digest" maxLength:"71" doc:"What the content's digest must be"`
}

// BlobParam is the input of a question for content.
type BlobParam struct {
	WorkspaceParam
	Digest string `path:"digest" maxLength:"71" doc:"Digest of the content"`
}

func (s *server) upload(ctx context.Context, in *UploadParam) (*answer[blobInfo], error) {
	body := in.body(s.stall)
	b, err := s.registry.Upload(ctx, workspaceOf(ctx), body, atelier.Digest(in.Digest), in.r.ContentLength)
	if err != nil {
		return nil, err
	}
	body.Done()
	return &answer[blobInfo]{blobInfo{atelier.Digest(b.Name), b.Size}}, nil
}

func (s *server) getBlob(ctx context.Context, in *BlobParam) (*stream, error) {
	d := atelier.Digest(in.Digest)
	b, err := s.registry.OpenBlob(ctx, workspaceOf(ctx), d)
	if err != nil {
		return nil, err
	}
	return s.serveBlob(b, d.Short()), nil
}

// contentDisposition makes browsers save content and never show it.
func contentDisposition(name string) string {
	return mime.FormatMediaType("attachment", map[string]string{"filename": path.Base(name)})
}
