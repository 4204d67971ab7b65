package collect

import (
	"context"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/access"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
)

// OpenFile opens the file with an id or path. The caller closes it.
func (s *Store) OpenFile(ctx context.Context, workspace, endpoint, ref string) (f atelier.DataFile, b *content.Blob, err error) {
	err = s.cfg.Store.View(ctx, func(tx store.Tx) (err error) {
		f, err = catalog.DataFiles.Resolve(tx, workspace, endpoint, ref)
		return err
	})
	if err != nil {
		return f, nil, err
	}
	b, err = s.cfg.Content.Open(f.Digest)
	if atelier.CodeOf(err) == atelier.NotFound {
		err = atelier.Errorf(atelier.Corrupt, "the hub's storage has lost the data file %s", f.Name).
			WithRemedy("Restore the hub's content from its backup.")
	}
	return f, b, err
}

// Delete deletes the files of an endpoint that are from before a date (2006-01-02), or all
// of them where it is "", and returns how many.
func (s *Store) Delete(ctx context.Context, workspace, endpoint, before string) (deleted int, err error) {
	var files []atelier.DataFile
	err = s.cfg.Store.View(ctx, func(tx store.Tx) error {
		files = nil
		return catalog.DataFiles.Each(tx, store.Query{Workspace: workspace, Parent: endpoint}, func(f atelier.DataFile) error {
			if before == "" || f.Date < before {
				files = append(files, f)
			}
			return nil
		})
	})
	if err != nil {
		return 0, err
	}
	return len(files), s.remove(ctx, workspace, files)
}

// remove deletes files; those that are gone already are no error. Their content is
// collected by the registry.
func (s *Store) remove(ctx context.Context, workspace string, files []atelier.DataFile) error {
	const many = 500 // in one transaction
	for len(files) > 0 {
		some := files[:min(many, len(files))]
		files = files[len(some):]
		err := s.cfg.Store.Update(ctx, access.By(ctx), func(tx store.Tx) error {
			for _, f := range some {
				if err := catalog.DataFiles.Delete(tx, workspace, f.ID, 0); err != nil && atelier.CodeOf(err) != atelier.NotFound {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// retain removes files that are older than they are kept, and the oldest of workspaces
// that have more than their limit.
func (s *Store) retain(ctx context.Context) error {
	ctx = access.WithPrincipal(ctx, access.Principal{Kind: access.System})
	old := map[string][]atelier.DataFile{}
	before := s.cfg.Now().Add(-s.cfg.Keep)
	err := s.cfg.Store.View(ctx, func(tx store.Tx) error {
		return catalog.Workspaces.Each(tx, store.Query{}, func(w atelier.Workspace) error {
			var kept []atelier.DataFile // in the order of their ids, which is that of their times
			var size int64
			err := catalog.DataFiles.Each(tx, store.Query{Workspace: w.ID}, func(f atelier.DataFile) error {
				if f.Created.Before(before) {
					old[w.ID] = append(old[w.ID], f)
				} else {
					kept, size = append(kept, f), size+f.Size
				}
				return nil
			})
			for len(kept) > 0 && size > s.cfg.Limit {
				old[w.ID], size, kept = append(old[w.ID], kept[0]), size-kept[0].Size, kept[1:]
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	for workspace, files := range old {
		if err := s.remove(ctx, workspace, files); err != nil {
			return err
		}
		s.cfg.Log.Info("old collected data were deleted", "workspace", workspace, "files", len(files))
	}
	return nil
}
