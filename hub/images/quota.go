package images

import (
	"context"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// used returns how many bytes of layers a workspace's repositories hold, each content
// once, however many repositories and images share it; the content with the digest is
// left out.
func used(tx store.Tx, workspace string, without atelier.Digest) (n int64, err error) {
	seen := map[atelier.Digest]bool{without: true}
	err = catalog.Layers.Each(tx, store.Query{Workspace: workspace}, func(l catalog.Layer) error {
		if !seen[l.Content] {
			seen[l.Content] = true
			n += l.Size
		}
		return nil
	})
	return n, err
}

// checkQuota checks that a workspace may hold more bytes, of content with the digest, which
// costs nothing where it is there already; "" where nobody knows it yet. Before an upload it is a
// kindness, so that nobody sends for nothing; hold checks again, in the transaction that counts.
func (r *Registry) checkQuota(ctx context.Context, workspace string, d atelier.Digest, more int64) error {
	if r.quota <= 0 {
		return nil
	}
	var n int64
	err := r.store.View(ctx, func(tx store.Tx) (err error) {
		n, err = used(tx, workspace, d)
		return err
	})
	if err != nil {
		return err
	}
	return r.within(n, max(more, 1))
}

// within checks n bytes, and more, against the quota.
func (r *Registry) within(n, more int64) error {
	if r.quota <= 0 || n+more <= r.quota {
		return nil
	}
	return atelier.Errorf(atelier.Conflict, "the workspace's images have %s, this takes %s, and the hub's quota for a workspace is %s",
		atelier.FormatBytes(n), atelier.FormatBytes(more), atelier.FormatBytes(r.quota)).WithField(FieldQuota).
		WithRemedy("Delete images that nobody needs: their layers stop counting once they are let go of. Or raise --image-bytes of the hub.")
}
