package registry

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/internal/content"
)

// NewVersion describes a version to register. Its files were uploaded to the
// workspace before.
type NewVersion struct {
	Files       []atelier.File
	Kind        string // of the variant; "" for atelier.VariantONNX
	Entry       string // path of the file that the engine loads; "" for the only one that can be it
	Environment string // of what runs in Python: NAME, NAME:VERSION or id; its builds must be over
	Description string
	Tags        map[string]string
}

// VersionChange says what to change of a version; nil leaves a field as it is.
type VersionChange struct {
	Description *string
	Tags        *map[string]string
	Archived    *bool
}

// Latest is the reference to the newest version that is not archived.
const Latest = "latest"

// Register adds a version to a model, and the model where a name is given that
// is not taken yet. The version's signature is read out of its file; what is no
// whole model is refused as Invalid. The same content registered again is a new
// version all the same, with the same digest.
func (r *Registry) Register(ctx context.Context, workspace, model string, n NewVersion) (atelier.Version, error) {
	if err := checkTexts(n.Description, n.Tags); err != nil {
		return atelier.Version{}, err
	}
	variants, err := r.variants(ctx, workspace, n)
	if err != nil {
		return atelier.Version{}, err
	}
	v := atelier.Version{Description: n.Description, Tags: n.Tags, Variants: variants, Size: sizeOf(variants)}
	if v.Digest, err = digestOf(v.Variants); err != nil {
		return v, err
	}
	var made atelier.Version
	err = r.update(ctx, func(tx store.Tx) error {
		// Asked again: what the workspace held a moment ago may have been collected.
		for _, variant := range variants {
			if err := r.checkFiles(tx, workspace, variant.Content()); err != nil {
				return err
			}
		}
		m, err := modelFor(tx, workspace, model, variants[0].Kind)
		if err != nil {
			return err
		}
		next := v
		next.Name, next.Number = strconv.Itoa(m.Next), m.Next
		next.Model, next.ModelID = m.Name, m.ID
		if made, err = catalog.Versions.Insert(tx, workspace, m.ID, next); err != nil {
			return err
		}
		m.Latest, m.Next = m.Next, m.Next+1
		_, err = catalog.Models.Update(tx, workspace, m)
		return err
	})
	return made, err
}

// modelFor returns the model that ref names, made where it is a new name.
func modelFor(tx store.Tx, workspace, ref, framework string) (atelier.Model, error) {
	m, err := catalog.Models.Resolve(tx, workspace, "", ref)
	if atelier.CodeOf(err) != atelier.NotFound || atelier.IsID(ref) {
		return m, err
	}
	m = atelier.Model{Meta: atelier.Meta{Name: ref}, Framework: framework, Next: 1}
	if err := checkModel(&m); err != nil {
		return m, err
	}
	return catalog.Models.Insert(tx, workspace, "", m)
}

// sizeOf returns how many bytes variants have, content that they share counted once.
func sizeOf(variants []atelier.Variant) (size int64) {
	seen := map[atelier.Digest]bool{}
	for _, v := range variants {
		for _, f := range v.Content() {
			if !seen[f.Digest] {
				size += f.Size
			}
			seen[f.Digest] = true
		}
	}
	return size
}

// variants makes the variants of n: one for each architecture where it runs in an
// environment, else one.
func (r *Registry) variants(ctx context.Context, workspace string, n NewVersion) ([]atelier.Variant, error) {
	if (&atelier.Variant{Kind: n.Kind}).InPython() {
		return r.pythonVariants(ctx, workspace, n)
	}
	if n.Environment != "" {
		return nil, atelier.Errorf(atelier.Invalid, "a variant of kind %.40q runs in no environment", n.Kind).WithField("environment").
			WithRemedy("Name the script as well, with --script FILE on the command line.")
	}
	v, err := r.variant(ctx, workspace, n)
	return []atelier.Variant{v}, err
}

// variant makes the variant of n, with its signature.
func (r *Registry) variant(ctx context.Context, workspace string, n NewVersion) (atelier.Variant, error) {
	v := atelier.Variant{Kind: n.Kind, Entry: n.Entry, Files: slices.Clone(n.Files)}
	if v.Kind == "" {
		v.Kind = atelier.VariantONNX
	}
	if v.Kind != atelier.VariantONNX {
		return v, atelier.Errorf(atelier.Unsupported, "variants of kind %.40q are not known; %q, %q, %q and %q are",
			v.Kind, atelier.VariantONNX, atelier.VariantPython, atelier.VariantMLflow, atelier.VariantPickle).
			WithField("kind").WithRemedy("Export the model to ONNX and register that, or register a scoring script with it (--script).")
	}
	if err := checkPaths(v.Files); err != nil {
		return v, err
	}
	entry, err := entryOf(v)
	if err != nil {
		return v, err
	}
	v.Entry = entry.Path
	err = r.store.View(ctx, func(tx store.Tx) error { return r.checkFiles(tx, workspace, v.Files) })
	if err != nil {
		return v, err
	}
	v.Requires.Runtime = atelier.RuntimeONNX
	if v.Signature, err = r.readONNX(entry, v.Files); err != nil {
		return v, err
	}
	return v, r.checkGolden(v.Kind, v.Files)
}

// entryOf returns the file that the engine loads: the one that was named, or the
// only one that ends in .onnx, or the only one.
func entryOf(v atelier.Variant) (atelier.File, error) {
	var fit []atelier.File
	for _, f := range v.Files {
		if f.Path == v.Entry || v.Entry == "" && (len(v.Files) == 1 || strings.HasSuffix(f.Path, ".onnx")) {
			fit = append(fit, f)
		}
	}
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case v.Entry != "":
		return atelier.File{}, atelier.Errorf(atelier.Invalid, "the entry %.120q is none of the files", v.Entry).WithField("entry")
	case len(fit) == 0:
		return atelier.File{}, atelier.Errorf(atelier.Invalid, "none of the %d files ends in .onnx", len(v.Files)).
			WithField("entry").WithRemedy("Name the model's file as the entry, with --entry FILE on the command line.")
	}
	return atelier.File{}, atelier.Errorf(atelier.Invalid, "%d files end in .onnx, such as %q and %q", len(fit), fit[0].Path, fit[1].Path).
		WithField("entry").WithRemedy("Name the one that is the model as the entry, with --entry FILE on the command line.")
}

// Version returns a version by its number, its id or Latest.
func (r *Registry) Version(ctx context.Context, workspace, model, ref string) (v atelier.Version, err error) {
	err = r.store.View(ctx, func(tx store.Tx) error {
		_, v, err = FindVersion(tx, workspace, model, ref)
		return err
	})
	return v, err
}

// FindVersion returns a model, and its version by number, id or Latest, within a transaction.
func FindVersion(tx store.Tx, workspace, model, ref string) (atelier.Model, atelier.Version, error) {
	m, err := findModel(tx, workspace, model)
	if err != nil {
		return m, atelier.Version{}, err
	}
	missing := atelier.Errorf(atelier.NotFound, "model %q has no version %.40q", m.Name, ref).
		WithRemedy("See 'atelier model show %s' for its versions.", m.Name)
	if ref == Latest {
		if m.Latest == 0 {
			return m, atelier.Version{}, atelier.Errorf(atelier.NotFound, "model %q has no version that is not archived", m.Name)
		}
		ref = strconv.Itoa(m.Latest)
	}
	v, err := catalog.Versions.Resolve(tx, workspace, m.ID, ref)
	if atelier.CodeOf(err) == atelier.NotFound || err == nil && v.ModelID != m.ID {
		return m, atelier.Version{}, missing
	}
	return m, v, err
}

// UpdateVersion changes what may change of a version whose revision is the given
// one, 0 for any. An archived version is Latest no more; what is deployed goes on.
func (r *Registry) UpdateVersion(ctx context.Context, workspace, model, ref string, revision int64, c VersionChange) (atelier.Version, error) {
	var m atelier.Model
	return change(ctx, r, catalog.Versions, workspace, revision,
		func(tx store.Tx) (v atelier.Version, err error) {
			m, v, err = FindVersion(tx, workspace, model, ref)
			return v, err
		},
		func(tx store.Tx, v *atelier.Version) error {
			set(&v.Description, c.Description)
			set(&v.Tags, c.Tags)
			if err := checkTexts(v.Description, v.Tags); err != nil {
				return err
			}
			if c.Archived == nil || *c.Archived == v.Archived {
				return nil
			}
			v.Archived = *c.Archived
			return updateLatest(tx, workspace, m, v)
		})
}

// DeleteVersion removes a version. InUse where it is deployed, telling by what.
// Its number is not used again.
func (r *Registry) DeleteVersion(ctx context.Context, workspace, model, ref string, revision int64) error {
	return r.update(ctx, func(tx store.Tx) error {
		m, v, err := FindVersion(tx, workspace, model, ref)
		if err != nil {
			return err
		}
		if err := checkRevision(catalog.Versions, &v, revision); err != nil {
			return err
		}
		if err := checkUnused(tx, v); err != nil {
			return err
		}
		if err := deleteVersion(tx, workspace, v); err != nil {
			return err
		}
		return updateLatest(tx, workspace, m, nil)
	})
}

// deleteVersion removes a version, and with it the workspace's claims on content
// that nothing else of it names: its space is free as soon as Collect has been
// there twice. Content that was sent again since waits for a version of its own.
func deleteVersion(tx store.Tx, workspace string, v atelier.Version) error {
	if err := catalog.Versions.Delete(tx, workspace, v.ID, v.Revision); err != nil {
		return err
	}
	for _, variant := range v.Variants {
		for _, file := range variant.Content() {
			b, err := catalog.Blobs.Find(tx, workspace, "", string(file.Digest))
			if atelier.CodeOf(err) == atelier.NotFound { // two files of the same content
				continue
			}
			if err != nil {
				return err
			}
			if named, err := namedBy(tx, workspace, b); err != nil {
				return err
			} else if named || b.Updated.After(v.Created) {
				continue
			}
			if err := catalog.Blobs.Delete(tx, workspace, b.ID, b.Revision); err != nil {
				return err
			}
		}
	}
	return nil
}

// updateLatest sets a model's newest version that is not archived, as it is once
// changed (nil for none) is stored.
func updateLatest(tx store.Tx, workspace string, m atelier.Model, changed *atelier.Version) error {
	latest := 0
	err := catalog.Versions.Each(tx, store.Query{Workspace: workspace, Parent: m.ID}, func(v atelier.Version) error {
		if changed != nil && v.ID == changed.ID {
			v = *changed
		}
		if !v.Archived {
			latest = max(latest, v.Number)
		}
		return nil
	})
	if err != nil || latest == m.Latest {
		return err
	}
	m.Latest = latest
	_, err = catalog.Models.Update(tx, workspace, m)
	return err
}

// checkUnused returns InUse where something refers to a version.
func checkUnused(tx store.Tx, v atelier.Version) error {
	users, err := tx.Referrers(catalog.RelVersion, v.ID, 6)
	if err != nil || len(users) == 0 {
		return err
	}
	var names []string
	for i, u := range users {
		if i == 5 {
			names = append(names, "others")
			break
		}
		names = append(names, fmt.Sprintf("%s %q", u.Kind, u.Name))
	}
	return atelier.Errorf(atelier.InUse, "version %d of model %q is in use by %s", v.Number, v.Model, strings.Join(names, ", ")).
		WithRemedy("Deploy another version there, or delete the deployment, then try again.")
}

// OpenFile opens a file of a version; variant is the kind of the variant that it
// belongs to, "" for the first that has the file. The caller closes it.
func (r *Registry) OpenFile(ctx context.Context, workspace, model, ref, variant, path string) (atelier.File, *content.Blob, error) {
	v, err := r.Version(ctx, workspace, model, ref)
	if err != nil {
		return atelier.File{}, nil, err
	}
	for _, candidate := range v.Variants {
		if variant != "" && candidate.Kind != variant {
			continue
		}
		for _, f := range candidate.Files {
			if f.Path == path {
				b, err := r.open(f.Digest)
				return f, b, err
			}
		}
	}
	return atelier.File{}, nil, atelier.Errorf(atelier.NotFound, "version %d of model %q has no file %.120q", v.Number, v.Model, path).
		WithRemedy("See 'atelier model show %s' for its files.", v.Model)
}
