package registry

import (
	"context"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
)

// RegisterRuntime adds a runtime whose files were uploaded to the hub (workspace
// ""). There is one of each name, version, operating system and architecture;
// Exists for another.
func (r *Registry) RegisterRuntime(ctx context.Context, n atelier.Runtime) (atelier.Runtime, error) {
	n.Meta = atelier.Meta{Name: n.Name}
	n.Files = slices.Clone(n.Files)
	if err := checkRuntime(&n); err != nil {
		return n, err
	}
	made := n
	err := r.update(ctx, func(tx store.Tx) error {
		if err := r.checkFiles(tx, "", n.Files); err != nil {
			return err
		}
		// A parent of its own for each platform makes the name unique among them.
		var err error
		made, err = catalog.Runtimes.Insert(tx, "", platform(n), n)
		if atelier.CodeOf(err) == atelier.Exists {
			err = atelier.Errorf(atelier.Exists, "the runtime %s %s for %s/%s is registered already", n.Name, n.Version, n.OS, n.Arch).
				WithRemedy("Delete it first if its content is to change.")
		}
		return err
	})
	return made, err
}

// Runtime returns a runtime by its id.
func (r *Registry) Runtime(ctx context.Context, id string) (rt atelier.Runtime, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		rt, err = catalog.Runtimes.Get(tx, "", id)
		return err
	})
	return rt, err
}

// DeleteRuntime removes a runtime. Devices keep the copy that they have.
func (r *Registry) DeleteRuntime(ctx context.Context, id string, revision int64) error {
	return r.update(ctx, func(tx store.Tx) error {
		return catalog.Runtimes.Delete(tx, "", id, revision)
	})
}

// platform tells runtimes of one name apart.
func platform(n atelier.Runtime) string {
	return strings.Join([]string{n.Version, n.OS, n.Arch}, "/")
}

func checkRuntime(n *atelier.Runtime) error {
	if err := atelier.CheckName("runtime", n.Name); err != nil {
		return err
	}
	for _, w := range []struct{ field, word string }{{"version", n.Version}, {"os", n.OS}, {"arch", n.Arch}} {
		if len(w.word) == 0 || len(w.word) > 63 || strings.Trim(w.word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_+") != "" {
			return atelier.Errorf(atelier.Invalid, "%s %.80q is empty, too long, or holds something else than letters, digits, '.', '-', '_' and '+'", w.field, w.word).
				WithField(w.field)
		}
	}
	if err := checkGlibc(n.NeedsGlibc); err != nil {
		return err
	}
	if err := checkPaths(n.Files); err != nil {
		return err
	}
	if !slices.ContainsFunc(n.Files, func(f atelier.File) bool { return f.Path == n.Entry }) {
		return atelier.Errorf(atelier.Invalid, "the entry %.120q is none of the files", n.Entry).WithField("entry")
	}
	return nil
}

func checkGlibc(version string) error {
	if version != "" && (len(version) > 16 || strings.Trim(version, "0123456789.") != "") {
		return atelier.Errorf(atelier.Invalid, "needs_glibc %.40q is no version such as 2.28", version).WithField("needs_glibc")
	}
	return nil
}
