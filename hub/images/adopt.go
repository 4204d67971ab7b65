package images

import (
	"context"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

// Adopt makes content that the content store has a layer of a repository, without
// copying it. The caller answers for that the workspace may have it: nobody from outside
// may choose the digest. NotFound where it is not there.
func (r *Registry) Adopt(ctx context.Context, workspace, repository string, d atelier.Digest) error {
	if err := CheckName(repository); err != nil {
		return err
	}
	if err := r.content.Keep(d); err != nil { // it may be condemned by now
		return err
	}
	info, err := r.content.Info(d)
	if err != nil {
		return err
	}
	return r.hold(ctx, workspace, repository, string(d), content.Info{Digest: d, Size: info.Size})
}
