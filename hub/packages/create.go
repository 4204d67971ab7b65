package packages

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/catalog"
	"github.com/atelier-edge/atelier/hub/images"
	"github.com/atelier-edge/atelier/hub/registry"
	"github.com/atelier-edge/atelier/hub/store"
	"github.com/atelier-edge/atelier/packaging/image"
)

// architectures are those that packages are made for.
var architectures = []string{"amd64", "arm64"}

// maxFiles bounds the files of a version: each is a part of its ModelPack artifact, and
// registries bound what a manifest may name.
const maxFiles = 4000

// RuntimeServer is the name under which the model server is registered among the hub's
// runtimes.
const RuntimeServer = "atelier-serve"

// Definition says what a package shall be made of.
type Definition struct {
	Model, Version string // the version by number, id, or registry.Latest; "" for that
	Name, Tag      string // "" for the model's name, and the version's number
	Description    string
	Base           string   // "" for the only one that the workspace has
	Arch           []string // empty for all that there are the parts for
	// Code are files of a scoring script, uploaded before, beside what the version has;
	// Script is the path of the script among them, and Environment what it runs in.
	Code        []atelier.File
	Script      string
	Environment string
	Serving     atelier.ServingSettings
}

// Create adds a package, to be built by Run, and returns it at once. One of the same
// name and tag and of equal inputs is returned as it is, and built again where it had
// failed; Exists where its inputs are others.
func (p *Packages) Create(ctx context.Context, workspace string, n Definition) (atelier.Package, error) {
	if err := checkNew(&n); err != nil {
		return atelier.Package{}, err
	}
	var made atelier.Package
	err := p.update(ctx, func(tx store.Tx) error {
		next, err := p.resolve(tx, workspace, n)
		if err != nil {
			return err
		}
		there, err := catalog.Packages.Find(tx, workspace, next.Package, next.Tag)
		switch {
		case isAbsent(err):
			made, err = catalog.Packages.Insert(tx, workspace, next.Package, next)
			return err
		case err != nil:
			return err
		case there.Inputs != next.Inputs:
			return atelier.Errorf(atelier.Exists, "there is a package %s:%s already, of other inputs", there.Package, there.Tag).WithField("tag").
				WithRemedy("Give this one a tag of its own, such as --tag %s-2, or delete the other.", next.Tag)
		case there.State != atelier.BuildFailed:
			made = there
			return nil
		}
		there.State, there.Why, there.Started, there.Finished = next.State, next.Why, nil, nil
		made, err = catalog.Packages.Update(tx, workspace, there)
		return err
	})
	if err == nil {
		p.poke()
	}
	return made, err
}

// poke wakes Run.
func (p *Packages) poke() {
	select {
	case p.wake <- struct{}{}:
	default: // it will look anyway
	}
}

func checkNew(n *Definition) error {
	if len(n.Description) > 4096 {
		return atelier.Errorf(atelier.TooLarge, "the description has %d bytes; at most 4096 are taken", len(n.Description)).WithField("description")
	}
	if err := n.Serving.Check(); err != nil {
		return err
	}
	for i, arch := range n.Arch {
		if !slices.Contains(architectures, arch) || slices.Contains(n.Arch[:i], arch) {
			return atelier.Errorf(atelier.Invalid, "architecture %.40q is unknown, or named twice", arch).WithField("arch").
				WithRemedy("Name some of %s.", strings.Join(architectures, ", "))
		}
	}
	if n.Version == "" {
		n.Version = registry.Latest
	}
	if (len(n.Code) > 0) != (n.Script != "") {
		return atelier.Errorf(atelier.Invalid, "code needs a script that is run, and a script needs its code").WithField("script").
			WithRemedy("Give both: --code DIRECTORY --script FILE, or none.")
	}
	if n.Script == "" {
		if n.Environment != "" {
			return atelier.Errorf(atelier.Invalid, "an environment is named, and no script that would run in it").WithField("environment").
				WithRemedy("A version that was registered with an environment brings it along; leave it out.")
		}
		return nil
	}
	for i, f := range n.Code {
		if err := atelier.CheckFilePath(f.Path); err != nil {
			return err
		}
		if slices.ContainsFunc(n.Code[:i], func(o atelier.File) bool { return o.Path == f.Path }) {
			return atelier.Errorf(atelier.Invalid, "the code has %.120q twice", f.Path).WithField("code")
		}
	}
	if !slices.ContainsFunc(n.Code, func(f atelier.File) bool { return f.Path == n.Script }) || !strings.HasSuffix(n.Script, ".py") {
		return atelier.Errorf(atelier.Invalid, "the script %.120q is none of the code's files, or does not end in .py", n.Script).WithField("script").
			WithRemedy("Name the file that has init() and run(data), by its path within the code.")
	}
	return nil
}

// resolve finds out what n is made of: the package as it is to be built.
func (p *Packages) resolve(tx store.Tx, workspace string, n Definition) (atelier.Package, error) {
	var pkg atelier.Package
	_, v, err := registry.FindVersion(tx, workspace, n.Model, n.Version)
	if err != nil {
		return pkg, err
	}
	base, err := chooseBase(tx, workspace, n.Base)
	if err != nil {
		return pkg, err
	}
	pkg = atelier.Package{
		Package: n.Name, Tag: n.Tag, Description: n.Description,
		Model: v.Model, Version: v.Number, VersionID: v.ID, VersionDigest: v.Digest, Kind: v.Variants[0].Kind,
		Base: base.Name, BaseID: base.ID, Script: n.Script, Serving: n.Serving,
		State: atelier.BuildPending, Why: atelier.Because(atelier.ReasonWaiting, "its build begins when those before it are over"),
	}
	if pkg.Package == "" {
		pkg.Package = v.Model
	}
	if pkg.Tag == "" {
		pkg.Tag = strconv.Itoa(v.Number)
	}
	pkg.Name, pkg.Repository = pkg.Tag, pkg.Package
	if err := checkNames(&pkg); err != nil {
		return pkg, err
	}
	r := resolution{tx: tx, workspace: workspace, new: &n, version: &v, base: &base}
	if err := r.all(&pkg); err != nil {
		return pkg, err
	}
	if pkg.Inputs, err = inputsOf(&pkg); err != nil {
		return pkg, err
	}
	for i := range pkg.Images {
		for j := range pkg.Images[i].Layers {
			l := &pkg.Images[i].Layers[j]
			if l.Digest == "" {
				pkg.Total += sizeOf(l.Files)
			}
		}
	}
	return pkg, nil
}

// checkNames checks that package and tag can be a repository and its tags.
func checkNames(pkg *atelier.Package) error {
	if err := atelier.CheckName("package", pkg.Package); err != nil {
		return err
	}
	if err := images.CheckName(pkg.Package); err != nil {
		return err
	}
	if atelier.IsID(pkg.Tag) {
		return atelier.Errorf(atelier.Invalid, "the tag %.40q has the form of an id", pkg.Tag).WithField("tag")
	}
	if images.Reference(pkg.Tag).IsDigest() || strings.HasSuffix(pkg.Tag, atelier.ModelPackTag) {
		return atelier.Errorf(atelier.Invalid, "the tag %.80q has a colon, or ends in %s", pkg.Tag, atelier.ModelPackTag).WithField("tag")
	}
	return images.Reference(pkg.Tag + atelier.ModelPackTag).Check()
}

func sizeOf(files []atelier.File) (size int64) {
	for _, f := range files {
		size += f.Size
	}
	return size
}

// inputsOf names all that a package is made of.
func inputsOf(pkg *atelier.Package) (atelier.Digest, error) {
	type input struct {
		Arch       string           `json:"arch"`
		Layers     []atelier.Digest `json:"layers"` // recipes, and digests of the base's
		BaseConfig atelier.Digest   `json:"base_config"`
		Command    []string         `json:"command"`
	}
	all := struct {
		Format      string         `json:"format"`
		Package     string         `json:"package"`
		Tag         string         `json:"tag"`
		Model       string         `json:"model"`
		Version     int            `json:"version"`
		Digest      atelier.Digest `json:"digest"`
		Environment string         `json:"environment"`
		Images      []input        `json:"images"`
	}{"atelier.package/1", pkg.Package, pkg.Tag, pkg.Model, pkg.Version, pkg.VersionDigest, pkg.Environment, nil}
	for _, img := range pkg.Images {
		in := input{Arch: img.Arch, BaseConfig: img.BaseConfig.Digest, Command: img.Command}
		for _, l := range img.Layers {
			if l.Recipe != "" {
				in.Layers = append(in.Layers, l.Recipe)
			} else {
				in.Layers = append(in.Layers, l.Digest)
			}
		}
		all.Images = append(all.Images, in)
	}
	b, err := json.Marshal(all)
	if err != nil {
		return "", atelier.Errorf(atelier.Internal, "write what a package is made of: %w", err)
	}
	return atelier.DigestOf(b), nil
}

// resolution finds the parts of a package for each architecture.
type resolution struct {
	tx        store.Tx
	workspace string
	new       *Definition
	version   *atelier.Version
	base      *atelier.Base

	environment *atelier.Environment // of the code that came beside the model
	runtimes    []atelier.Runtime
}

func (r *resolution) all(pkg *atelier.Package) error {
	if r.new.Script != "" {
		if err := registry.CheckFiles(r.tx, r.workspace, r.new.Code); err != nil {
			return err
		}
		e, err := registry.FindEnvironment(r.tx, r.workspace, r.new.Environment)
		if err != nil {
			return inField(err, "environment")
		}
		r.environment = &e
	}
	err := catalog.Runtimes.Each(r.tx, store.Query{}, func(rt atelier.Runtime) error {
		r.runtimes = append(r.runtimes, rt)
		return nil
	})
	if err != nil {
		return err
	}
	arches, strict := r.new.Arch, true
	if len(arches) == 0 {
		arches, strict = architectures, false
	}
	var missing error
	for _, arch := range arches {
		img, env, err := r.image(arch)
		if err != nil {
			if strict {
				return err
			}
			if missing == nil || r.base.Image(arch) != nil {
				missing = err
			}
			continue
		}
		if env != nil {
			pkg.Environment, pkg.EnvironmentID = env.Name+":"+strconv.Itoa(env.Number), env.ID
		}
		pkg.Images = append(pkg.Images, img)
	}
	if len(pkg.Images) == 0 {
		return missing
	}
	slices.SortFunc(pkg.Images, func(a, b atelier.PackageImage) int { return strings.Compare(a.Arch, b.Arch) })
	return r.checkServing(pkg)
}

// checkServing refuses settings that are of no use for what is served.
func (r *resolution) checkServing(pkg *atelier.Package) error {
	v := *r.version
	if r.new.Script != "" {
		v.Variants = []atelier.Variant{{Kind: atelier.VariantPython}}
	}
	return pkg.Serving.CheckFor(&v)
}

// image describes the image for an architecture, and says in which environment it runs.
func (r *resolution) image(arch string) (img atelier.PackageImage, env *atelier.VariantEnvironment, err error) {
	base := r.base.Image(arch)
	if base == nil {
		return img, nil, atelier.Errorf(atelier.Invalid, "the base %q is not for %s", r.base.Name, arch).WithField("arch").
			WithRemedy("Add one for that architecture, and name it with --base.")
	}
	variant, err := r.variant(arch)
	if err != nil {
		return img, nil, err
	}
	if n := len(variant.Files); n > maxFiles {
		return img, nil, atelier.Errorf(atelier.TooLarge, "version %d of model %q has %d files; at most %d can be packed", r.version.Number, r.version.Model, n, maxFiles).
			WithRemedy("Put the small ones into an archive that the script unpacks, or deploy the version without a package.")
	}
	server, err := r.runtime(RuntimeServer, arch, "bin/atelier-serve")
	if err != nil {
		return img, nil, err
	}
	img = atelier.PackageImage{Arch: arch, BaseConfig: base.Config, Layers: slices.Clone(base.Layers)}
	serve := image.Serve{
		Model: r.version.Model, Version: r.version.Number, Variant: variant, Script: r.new.Script, Server: server.Entry, Settings: r.new.Serving,
	}
	switch env, err = r.environmentFor(&variant, arch); {
	case err != nil:
		return img, nil, err
	case env != nil:
		img.Layers = append(img.Layers, image.EnvironmentLayer(env.Artifact))
	default:
		rt, err := r.runtime(variant.Requires.Runtime, arch, "FILE")
		if err != nil {
			return img, nil, err
		}
		serve.Runtime = rt.Entry
		img.Layers = append(img.Layers, image.ServerLayer(image.RuntimeDir, rt.Files))
	}
	img.Layers = append(img.Layers, image.ServerLayer(image.ServerDir, server.Files))
	img.Layers = append(img.Layers, image.ModelLayers(variant.Files)...)
	if r.new.Script != "" {
		img.Layers = append(img.Layers, image.CodeLayer(r.new.Code))
	}
	img.Command = serve.Command()
	return img, env, nil
}

// variant returns the version's variant for an architecture.
func (r *resolution) variant(arch string) (atelier.Variant, error) {
	for _, v := range r.version.Variants {
		// With code of its own a variant's files are all that is wanted of it.
		if r.new.Script != "" || len(v.Requires.Arch) == 0 || slices.Contains(v.Requires.Arch, arch) {
			return v, nil
		}
	}
	return atelier.Variant{}, atelier.Errorf(atelier.Invalid, "version %d of model %q has no variant for %s", r.version.Number, r.version.Model, arch).WithField("arch").
		WithRemedy("Build its environment for that architecture, and register the version again.")
}

// environmentFor returns the environment that the image runs in, nil for none.
func (r *resolution) environmentFor(v *atelier.Variant, arch string) (*atelier.VariantEnvironment, error) {
	if r.environment == nil {
		return v.Environment, nil
	}
	e := r.environment
	b := e.Build(arch)
	if b == nil || b.State != atelier.BuildReady {
		state := "not to be built"
		if b != nil {
			state = string(b.State)
		}
		return nil, atelier.Errorf(atelier.Conflict, "the environment %s:%d is %s for %s", e.Environment, e.Number, state, arch).WithField("environment").
			WithRemedy("Wait for it with 'atelier environment show %s:%d --wait', or create it for that architecture.", e.Environment, e.Number)
	}
	return &atelier.VariantEnvironment{ID: e.ID, Name: e.Environment, Number: e.Number, Python: e.Python, Artifact: *b.Artifact, NeedsGlibc: b.NeedsGlibc}, nil
}

// runtime returns the runtime with the name for an architecture that was registered last.
func (r *resolution) runtime(name, arch, file string) (atelier.Runtime, error) {
	var last *atelier.Runtime
	for i := range r.runtimes {
		if rt := &r.runtimes[i]; rt.Name == name && rt.OS == "linux" && rt.Arch == arch && (last == nil || rt.ID > last.ID) {
			last = rt
		}
	}
	if last == nil {
		return atelier.Runtime{}, atelier.Errorf(atelier.Invalid, "no %s is registered in the hub for linux/%s, and the image needs it", name, arch).WithField("arch").
			WithRemedy("Register it: 'atelier runtime register %s VERSION %s --arch %s'.", name, file, arch)
	}
	return *last, nil
}
