package main

import (
	"context"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/signing"
)

// signPackage signs the images of a package that was built, with what it was made of. Where
// the workspace has a registry of its own, nothing is in the hub's to be signed.
func (h *hub) signPackage(ctx context.Context, workspace string, p atelier.Package) error {
	w, err := h.images.Workspace(ctx, workspace)
	if err != nil {
		return err
	}
	if images.Elsewhere(w) != nil {
		return nil
	}
	lineage := p.Lineage()
	lineage.Builder = "atelier-hub " + version
	for _, m := range []*atelier.Descriptor{p.Manifest, p.ModelPack.Manifest} {
		if m == nil {
			continue
		}
		_, err := h.signing.Sign(ctx, workspace, signing.Order{
			Repository: p.Repository, Ref: images.Reference(m.Digest), Lineage: lineage, Unlisted: m == p.ModelPack.Manifest,
		})
		if err != nil {
			return err
		}
	}
	return nil
}
